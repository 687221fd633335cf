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
  unsigned by_c[2], by_o[2], by_kw[2], by_h[2], by_w[2], by_ho[2], by_wo[2], by_sh[2], by_sw[2];
};

__device__ __forceinline__ int patch_size(const Conv2dDims& d) { return d.kh * d.kw * d.c; }
__device__ __forceinline__ int pixels_in(const Conv2dDims& d) { return d.n * d.h * d.w; }
__device__ __forceinline__ int pixels_out(const Conv2dDims& d) { return d.n * d.ho * d.wo; }

// A place in the window: row r, column s, channel. Element i of the window, with the channels fastest.
struct Tap {
  int r, s, channel;
};
__device__ __forceinline__ Tap tap_of(int i, int channels, const unsigned (&by)[2], const Conv2dDims& d) {
  const int rs = divide(i, by);
  const int r = divide(rs, d.by_kw);
  return {r, rs - r * d.kw, i - rs * channels};
}

// The next element of the window.
__device__ __forceinline__ Tap after(Tap tap, int channels, const Conv2dDims& d) {
  if (++tap.channel == channels) {
    tap.channel = 0;
    if (++tap.s == d.kw) tap.s = 0, ++tap.r;
  }
  return tap;
}

// Where the window lies for an output pixel: its upper left corner, which may be outside the image.
struct Corner {
  int image, h, w;
};
// So far outside that no tap of the window is inside.
constexpr int FAR_OUTSIDE = -(1 << 30);
__device__ __forceinline__ Corner corner_of(int pixel, const Conv2dDims& d) {
  if (pixel >= pixels_out(d)) return {0, FAR_OUTSIDE, FAR_OUTSIDE};
  const int np = divide(pixel, d.by_wo);
  const int image = divide(np, d.by_ho);
  return {image, (np - image * d.ho) * d.sh - d.ph, (pixel - np * d.wo) * d.sw - d.pw};
}

// The index in x of a place in the window that lies at `corner`.
__device__ __forceinline__ int index_in_x(const Corner& corner, const Tap& tap, const Conv2dDims& d) {
  if (tap.r >= d.kh) return NOWHERE;
  const int h = corner.h + tap.r, w = corner.w + tap.s;
  if ((unsigned)h >= (unsigned)d.h || (unsigned)w >= (unsigned)d.w) return NOWHERE;
  return ((corner.image * d.h + h) * d.w + w) * d.c + tap.channel;
}

// The same for N from there on, without a division for each.
template <int N>
__device__ __forceinline__ void each_in_x(const Corner& corner, Tap tap, const Conv2dDims& d, int (&at)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i, tap = after(tap, d.c, d)) at[i] = index_in_x(corner, tap, d);
}

// Sides of windows whose places a mask has a bit for: 16 bits for the rows, 16 for the columns, the last of each never set.
constexpr int MOST_TAPS = 15;

// A tap as a mask takes it, and how far from the place of the line's own pixel it leads.
struct Move {
  int r, s, by;
};
__device__ __forceinline__ int place_by(unsigned mask, int base, const Move& move) {
  return mask >> move.r & mask >> (16 + move.s) & 1 ? base + move.by : NOWHERE;
}
// The bits of i from 0 on for which first + i lies in 0..size.
__device__ __forceinline__ unsigned inside(int first, int taps, int size) {
  const int low = min(max(-first, 0), 16), high = min(max(size - first, 0), taps);
  return (1u << high) - 1 & ~((1u << low) - 1);
}

// A matrix that is found in an image. One tap serves all N when the channels are a multiple of N.
template <class E, int N>
struct InImage {
  using Element = E;
  const E* data;
  const Conv2dDims& d;
  bool wide, pairs;
  __device__ InImage(const E* data, const Conv2dDims& d, int channels)
      : data(data),
        d(d),
        wide(rows_of<N>(data, channels) && d.kh <= MOST_TAPS && d.kw <= MOST_TAPS),
        pairs(rows_of<2>(data, channels)) {}
};

// `patches`, for N k of one pixel: forward.
template <class E, int N>
struct PatchesAlongK : InImage<E, N> {
  using InImage<E, N>::d;
  static constexpr bool along_k = true;
  int pixel, base;  // the place of the window's corner, which may be outside
  unsigned mask;    // the rows and the columns of the window that are inside
  __device__ PatchesAlongK(const E* x, const Conv2dDims& d) : InImage<E, N>(x, d, d.c) {}
  __device__ __forceinline__ void start(int line) {
    pixel = line;
    const Corner corner = corner_of(pixel, d);
    const bool exists = pixel < pixels_out(d);
    base = exists ? ((corner.image * d.h + corner.h) * d.w + corner.w) * d.c : 0;
    mask = exists ? inside(corner.h, d.kh, d.h) | inside(corner.w, d.kw, d.w) << 16 : 0;
  }
  __device__ __forceinline__ Move find(int k) const {
    const Tap tap = tap_of(k, d.c, d.by_c, d);
    return {min(tap.r, d.kh), tap.s, (tap.r * d.w + tap.s) * d.c + tap.channel};
  }
  __device__ __forceinline__ int at(const Move& move) const { return place_by(mask, base, move); }
  __device__ __forceinline__ void each(int k, int (&at)[N]) const {
    each_in_x(corner_of(pixel, d), tap_of(k, d.c, d.by_c, d), d, at);
  }
};

