// SiLU: y = x * s(x) with the sigmoid s(x) = 1 / (1 + exp(-x)).
// Instances: T = float, half, bf16
#include "activation.cuh"

struct SiluDims {
  int n;  // elements
};

// y[i] = x[i] * s(x[i]).
// Threads: one for four elements, neighbours side by side.
// Traffic: one read and one write an element.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: in floats a few roundings of y; expf and not __expf, which loses digits of large exponents. In two bytes one
//     rounding, and 0 where exp(x) is below 2^-126.
// Limits: n < 2^31.
// Registers: at most 40.
template <class T>
__global__ void __launch_bounds__(256) silu_fwd(const T* __restrict__ x, T* __restrict__ y, SiluDims d) {
  map(y, d.n, [](float x) { return Silu<T>::of(x); }, x);
}

// gx[i] = gy[i] * s * (1 + x * (1 - s)), in place: g holds gy and receives gx.
// Traffic: two reads and one write an element.
template <class T>
__global__ void __launch_bounds__(256) silu_bwd(const T* __restrict__ x, T* __restrict__ g, SiluDims d) {
  map(g, d.n, [](float x, float g) { return Silu<T>::gradient(x, g); }, x, g);
}
