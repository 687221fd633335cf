// Dropout: zero with probability p, scale by 1/(1 - p) otherwise.
// Instances: T = float, half, bf16
#include "four.cuh"
#include "philox.cuh"

struct DropoutDims {
  int n;               // elements
  unsigned id;         // the layer's random stream
  unsigned threshold;  // floor(p * 2^32): an element stays where its random word reaches it
  float scale;         // 1 / (1 - p)
};

// y[i] = x[i] * scale where random word i is at least the threshold, else 0: forward of x, and
// backward of gy, with the same mask.
// Threads: one for four elements, which share a block of random words; neighbours side by side.
// Traffic: one read and one write an element; the mask is recomputed, not stored.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: the mask is exact, one rounding.
// Limits: n < 2^31.
// Registers: at most 50.
template <class T>
__global__ void __launch_bounds__(256)
    dropout_apply(const T* __restrict__ x, T* __restrict__ y, const Step* __restrict__ s, DropoutDims d) {
  bool wide = is_aligned(x) && is_aligned(y);
  FOR_EACH(block, (d.n + 3) / 4) {
    unsigned words[4];
    philox(block, d.id, s, words);
    int at = 4 * block;
    if (wide && at + 4 <= d.n) {
      Four<float> v = load<4>(x + at);
#pragma unroll
      for (int k = 0; k < 4; ++k) v.v[k] = words[k] < d.threshold ? 0.0f : v.v[k] * d.scale;
      store(y + at, v);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (at + k < d.n) y[at + k] = from_float<T>(words[k] < d.threshold ? 0.0f : to_float(x[at + k]) * d.scale);
      }
    }
  }
}
