// The arenas: the norm of the gradients, the average of the parameters.
// Instances: T = half, bf16
#include "four.cuh"
#include "reduce.cuh"

struct ParamsDims {
  int n;     // numbers to sum
  int root;  // 1: y = sqrt(sum of x), 0: y[block] = sum of x²
};

struct AverageDims {
  int n;  // elements
};

struct RoundDims {
  int n;  // elements
};

// Sums over all numbers in two launches: first y[block] = sum of x² over the block's share, then with
// one block y[0] = sqrt(sum of the first's results).
// Threads: a block's threads stride over its share, neighbours side by side.
// Traffic: one read a number.
// Launch: grid 1 to 512 blocks of 256, then 1; 64 bytes of shared memory.
// Numerics: summed in double, each block's sum rounded to f32.
// Limits: n < 2^31.
// Registers: at most 40.
__global__ void __launch_bounds__(256) params_norm(const float* __restrict__ x, float* __restrict__ y, ParamsDims d) {
  double sum = 0.0;
  FOR_EACH(i, d.n) sum += d.root ? (double)x[i] : (double)x[i] * x[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) y[blockIdx.x] = (float)(d.root ? sqrt(sum) : sum);
}

// a = ema * a + (1 - ema) * x, with the step's ema: a copy of x where that is 0.
// Threads: one an element, neighbours side by side.
// Traffic: x and a read, a written.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: from the nearer of a and x by a part of their difference (PyTorch's lerp), in float.
// Limits: n < 2^31.
// Registers: at most 32.
__global__ void __launch_bounds__(256)
    params_average(const float* __restrict__ x, float* __restrict__ a, const Step* __restrict__ s, AverageDims d) {
  const float keep = (float)s->ema, take = (float)(1.0 - s->ema);
  FOR_EACH(i, d.n) {
    const float difference = x[i] - a[i];
    a[i] = take < 0.5f ? a[i] + take * difference : x[i] - keep * difference;
  }
}

// y = x, rounded: the copy of the weights that products take.
// Threads: one for 8 elements, neighbours side by side.
// Traffic: 4 bytes read and 2 written an element.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: to nearest even.
// Limits: n < 2^31.
// Registers: at most 40.
template <class T>
__global__ void __launch_bounds__(256) params_round(const float* __restrict__ x, T* __restrict__ y, RoundDims d) {
  const int packs = is_aligned<8>(x) && is_aligned<8>(y) ? d.n / 8 : 0;
  FOR_EACH(i, packs) store(y + 8 * i, load<8>(x + 8 * i));
  FOR_EACH(i, d.n - 8 * packs) y[8 * packs + i] = from_float<T>(x[8 * packs + i]);
}
