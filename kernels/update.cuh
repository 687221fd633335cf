// What the optimizers share: the constants of each group of parameters, and its gradients.
#pragma once
#include "four.cuh"

// In `groups`: the parameters are frozen, and are left alone.
constexpr unsigned char FROZEN = 255;

// Whether this step moves nothing, as a gradient overflowed.
__device__ __forceinline__ bool is_skipped(const Scaling* scaling) { return scaling && scaling->overflowed != 0.0f; }

// The group of the i-th four elements; `groups` has one for each 16, or is null where all are in group 0.
__device__ __forceinline__ int group_of(const unsigned char* groups, int i) { return groups ? groups[i / 4] : 0; }

// What gradients are multiplied by: unscaled, and shrunk where their norm is larger than what it is clipped to.
// `norm` is that of the gradients as they are, or null where it is not clipped; `scaling` is null where losses are not scaled.
__device__ __forceinline__ float gradient_scale(const Step* s, const float* norm, const Scaling* scaling) {
  const float unscale = 1.0f / (scaling ? s->loss_scale * scaling->scale : s->loss_scale);
  if (!norm) return unscale;
  const float shrink = s->clip_norm / (norm[0] * unscale + 1e-6f);
  return shrink < 1.0f ? unscale * shrink : unscale;
}

// A gradient as it is used: unscaled, and clipped if `clip` is above 0.
__device__ __forceinline__ float used(float g, float unscale, float clip) {
  g *= unscale;
  // Comparisons, so that NaN stays NaN.
  return clip > 0.0f ? (g > clip ? clip : g < -clip ? -clip : g) : g;
}

// Stores the i-th four parameters, and rounded in `copy`, what products take, where there is one.
template <class T>
__device__ __forceinline__ void store_parameters(float* p, T* copy, int i, const Four<float>& value) {
  store(p + 4 * i, value);
  if (copy) store(copy + 4 * i, value);
}
