// The geometry of a convolution and the sources that read an image as a matrix (implicit GEMM).
//
// With patches = im2col(x), the matrix [n·ho·wo][kh·kw·c] whose row is what the window sees at an output pixel:
//     forward          y[n·ho·wo][o]   = patches · wᵀ
//     input gradient   gx[n·h·w][c]    = taps · w'      taps: what reaches an input pixel, [n·h·w][kh·kw·o]
//     weight gradient  gw[o][kh·kw·c]  = gyᵀ · patches
// Explicit convolution writes `patches` to memory and calls the kernels of linear.cu. Implicit convolution
// computes, for each load of a tile, where in the image the element lies; nothing else is different.
//
// Layouts: x [n][h][w][c], w [o][kh][kw][c], y [n][ho][wo][o]; 2^31 elements at most in each.
#pragma once
#include "product.cuh"

struct Conv2dDims {
  int n, h, w, c;   // images, their height, width, channels
  int ho, wo, o;    // output height, width, channels
  int kh, kw;       // kernel
  int sh, sw;       // stride
  int ph, pw;       // padding
  int accumulate;   // 1: add to the output; 0: overwrite it
  int relu;         // 1: of y its ReLU, forward alone
  int split_steps;  // steps along K of one split (product.cuh)
  // Divisors, as `divide` (common.cuh) takes them.
  unsigned by_c[2], by_o[2], by_kw[2], by_ho[2], by_wo[2], by_sh[2], by_sw[2];
};

__device__ __forceinline__ int patch_size(const Conv2dDims& d) { return d.kh * d.kw * d.c; }
__device__ __forceinline__ int pixels_in(const Conv2dDims& d) { return d.n * d.h * d.w; }
__device__ __forceinline__ int pixels_out(const Conv2dDims& d) { return d.n * d.ho * d.wo; }

// So far outside that nothing there is inside.
constexpr int FAR_OUTSIDE = -(1 << 30);

// A place in the window: row r, column s, channel. Element i of the window, with the channels fastest; behind the last, r is
// FAR_OUTSIDE.
struct Tap {
  int r, s, channel;
};
__device__ __forceinline__ Tap tap_of(int i, int channels, const unsigned (&by)[2], const Conv2dDims& d) {
  const int rs = divide(i, by);
  const int r = divide(rs, d.by_kw);
  return {r < d.kh ? r : FAR_OUTSIDE, rs - r * d.kw, i - rs * channels};
}

// The next element of the window.
__device__ __forceinline__ Tap after(Tap tap, int channels, const Conv2dDims& d) {
  if (++tap.channel == channels) {
    tap.channel = 0;
    if (++tap.s == d.kw) {
      tap.s = 0;
      if (++tap.r == d.kh) tap.r = FAR_OUTSIDE;
    }
  }
  return tap;
}

// Where the window lies for an output pixel: its upper left corner, which may be outside the image, and the place of its
// first element in x.
struct Corner {
  int place, h, w;
};
__device__ __forceinline__ Corner corner_of(int pixel, const Conv2dDims& d) {
  if (pixel >= pixels_out(d)) return {0, FAR_OUTSIDE, 0};
  const int np = divide(pixel, d.by_wo);
  const int image = divide(np, d.by_ho);
  const int h = (np - image * d.ho) * d.sh - d.ph, w = (pixel - np * d.wo) * d.sw - d.pw;
  return {((image * d.h + h) * d.w + w) * d.c, h, w};
}

// The index in x of a place in the window that lies at `corner`.
__device__ __forceinline__ int index_in_x(const Corner& corner, const Tap& tap, const Conv2dDims& d) {
  const int h = corner.h + tap.r, w = corner.w + tap.s;
  if ((unsigned)h >= (unsigned)d.h || (unsigned)w >= (unsigned)d.w) return NOWHERE;
  return corner.place + (tap.r * d.w + tap.s) * d.c + tap.channel;
}

// The same for N from there on, without a division for each.
template <int N>
__device__ __forceinline__ void each_in_x(const Corner& corner, Tap tap, const Conv2dDims& d, int (&at)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i, tap = after(tap, d.c, d)) at[i] = index_in_x(corner, tap, d);
}

// A matrix that is found in an image. One tap serves all N when the channels are a multiple of N.
template <class E, int N>
struct InImage {
  using Element = E;
  const E* data;
  const Conv2dDims& d;
  bool wide, pairs;
  __device__ InImage(const E* data, const Conv2dDims& d, int channels)
      : data(data), d(d), wide(rows_of<N>(data, channels)), pairs(rows_of<2>(data, channels)) {}
};

// `patches`, for N k of one pixel: forward.
template <class E, int N>
struct PatchesAlongK : InImage<E, N> {
  using InImage<E, N>::d;
  static constexpr bool along_k = true;
  Corner corner;
  __device__ PatchesAlongK(const E* x, const Conv2dDims& d) : InImage<E, N>(x, d, d.c) {}
  __device__ __forceinline__ void start(int pixel) { corner = corner_of(pixel, d); }
  __device__ __forceinline__ Tap find(int k) const { return tap_of(k, d.c, d.by_c, d); }
  __device__ __forceinline__ int at(const Tap& tap) const { return index_in_x(corner, tap, d); }
  __device__ __forceinline__ void each(int k, int (&at)[N]) const { each_in_x(corner, find(k), d, at); }
};

