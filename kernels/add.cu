// Addition: y = a + b, and its ReLU.
// Instances: T = float, half, bf16
#include "activation.cuh"

struct AddDims {
  int n;     // elements
  int relu;  // 1: y = max(a + b, 0)
};

// y[i] = a[i] + b[i], or max(a[i] + b[i], 0).
// Threads: one for four elements, neighbours side by side.
// Traffic: two reads and one write an element.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: one rounding.
// Limits: n < 2^31.
// Registers: at most 40.
template <class T>
__global__ void __launch_bounds__(256)
    add_fwd(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ y, AddDims d) {
  map(y, d.n, [relu = d.relu](float a, float b) { return relu ? Relu::of(a + b) : a + b; }, a, b);
}
