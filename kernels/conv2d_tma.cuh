// The sources of conv2d.cuh for operands that TMA brings (tma_product.cuh): which boxes of which map.
//
// A map of an image is one of im2col mode: from a pixel on, TMA walks over row and image ends by itself, along the upper left
// corners of the window, and reads the place of one tap in each; what is outside of the image is zero. What the maps say is in
// src/ops/conv2d/maps.rs. Boxes are 64 channels wide, and channels of an image that are walked along K, or are columns of the
// patches, are a multiple of that: a box is of one tap.
#pragma once
#include "conv2d.cuh"

// The upper left corner of the window at an output pixel, and its image.
struct BoxStart {
  int w, h, image;
};
__device__ __forceinline__ BoxStart box_at(int pixel, const Conv2dDims& d) {
  const int np = divide(pixel, d.by_wo);
  const int image = divide(np, d.by_ho);
  return {(pixel - np * d.wo) * d.sw - d.pw, (np - image * d.ho) * d.sh - d.ph, image};
}

// `patches`, for 64 channels of one tap: forward. A box has all pixels of the tile.
template <class E>
struct PatchBoxesAlongK {
  using Element = E;
  static constexpr bool along_k = true;
  const CUtensorMap* x;
  const Conv2dDims& d;
  BoxStart from;
  __device__ PatchBoxesAlongK(const CUtensorMap* x, const Conv2dDims& d) : x(x), d(d) {}
  __device__ __forceinline__ void start(int pixel) { from = box_at(pixel, d); }
  __device__ __forceinline__ void load(unsigned to, unsigned bar, int k) const {
    const Tap tap = tap_of(k, d.c, d.by_c, d);
    tma_load_im2col(to, x, bar, tap.channel, from.w, from.h, from.image, tap.s, tap.r);
  }
};

// `taps`, for 64 channels of one tap, with a stride of 1: input gradient. An input pixel is a place of the window turned round
// on gy, whose last tap is the first one of the weights.
template <class E>
struct TapBoxesAlongK {
  using Element = E;
  static constexpr bool along_k = true;
  const CUtensorMap* gy;
  const Conv2dDims& d;
  BoxStart from;
  __device__ TapBoxesAlongK(const CUtensorMap* gy, const Conv2dDims& d) : gy(gy), d(d) {}
  __device__ __forceinline__ void start(int pixel) {
    const int nh = pixel / d.w, image = nh / d.h;
    from = {pixel - nh * d.w + d.pw - (d.kw - 1), nh - image * d.h + d.ph - (d.kh - 1), image};
  }
  __device__ __forceinline__ void load(unsigned to, unsigned bar, int k) const {
    const Tap tap = tap_of(k, d.o, d.by_o, d);
    tma_load_im2col(to, gy, bar, tap.channel, from.w, from.h, from.image, d.kw - 1 - tap.s, d.kh - 1 - tap.r);
  }
};

// `patches`, for LINES elements of the patch, whose 64s are of one tap each: weight gradient. Behind the last tap a box is
// any: what comes of it is not stored.
template <class E, int LINES>
struct PatchBoxesAcrossK {
  using Element = E;
  static constexpr bool along_k = false;
  const CUtensorMap* x;
  const Conv2dDims& d;
  Tap taps[LINES / 64];
  __device__ PatchBoxesAcrossK(const CUtensorMap* x, const Conv2dDims& d) : x(x), d(d) {}
  __device__ __forceinline__ void start(int element) {
#pragma unroll
    for (int i = 0; i < LINES / 64; ++i) taps[i] = tap_of(min(element + 64 * i, patch_size(d) - 64), d.c, d.by_c, d);
  }
  __device__ __forceinline__ void load(unsigned to, unsigned bar, int pixel) const {
    const BoxStart from = box_at(pixel, d);
#pragma unroll
    for (int i = 0; i < LINES / 64; ++i)
      tma_load_im2col(to + i * BLOCK, x, bar, taps[i].channel, from.w, from.h, from.image, taps[i].s, taps[i].r);
  }
};

// wᵀ: its columns are the rows of the weights. Forward. A box has all columns of the tile.
template <class E>
struct WeightBoxesAlongK {
  using Element = E;
  static constexpr bool along_k = true;
  const CUtensorMap* w;
  const Conv2dDims& d;
  int row;
  __device__ WeightBoxesAlongK(const CUtensorMap* w, const Conv2dDims& d) : w(w), d(d) {}
  __device__ __forceinline__ void start(int o) { row = o; }
  __device__ __forceinline__ void load(unsigned to, unsigned bar, int k) const {
    const int tap = divide(k, d.by_c);
    tma_load3(to, w, bar, k - tap * d.c, tap, row);
  }
};

// w': input gradient. A box has 64 output channels of 64 input channels, at one tap.
template <class E, int LINES>
struct WeightBoxesByTap {
  using Element = E;
  static constexpr bool along_k = false;
  const CUtensorMap* w;
  const Conv2dDims& d;
  int channel;
  __device__ WeightBoxesByTap(const CUtensorMap* w, const Conv2dDims& d) : w(w), d(d) {}
  __device__ __forceinline__ void start(int c) { channel = c; }
  __device__ __forceinline__ void load(unsigned to, unsigned bar, int k) const {
    const int tap = divide(k, d.by_o);
#pragma unroll
    for (int i = 0; i < LINES / 64; ++i) tma_load3(to + i * BLOCK, w, bar, channel + 64 * i, tap, k - tap * d.o);
  }
};

// A matrix [k_size][lines], of which a box has 64 x 64: gyᵀ of the weight gradient.
template <class E, int LINES>
struct RowBoxesAcrossK {
  using Element = E;
  static constexpr bool along_k = false;
  const CUtensorMap* matrix;
  int line;
  __device__ RowBoxesAcrossK(const CUtensorMap* matrix) : matrix(matrix) {}
  __device__ __forceinline__ void start(int first) { line = first; }
  __device__ __forceinline__ void load(unsigned to, unsigned bar, int k) const {
#pragma unroll
    for (int i = 0; i < LINES / 64; ++i) tma_load2(to + i * BLOCK, matrix, bar, line + 64 * i, k);
  }
};
