// Multiplication by a constant: y = a · x, and gx = a · gy.
// Instances: T = float, half, bf16
#include "four.cuh"

struct ScaleDims {
  int n;         // elements
  float factor;  // a
};

// y[i] = a * x[i].
// Threads: one for four elements, neighbours side by side.
// Traffic: one read and one write an element.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: one rounding.
// Limits: n < 2^31.
// Registers: at most 32.
template <class T>
__global__ void __launch_bounds__(256) scale_all(const T* __restrict__ x, T* __restrict__ y, ScaleDims d) {
  map(y, d.n, [&](float v) { return d.factor * v; }, x);
}
