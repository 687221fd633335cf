// A row's log-softmax by one warp, which log_softmax and cross_entropy share.
#pragma once
#include "reduce.cuh"

// Writes y[k] = (x[k] - max) - log(sum of exp(x - max)) for the c elements of a row; all lanes call it.
template <class T>
__device__ __forceinline__ void log_softmax_row(const T* x, T* y, int c, int lane) {
  float largest = to_float(x[0]);
  for (int k = lane; k < c; k += 32) largest = fmaxf(largest, to_float(x[k]));
  largest = warp_max(largest);
  float sum = 0.0f;
  for (int k = lane; k < c; k += 32) sum += expf(to_float(x[k]) - largest);
  float log_sum = logf(warp_sum(sum));
  // In this order, so that neither a large maximum nor a large sum loses the other's digits.
  for (int k = lane; k < c; k += 32) y[k] = from_float<T>((to_float(x[k]) - largest) - log_sum);
}
