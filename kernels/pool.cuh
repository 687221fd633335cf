// What pools share: the search of a window, and the windows that cover a pixel.
#pragma once
#include "four.cuh"

// The largest value of a window in each of V neighbouring channels, and the pixel (row * w + column) that has it.
template <int V>
struct Largest {
  Pack<float, V> value;
  Pack<int, V> pixel;
};

// Of the pixels r0 <= row < r1, s0 <= column < s1 of an image [h, w] whose pixels are `stride` apart,
// at least one: the first of equal values, NaN over all.
template <int V, class T>
__device__ __forceinline__ Largest<V> largest_pixel(const T* image, int w, int stride, int r0, int r1, int s0, int s1) {
  Largest<V> best;
  best.value = load<V>(image + (size_t)(r0 * w + s0) * stride);
#pragma unroll
  for (int k = 0; k < V; ++k) best.pixel.v[k] = r0 * w + s0;
  for (int r = r0; r < r1; ++r) {
    for (int s = s0; s < s1; ++s) {
      const int pixel = r * w + s;
      const Pack<float, V> v = load<V>(image + (size_t)pixel * stride);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        // Neither <= nor == holds for NaN.
        if (v.v[k] <= best.value.v[k] || best.value.v[k] != best.value.v[k]) continue;
        best.value.v[k] = v.v[k];
        best.pixel.v[k] = pixel;
      }
    }
  }
  return best;
}

// The windows first <= o < last of `outs` that cover position i of the padded input:
// o * stride <= i < o * stride + kernel.
struct Covering {
  int first, last;
  __device__ __forceinline__ Covering(int i, int kernel, int stride, int outs)
      : first(max(i - kernel + stride, 0) / stride), last(min(i / stride + 1, outs)) {}
};
