// Tensors: fill with a value, add one to another.
// Instances: T = float, half, bf16
#include "four.cuh"

struct TensorDims {
  int n;        // elements
  float value;  // what to fill with
};

// y[i] = value.
// Threads: one for 16 bytes, neighbours side by side.
// Traffic: one write an element.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: exact.
// Limits: n < 2^31.
// Registers: at most 32.
template <class T>
__global__ void __launch_bounds__(256) tensor_fill(T* __restrict__ y, TensorDims d) {
  map(y, d.n, [&] { return d.value; });
}

// y[i] += x[i], where a variable gets gradients from several ops.
// Traffic: two reads and one write an element.
// Numerics: one rounding.
template <class T>
__global__ void __launch_bounds__(256) tensor_accumulate(const T* __restrict__ x, T* __restrict__ y, TensorDims d) {
  map(y, d.n, [](float y, float x) { return y + x; }, y, x);
}
