// Reductions: over a warp by shuffles, over a block through shared memory. The order is fixed, so
// that equal inputs give equal bits.
#pragma once
#include "four.cuh"

constexpr unsigned ALL_LANES = 0xffffffffu;

// The sum over the warp's lanes, in every lane; all lanes call it.
template <class V>
__device__ __forceinline__ V warp_sum(V v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
  return v;
}

// The largest over the warp's lanes, in every lane; all lanes call it. NaN loses, as in fmaxf.
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, step));
  return v;
}

// The sum over the warp's lanes, in lane 0 alone; all lanes call it.
template <class V>
__device__ __forceinline__ V first_lane_sum(V v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v += __shfl_down_sync(ALL_LANES, v, step);
  return v;
}

// The sums of N numbers over a block of 256 threads, in thread 0 alone; all threads call it, once in a kernel.
template <int N>
__device__ __forceinline__ void block_sums(double (&v)[N]) {
  SHARED(double, part, [N][8]);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    v[i] = first_lane_sum(v[i]);
    if (lane == 0) part[i][threadIdx.x / 32] = v[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = first_lane_sum(lane < 8 ? part[i][lane] : 0.0);
}

// The same of one number.
__device__ __forceinline__ double block_sum(double v) {
  double sum[1] = {v};
  block_sums(sum);
  return sum[0];
}

// The 256 threads of a block as rows of `width`, a power of two: the sums over the rows, of V numbers each, in a tree, in the threads
// of the first row. `sums` has V * 256 numbers. All threads call it.
template <int V>
__device__ __forceinline__ Pack<float, V> sum_of_rows(float* sums, Pack<float, V> sum, int width) {
  const int t = threadIdx.x;
#pragma unroll
  for (int k = 0; k < V; ++k) sums[k * 256 + t] = sum.v[k];
  __syncthreads();
  for (int half = 128; half >= width; half /= 2) {
    if (t < half)
#pragma unroll
      for (int k = 0; k < V; ++k) sums[k * 256 + t] += sums[k * 256 + t + half];
    __syncthreads();
  }
#pragma unroll
  for (int k = 0; k < V; ++k) sum.v[k] = sums[k * 256 + t];
  return sum;
}
