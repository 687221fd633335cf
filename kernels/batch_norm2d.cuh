// Batch normalisation: how kernels share out rows of channels, and what they know of a channel.
#pragma once
#include "activation.cuh"
#include "reduce.cuh"

// What a thread of a block does: V channels from `c` on, of the rows `first`, `first + step`, ... below
// `last`. Neighbouring threads have neighbouring channels, and then neighbouring rows. Blocks that share rows come together.
template <int V>
struct Share {
  int lanes, group, step, c, first, last;
  template <class Dims>
  __device__ __forceinline__ explicit Share(const Dims& d) : Share(d, blockIdx.y) {}
  template <class Dims>
  __device__ __forceinline__ Share(const Dims& d, int range) {
    lanes = d.tile / V;
    step = blockDim.x / lanes;
    group = threadIdx.x / lanes;
    c = blockIdx.x * d.tile + threadIdx.x % lanes * V;
    first = range * d.chunk + group;
    last = min((range + 1) * d.chunk, d.rows);
    // Threads left over when the lanes do not divide the block, or the tile ends after the channels.
    if (group >= step || c >= d.c) last = 0;
  }
};

#ifdef TILEWORK_EMULATED

__device__ __forceinline__ void opaque(unsigned&) {}

#else

// Hides from the compiler where a word is from, so that what has been computed of it is computed again: it would be kept in
// registers that are not there.
__device__ __forceinline__ void opaque(unsigned& word) { asm("" : "+r"(word)); }

#endif

// The running statistics of a channel, which are loaded before its own are known: nothing waits for them then.
struct Running {
  float mean, var;
  // Of no channel if nobody `keeps` them here.
  __device__ __forceinline__ Running(const float* running_mean, const float* running_var, int c, bool keeps)
      : mean(keeps ? running_mean[c] : 0.0f), var(keeps ? running_var[c] : 0.0f) {}
  // Their step: running = keep * running + take * batch, with the unbiased variance.
  template <class Dims>
  __device__ __forceinline__ void keep(float* running_mean, float* running_var, int c, float of_batch,
                                       float var_of_batch, const Dims& d) const {
    running_mean[c] = d.keep * mean + d.take * of_batch;
    running_var[c] = d.keep * var + d.take * var_of_batch * d.unbias;
  }
};

// What becomes of a normalised value and what is added to it: an activation of their sum, or of the first alone.
template <class A>
__device__ __forceinline__ float sum_of(float normal, float plus, bool of_sum) {
  return of_sum ? A::of(normal + plus) : A::of(normal) + plus;
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
