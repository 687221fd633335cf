// ReLU: y = max(x, 0).
// Instances: T = float, half, bf16
#include "activation.cuh"

struct ReluDims {
  int n;  // elements
};

// y[i] = x[i] > 0 ? x[i] : 0, and NaN where x is NaN.
// Threads: one for four elements, neighbours side by side.
// Traffic: one read and one write an element.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: exact.
// Limits: n < 2^31.
// Registers: at most 32.
template <class T>
__global__ void __launch_bounds__(256) relu_fwd(const T* __restrict__ x, T* __restrict__ y, ReluDims d) {
  map(y, d.n, [](float x) { return Relu::of(x); }, x);
}

// gx[i] = y[i] > 0 ? gy[i] : 0, in place: g holds gy and receives gx.
// Traffic: two reads and one write an element.
template <class T>
__global__ void __launch_bounds__(256) relu_bwd(const T* __restrict__ y, T* __restrict__ g, ReluDims d) {
  map(g, d.n, [](float y, float g) { return Relu::gradient(y, g); }, y, g);
}
