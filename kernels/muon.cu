// Muon: parameters that move as matrices. src/optim/muon.rs has the whole update; its products are those of linear.cu.
// Instances: T = float, half, bf16
#include "reduce.cuh"
#include "update.cuh"

struct MuonDims {
  int n;       // elements of the parameter
  int group;   // of the step's rates
  int blocks;  // that the squares are summed in
  float root;  // the norm that the parameter is brought to before the update, or 0: it is left as it is
};

struct UnitDims {
  int n;          // elements
  int blocks;     // that the squares are summed in
  float nothing;  // added to the norm
};

struct PolynomialDims {
  int n, columns;  // elements, and a row's
  float a, b, c;   // factors of 1, x and y
};

// The norm of which each block of muon_momentum has summed the squares of its share; all threads call it, once in a kernel.
__device__ __forceinline__ float norm_of(const float* squares, int blocks) {
  SHARED(float, norm, [1]);
  double sum = 0.0;
  for (int i = threadIdx.x; i < blocks; i += 256) sum += squares[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) norm[0] = (float)sqrt(sum);
  __syncthreads();
  return norm[0];
}

// v = momentum * v + g'; u = g' + momentum * v, with g' the gradient as it is used. And of each block's share the sums of the squares
// of u, and where there is a root of p, to squares [2][blocks].
// Threads: one an element, neighbours side by side.
// Traffic: g, v and p read, v and u written.
// Launch: grid `blocks`, at most 512, of 256, striding; 128 bytes of shared memory.
// Numerics: in float; squares are summed in double, each block's sum rounded.
// Limits: n < 2^31.
// Registers: at most 40.
__global__ void __launch_bounds__(256)
    muon_momentum(const float* __restrict__ g, const float* __restrict__ p, float* __restrict__ v,
                  float* __restrict__ u, float* __restrict__ squares, OPTIONAL const float* __restrict__ norm,
                  OPTIONAL const Scaling* __restrict__ scaling, const Step* __restrict__ s, MuonDims d) {
  if (is_skipped(scaling)) return;
  const float clip = s->clip, unscale = gradient_scale(s, norm, scaling);
  const float momentum = (float)s->rates[d.group].momentum;
  double sums[2] = {};
  FOR_EACH(i, d.n) {
    const float grad = used(g[i], unscale, clip), velocity = momentum * v[i] + grad;
    const float moved = grad + momentum * velocity, value = d.root > 0.0f ? p[i] : 0.0f;
    v[i] = velocity;
    u[i] = moved;
    sums[0] += (double)moved * moved;
    sums[1] += (double)value * value;
  }
  block_sums(sums);
  if (threadIdx.x == 0) {
    squares[blockIdx.x] = (float)sums[0];
    squares[d.blocks + blockIdx.x] = (float)sums[1];
  }
}

// x = u / (its norm + nothing).
// Threads: one for four elements, neighbours side by side. Each block adds up the squares.
// Traffic: u read, x written.
// Launch: grid up to 512 blocks of 256, striding; 68 bytes of shared memory.
template <class T>
__global__ void __launch_bounds__(256)
    muon_unit(const float* __restrict__ u, T* __restrict__ x, const float* __restrict__ squares, UnitDims d) {
  const float scale = 1.0f / (norm_of(squares, d.blocks) + d.nothing);
  map(x, d.n, [scale](float u) { return scale * u; }, u);
}

// y = a * I + b * x + c * y, square matrices.
// Threads: one an element, neighbours side by side.
// Traffic: x and y read, y written.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
template <class T>
__global__ void __launch_bounds__(256) muon_polynomial(const T* __restrict__ x, T* __restrict__ y, PolynomialDims d) {
  FOR_EACH(i, d.n) {
    const float one = i % (d.columns + 1) == 0 ? d.a : 0.0f;  // from one of the diagonal to the next
    y[i] = from_float<T>(one + d.b * to_float(x[i]) + d.c * to_float(y[i]));
  }
}

// p = p * root / its norm (where there is a root, and a norm above 0), then p = p * (1 - lr * decay) - lr * x.
// Threads: one an element, neighbours side by side. Each block adds up the squares of p.
// Traffic: p and x read, p written; `copy`, what products take, written where there is one.
// Launch: as muon_unit.
template <class T>
__global__ void __launch_bounds__(256)
    muon_step(const T* __restrict__ x, float* __restrict__ p, OPTIONAL T* __restrict__ copy,
              const float* __restrict__ squares, OPTIONAL const Scaling* __restrict__ scaling,
              const Step* __restrict__ s, MuonDims d) {
  if (is_skipped(scaling)) return;
  const Rate& r = s->rates[d.group];
  const float norm = d.root > 0.0f ? norm_of(squares + d.blocks, d.blocks) : 0.0f;
  const float lr = (float)r.lr, length = norm > 0.0f ? d.root / norm : 1.0f;
  const float keep = length * (1.0f - lr * (float)r.decay);
  FOR_EACH(i, d.n) {
    const float value = p[i] * keep - lr * to_float(x[i]);
    p[i] = value;
    if (copy) copy[i] = from_float<T>(value);
  }
}