// `patches`, for N elements of the patch at one pixel; K counts the pixels: weight gradient.
template <class E, int N>
struct PatchesAcrossK : InImage<E, N> {
  using InImage<E, N>::d;
  static constexpr bool along_k = false;
  struct Found {
    int h, w, base;  // the corner, and its place
  };
  Tap tap;  // the first of the N
  int move;
  __device__ PatchesAcrossK(const E* x, const Conv2dDims& d) : InImage<E, N>(x, d, d.c) {}
  __device__ __forceinline__ void start(int element) {
    tap = tap_of(element, d.c, d.by_c, d);
    move = (tap.r * d.w + tap.s) * d.c + tap.channel;
    if (tap.r >= d.kh) tap.r = -FAR_OUTSIDE / 2;
  }
  __device__ __forceinline__ Found find(int pixel) const {
    const Corner corner = corner_of(pixel, d);
    // One that is far outside has no place, and none is asked for.
    const int row = corner.image * d.h + (corner.h == FAR_OUTSIDE ? 0 : corner.h);
    return {corner.h, corner.w, (row * d.w + (corner.h == FAR_OUTSIDE ? 0 : corner.w)) * d.c};
  }
  __device__ __forceinline__ int at(const Found& f) const {
    return (unsigned)(f.h + tap.r) < (unsigned)d.h && (unsigned)(f.w + tap.s) < (unsigned)d.w ? f.base + move : NOWHERE;
  }
  __device__ __forceinline__ void each(int pixel, int (&at)[N]) const { each_in_x(corner_of(pixel, d), tap, d, at); }
};

// `taps`: for an input pixel and a place in the window, the output pixel that saw it there, if there is one:
// p·sh - ph + r = h. K counts (r, s, o), o the fastest. Input gradient.
template <class E, int N>
struct TapsAlongK : InImage<E, N> {
  using InImage<E, N>::d;
  static constexpr bool along_k = true;
  int pixel, base;  // the place of the output pixel at h / sh, w / sw
  unsigned mask;    // the rows and the columns of the window that it was seen through
  __device__ TapsAlongK(const E* gy, const Conv2dDims& d) : InImage<E, N>(gy, d, d.o) {}
  // An input pixel, moved by the padding.
  struct Place {
    int image, h, w;
  };
  __device__ __forceinline__ Place place() const {
    if (pixel >= pixels_in(d)) return {0, FAR_OUTSIDE, FAR_OUTSIDE};
    const int nh = divide(pixel, d.by_w), image = divide(nh, d.by_h);
    return {image, nh - image * d.h + d.ph, pixel - nh * d.w + d.pw};
  }
  // The bits of those taps i for which h - i is a multiple of the stride, and that below `outs`.
  static __device__ __forceinline__ unsigned seen(int h, int taps, int stride, const unsigned (&by)[2], int outs) {
    unsigned bits = 0;
    for (int i = 0; i < taps && i <= h; ++i) {
      const int p = divide(h - i, by);
      if (p * stride == h - i && p < outs) bits |= 1u << i;
    }
    return bits;
  }
  __device__ __forceinline__ void start(int line) {
    pixel = line;
    base = mask = 0;
    if (pixel >= pixels_in(d) || !this->wide) return;
    const Place at = place();
    base = ((at.image * d.ho + divide(at.h, d.by_sh)) * d.wo + divide(at.w, d.by_sw)) * d.o;
    mask = seen(at.h, d.kh, d.sh, d.by_sh, d.ho) | seen(at.w, d.kw, d.sw, d.by_sw, d.wo) << 16;
  }
  __device__ __forceinline__ Move find(int k) const {
    const Tap tap = tap_of(k, d.o, d.by_o, d);
    // h - r = p·sh, so the remainders of h and r are the same and p = h / sh - r / sh.
    return {min(tap.r, d.kh), tap.s, tap.channel - (divide(tap.r, d.by_sh) * d.wo + divide(tap.s, d.by_sw)) * d.o};
  }
  __device__ __forceinline__ int at(const Move& move) const { return place_by(mask, base, move); }
  // The place of the first channel of the output pixel that saw it through a tap.
  __device__ __forceinline__ int pixel_of(const Place& at, const Tap& tap) const {
    const int ph = at.h - tap.r, pw = at.w - tap.s;
    if (tap.r >= d.kh || ph < 0 || pw < 0) return NOWHERE;
    const int p = divide(ph, d.by_sh), q = divide(pw, d.by_sw);
    if (p * d.sh != ph || q * d.sw != pw || p >= d.ho || q >= d.wo) return NOWHERE;
    return ((at.image * d.ho + p) * d.wo + q) * d.o;
  }
  __device__ __forceinline__ void each(int k, int (&at)[N]) const {
    const Place here = place();
    Tap tap = tap_of(k, d.o, d.by_o, d);
    int pixel = pixel_of(here, tap);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      at[i] = pixel == NOWHERE ? NOWHERE : pixel + tap.channel;
      tap = after(tap, d.o, d);
      // Another tap, another pixel.
      if (i < N - 1 && tap.channel == 0) pixel = pixel_of(here, tap);
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