// `patches`, for N elements of the patch at one pixel; K counts the pixels: weight gradient.
template <class E, int N>
struct PatchesAcrossK : InImage<E, N> {
  using InImage<E, N>::d;
  static constexpr bool along_k = false;
  Tap tap;  // the first of the N
  __device__ PatchesAcrossK(const E* x, const Conv2dDims& d) : InImage<E, N>(x, d, d.c) {}
  __device__ __forceinline__ void start(int element) { tap = tap_of(element, d.c, d.by_c, d); }
  __device__ __forceinline__ Corner find(int pixel) const { return corner_of(pixel, d); }
  __device__ __forceinline__ int at(const Corner& corner) const { return index_in_x(corner, tap, d); }
  __device__ __forceinline__ void each(int pixel, int (&at)[N]) const { each_in_x(find(pixel), tap, d, at); }
};

// `taps`: for an input pixel and a place in the window, the output pixel that saw it there, if there is one:
// p·sh - ph + r = h. K counts (r, s, o), o the fastest. Input gradient.
//
// Which taps those are is the same for all of K: a line has a bit for each row and each column of the window. That has 15 of
// each at most; the host has another way for larger ones.
template <class E, int N>
struct TapsAlongK : InImage<E, N> {
  using InImage<E, N>::d;
  static constexpr bool along_k = true;
  // A tap, 15 if it is behind the last, and how far it leads from `base`.
  struct Move {
    int r, s, by;
  };
  int base;       // the place of the output pixel at h / sh, w / sw
  unsigned mask;  // the rows that the pixel was seen through, and from bit 16 on the columns
  __device__ TapsAlongK(const E* gy, const Conv2dDims& d) : InImage<E, N>(gy, d, d.o) {}
  // The bits of those taps i for which h - i is a multiple of the stride, and that below `outs`.
  static __device__ __forceinline__ unsigned seen(int h, int taps, int stride, const unsigned (&by)[2], int outs) {
    unsigned bits = 0;
    for (int i = 0; i < taps && i <= h; ++i) {
      const int p = divide(h - i, by);
      if (p * stride == h - i && p < outs) bits |= 1u << i;
    }
    return bits;
  }
  __device__ __forceinline__ void start(int pixel) {
    base = mask = 0;
    if (pixel >= pixels_in(d)) return;
    const int nh = pixel / d.w, image = nh / d.h;
    // Moved by the padding.
    const int h = nh - image * d.h + d.ph, w = pixel - nh * d.w + d.pw;
    base = ((image * d.ho + divide(h, d.by_sh)) * d.wo + divide(w, d.by_sw)) * d.o;
    mask = seen(h, d.kh, d.sh, d.by_sh, d.ho) | seen(w, d.kw, d.sw, d.by_sw, d.wo) << 16;
  }
  __device__ __forceinline__ Move move_of(const Tap& tap) const {
    // h - r = p·sh, so the remainders of h and r are the same and p = h / sh - r / sh.
    if (tap.r < 0) return {15, 0, 0};
    return {tap.r, tap.s, tap.channel - (divide(tap.r, d.by_sh) * d.wo + divide(tap.s, d.by_sw)) * d.o};
  }
  __device__ __forceinline__ Move find(int k) const { return move_of(tap_of(k, d.o, d.by_o, d)); }
  __device__ __forceinline__ int at(const Move& move) const {
    return mask >> move.r & mask >> (16 + move.s) & 1 ? base + move.by : NOWHERE;
  }
  // The place of the first channel of the output pixel that saw it through a tap.
  __device__ __forceinline__ int pixel_of(const Tap& tap) const { return this->at(move_of({tap.r, tap.s, 0})); }
  __device__ __forceinline__ void each(int k, int (&at)[N]) const {
    Tap tap = tap_of(k, d.o, d.by_o, d);
    int pixel = pixel_of(tap);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      at[i] = pixel == NOWHERE ? NOWHERE : pixel + tap.channel;
      tap = after(tap, d.o, d);
      // Another tap, another pixel.
      if (i < N - 1 && tap.channel == 0) pixel = pixel_of(tap);
    }
  }
};

// w', the weights [o][kh][kw][c] as the matrix [kh·kw·o][c] that belongs to `taps`. Input gradient.
template <class E, int N>
struct WeightsByTap : InImage<E, N> {
  using InImage<E, N>::d;
  static constexpr bool along_k = false;
  int channel;  // the first of this thread's N, if there is one
  __device__ WeightsByTap(const E* weights, const Conv2dDims& d) : InImage<E, N>(weights, d, d.c) {}
  __device__ __forceinline__ void start(int first) { channel = first < d.c ? first : NOWHERE; }
  __device__ __forceinline__ int find(int k) const {
    if (k >= d.kh * d.kw * d.o) return NOWHERE;
    const int rs = divide(k, d.by_o), channel_out = k - rs * d.o;
    return (channel_out * d.kh * d.kw + rs) * d.c;
  }
  __device__ __forceinline__ int at(int found) const { return place_of(found, channel); }
  __device__ __forceinline__ void each(int k, int (&at)[N]) const {
    const int found = this->at(find(k));
#pragma unroll
    for (int i = 0; i < N; ++i) at[i] = found != NOWHERE && channel + i < d.c ? found + i : NOWHERE;
  }
};
