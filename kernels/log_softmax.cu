// Log-softmax over the last dimension.
// Instances: T = float, half, bf16
#include "softmax.cuh"

struct LogSoftmaxDims {
  int n, c;  // rows, columns
};

// y[n, c] = x[n, c] - log(sum over c of exp(x[n, c])).
// Threads: one warp for a row, neighbours along it.
// Traffic: one read (and two from the cache) and one write an element.
// Launch: grid ceil(n / 8) of 256; no shared memory.
// Numerics: the row's largest is subtracted first; accurate expf and logf.
// Limits: n * c < 2^31.
// Registers: at most 48.
template <class T>
__global__ void __launch_bounds__(256) log_softmax_fwd(const T* __restrict__ x, T* __restrict__ y, LogSoftmaxDims d) {
  int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= d.n) return;
  x += row * d.c;  // [c]
  y += row * d.c;
  const LogSoftmax found = log_softmax(x, d.c, lane);
  for (int k = lane; k < d.c; k += 32) y[k] = from_float<T>(found.of(x[k]));
}

// gx[n, c] = gy[n, c] - exp(y[n, c]) * (sum over c of gy[n, c]).
// Traffic: two reads (gy once more from the cache) and one write an element.
// Numerics: the sum by lanes, then over the lanes in a fixed order.
template <class T>
__global__ void __launch_bounds__(256)
    log_softmax_bwd(const T* __restrict__ gy, const T* __restrict__ y, T* __restrict__ gx, LogSoftmaxDims d) {
  int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= d.n) return;
  gy += row * d.c;  // [c]
  y += row * d.c;
  gx += row * d.c;
  float sum = 0.0f;
  for (int k = lane; k < d.c; k += 32) sum += to_float(gy[k]);
  sum = warp_sum(sum);
  for (int k = lane; k < d.c; k += 32) gx[k] = from_float<T>(to_float(gy[k]) - expf(to_float(y[k])) * sum);
}
