// GELU: y = x * P(x) with the normal distribution P(x) = erfc(-x / sqrt 2) / 2.
// Instances: T = float, half, bf16
#include "activation.cuh"

struct GeluDims {
  int n;  // elements
};

// y[i] = x[i] * P(x[i]).
// Threads: one for four elements, neighbours side by side.
// Traffic: one read and one write an element.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: in floats a few roundings of y: erfcf keeps its digits where 1 + erff would lose them, and takes many registers.
//     In two bytes one rounding, of what activation.cuh computes in fewer instructions.
// Limits: n < 2^31.
// Registers: at most 64.
template <class T>
__global__ void __launch_bounds__(256) gelu_fwd(const T* __restrict__ x, T* __restrict__ y, GeluDims d) {
  map(y, d.n, [](float x) { return Gelu<T>::of(x); }, x);
}

// gx[i] = gy[i] * (P(x) + x * exp(-x^2 / 2) / sqrt(2 pi)), in place: g holds gy and receives gx.
// Traffic: two reads and one write an element.
template <class T>
__global__ void __launch_bounds__(256) gelu_bwd(const T* __restrict__ x, T* __restrict__ g, GeluDims d) {
  map(g, d.n, [](float x, float g) { return Gelu<T>::gradient(x, g); }, x, g);
}
