// A row's log-softmax by one warp, which log_softmax and cross_entropy share.
#pragma once
#include "reduce.cuh"

// What a row's elements become: (x - max) - log(sum of exp(x - max)).
struct LogSoftmax {
  float largest, log_sum;
  // In this order, so that neither a large maximum nor a large sum loses the other's digits.
  template <class T>
  __device__ __forceinline__ float of(T x) const {
    return (to_float(x) - largest) - log_sum;
  }
};

// Of the c elements of a row; all lanes call it.
template <class T>
__device__ __forceinline__ LogSoftmax log_softmax(const T* x, int c, int lane) {
  float largest = to_float(x[0]);
  for (int k = lane; k < c; k += 32) largest = fmaxf(largest, to_float(x[k]));
  largest = warp_max(largest);
  float sum = 0.0f;
  for (int k = lane; k < c; k += 32) sum += expf(to_float(x[k]) - largest);
  return {largest, logf(warp_sum(sum))};
}
