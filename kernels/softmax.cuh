// A row's log-softmax by one warp, and the gradient of a loss of it: what log_softmax, nll and cross_entropy share.
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

// The gradient at class k, of c, of a row's loss with the target `one` for the label and `spread` for every class, as the row's
// log-softmax there is logp and the loss counts for g; NaN where the label is no class.
template <class T>
__device__ __forceinline__ T loss_gradient(T logp, int k, int label, int c, float one, float spread, float g) {
  const float target = k == label ? one : label < 0 || label >= c ? nanf("") : 0.0f;
  return from_float<T>((expf(to_float(logp)) - spread - target) * g);
}
