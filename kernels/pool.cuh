// What pools share: the search of a window, and the windows that cover a pixel.
#pragma once
#include "common.cuh"

// The largest value of a window, and the pixel (row * w + column) that has it.
struct Largest {
  float value;
  int pixel;
};

// Of the pixels r0 <= row < r1, s0 <= column < s1 of an image [h, w] whose pixels are `stride` apart,
// at least one: the first of equal values, NaN over all.
template <class T>
__device__ __forceinline__ Largest largest_pixel(const T* image, int w, int stride, int r0, int r1, int s0, int s1) {
  int who = r0 * w + s0;
  float best = to_float(image[(size_t)who * stride]);
  for (int r = r0; r < r1; ++r) {
    for (int s = s0; s < s1; ++s) {
      int pixel = r * w + s;
      float v = to_float(image[(size_t)pixel * stride]);
      // Neither <= nor == holds for NaN.
      if (!(v <= best) && best == best) {
        best = v;
        who = pixel;
      }
    }
  }
  return {best, who};
}

// The windows first <= o < last of `outs` that cover position i of the padded input:
// o * stride <= i < o * stride + kernel.
struct Covering {
  int first, last;
  __device__ __forceinline__ Covering(int i, int kernel, int stride, int outs)
      : first(max(i - kernel + stride, 0) / stride), last(min(i / stride + 1, outs)) {}
};
