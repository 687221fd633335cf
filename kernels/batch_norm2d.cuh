// Batch normalisation: what its kernels know of a channel.
#pragma once
#include "activation.cuh"
#include "reduce.cuh"

#ifdef TILEWORK_EMULATED

__device__ __forceinline__ void opaque(unsigned&) {}

#else

// Hides from the compiler where a word is from, so that what has been computed of it is computed again: it would be kept in
// registers that are not there.
__device__ __forceinline__ void opaque(unsigned& word) { asm("" : "+r"(word)); }

#endif

// The step of a channel's running statistics: running = keep * running + take * batch, with the unbiased variance. Returns
// 1 / sqrt(var + eps).
template <class Dims>
__device__ __forceinline__ float keep_statistics(int c, float mean, float var, float* running_mean, float* running_var,
                                                 const Dims& d) {
  running_mean[c] = d.keep * running_mean[c] + d.take * mean;
  running_var[c] = d.keep * running_var[c] + d.take * var * d.unbias;
  return 1.0f / sqrtf(var + d.eps);
}

// What a thread knows of V channels, from c on, to normalise them.
template <int V>
struct Normal {
  float centre[V], scale[V], shift[V];
  __device__ __forceinline__ Normal(const float* mean, const float* inv_std, const float* gamma, const float* beta,
                                    int c) {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      centre[k] = mean[c + k];
      scale[k] = gamma[c + k] * inv_std[c + k];
      shift[k] = beta[c + k];
    }
  }
  __device__ __forceinline__ float of(float x, int k) const { return (x - centre[k]) * scale[k] + shift[k]; }
};

// And for the gradient of their input: gx = scale * gy + b * (x - mean) + e.
template <int V>
struct Slopes {
  float b[V], e[V];
  __device__ __forceinline__ Slopes(const Normal<V>& normal, const float* inv_std, const float* ggamma,
                                    const float* gbeta, int c, float inv_rows) {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      b[k] = -normal.scale[k] * inv_std[c + k] * ggamma[c + k] * inv_rows;
      e[k] = -normal.scale[k] * gbeta[c + k] * inv_rows;
    }
  }
  __device__ __forceinline__ float of(const Normal<V>& normal, float x, float gy, int k) const {
    return normal.scale[k] * gy + b[k] * (x - normal.centre[k]) + e[k];
  }
};
