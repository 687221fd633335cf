// The geometry of a convolution and the loaders that read an image as a matrix (implicit GEMM).
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
#include "gemm.cuh"

struct Conv2dDims {
  int n, h, w, c;   // images, their height, width, channels
  int ho, wo, o;    // output height, width, channels
  int kh, kw;       // kernel
  int sh, sw;       // stride
  int ph, pw;       // padding
  int accumulate;   // 1: add to the output; 0: overwrite it
  int split_steps;  // steps along K of one split (gemm.cuh)
  // Divisors, each as the two numbers that `divide` (common.cuh) takes.
  unsigned c_magic, c_shift, o_magic, o_shift;      // c, o
  unsigned kw_magic, kw_shift;                      // kw
  unsigned ho_magic, ho_shift, wo_magic, wo_shift;  // ho, wo
  unsigned sh_magic, sh_shift, sw_magic, sw_shift;  // sh, sw
};

__device__ __forceinline__ int patch_size(const Conv2dDims& d) { return d.kh * d.kw * d.c; }
__device__ __forceinline__ int pixels_in(const Conv2dDims& d) { return d.n * d.h * d.w; }
__device__ __forceinline__ int pixels_out(const Conv2dDims& d) { return d.n * d.ho * d.wo; }

// A place in the window: row r, column s, channel. Element i of the window, with the channels fastest.
struct Tap {
  int r, s, channel;
};
__device__ __forceinline__ Tap tap_of(int i, int channels, unsigned magic, unsigned shift, const Conv2dDims& d) {
  const int rs = divide(i, magic, shift);
  const int r = divide(rs, d.kw_magic, d.kw_shift);
  return {r, rs - r * d.kw, i - rs * channels};
}

// Where the window lies for an output pixel: its upper left corner, which may be outside the image.
struct Corner {
  int image, h, w;
};
// So far outside that no tap of the window is inside.
constexpr int FAR_OUTSIDE = -(1 << 30);
__device__ __forceinline__ Corner corner_of(int pixel, const Conv2dDims& d) {
  if (pixel >= pixels_out(d)) return {0, FAR_OUTSIDE, FAR_OUTSIDE};
  const int np = divide(pixel, d.wo_magic, d.wo_shift);
  const int image = divide(np, d.ho_magic, d.ho_shift);
  return {image, (np - image * d.ho) * d.sh - d.ph, (pixel - np * d.wo) * d.sw - d.pw};
}

// Loads that find nothing, because they look into the padding or past the end, give zero.
constexpr int NOWHERE = -1;
template <class E>
__device__ __forceinline__ float one_of(const E* p, int at) {
  return at == NOWHERE ? 0.0f : to_float(p[at]);
}
// The elements of p at index(0), index(1), index(2), index(3): one load if they are neighbours. Otherwise the
// indices are found in a loop that is not unrolled, to save registers, and then loaded all at once.
template <class E, class Index>
__device__ __forceinline__ float4 gather(const E* p, bool neighbours, Index index) {
  if (neighbours) {
    const int at = index(0);
    return at == NOWHERE ? zero4() : load4(p + at);
  }
  int a = index(0), b = a, c = a, e = a;
#pragma unroll 1
  for (int i = 1; i < 4; ++i) a = b, b = c, c = e, e = index(i);
  return make_float4(one_of(p, a), one_of(p, b), one_of(p, c), one_of(p, e));
}

// The index in x of element i of the patch whose window lies at `corner`.
__device__ __forceinline__ int index_in_x(const Corner& corner, int i, const Conv2dDims& d) {
  if (i >= patch_size(d)) return NOWHERE;
  const Tap tap = tap_of(i, d.c, d.c_magic, d.c_shift, d);
  const int h = corner.h + tap.r, w = corner.w + tap.s;
  if ((unsigned)h >= (unsigned)d.h || (unsigned)w >= (unsigned)d.w) return NOWHERE;
  return ((corner.image * d.h + h) * d.w + w) * d.c + tap.channel;
}

// `patches`, for four k of one pixel: forward. One tap serves all four when c is a multiple of 4.
template <class E>
struct PatchesAlongK {
  static constexpr bool along_k = true;
  const E* x;
  const Conv2dDims& d;
  bool wide;
  Corner corner;
  __device__ PatchesAlongK(const E* x, const Conv2dDims& d) : x(x), d(d), wide(rows_of_4(x, d.c)) {}
  __device__ __forceinline__ void start(int pixel) { corner = corner_of(pixel, d); }
  __device__ __forceinline__ float4 at(int k) const {
    return gather(x, wide, [&](int i) { return index_in_x(corner, k + i, d); });
  }
};

// `patches`, for four elements of the patch at one pixel; K counts the pixels: weight gradient.
template <class E>
struct PatchesAcrossK {
  static constexpr bool along_k = false;
  const E* x;
  const Conv2dDims& d;
  bool wide;
  int first;  // of the four
  __device__ PatchesAcrossK(const E* x, const Conv2dDims& d) : x(x), d(d), wide(rows_of_4(x, d.c)) {}
  __device__ __forceinline__ void start(int element) { first = element; }
  __device__ __forceinline__ float4 at(int pixel) const {
    const Corner corner = corner_of(pixel, d);
    return gather(x, wide, [&](int i) { return index_in_x(corner, first + i, d); });
  }
};

// `taps`: for an input pixel and a place in the window, the output pixel that saw it there, if there is one:
// p·sh - ph + r = h. K counts (r, s, o), o the fastest. Input gradient.
template <class E>
struct TapsAlongK {
  static constexpr bool along_k = true;
  const E* gy;
  const Conv2dDims& d;
  bool wide;
  int image, h, w;  // the input pixel, moved by the padding
  __device__ TapsAlongK(const E* gy, const Conv2dDims& d) : gy(gy), d(d), wide(rows_of_4(gy, d.o)) {}
  __device__ __forceinline__ void start(int pixel) {
    const int nh = pixel / d.w;
    image = nh / d.h, w = pixel - nh * d.w + d.pw;
    h = pixel < pixels_in(d) ? nh - image * d.h + d.ph : FAR_OUTSIDE;
  }
  __device__ __forceinline__ int index_in_gy(int k) const {
    if (k >= d.kh * d.kw * d.o) return NOWHERE;
    const Tap tap = tap_of(k, d.o, d.o_magic, d.o_shift, d);
    const int ph = h - tap.r, pw = w - tap.s;
    if (ph < 0 || pw < 0) return NOWHERE;
    const int p = divide(ph, d.sh_magic, d.sh_shift), q = divide(pw, d.sw_magic, d.sw_shift);
    if (p * d.sh != ph || q * d.sw != pw || p >= d.ho || q >= d.wo) return NOWHERE;
    return ((image * d.ho + p) * d.wo + q) * d.o + tap.channel;
  }
  __device__ __forceinline__ float4 at(int k) const {
    return gather(gy, wide, [&](int i) { return index_in_gy(k + i); });
  }
};

// w', the weights [o][kh][kw][c] as the matrix [kh·kw·o][c] that belongs to `taps`. Input gradient.
struct WeightsByTap {
  static constexpr bool along_k = false;
  const float* weights;
  const Conv2dDims& d;
  bool wide;
  int left;  // channels from this thread's to the end
  __device__ WeightsByTap(const float* weights, const Conv2dDims& d)
      : weights(weights), d(d), wide(rows_of_4(weights, d.c)) {}
  __device__ __forceinline__ void start(int channel) { weights += channel, left = d.c - channel; }
  __device__ __forceinline__ float4 at(int k) const {
    if (k >= d.kh * d.kw * d.o || left <= 0) return zero4();
    const int rs = divide(k, d.o_magic, d.o_shift), channel_out = k - rs * d.o;
    const float* p = weights + ((size_t)channel_out * d.kh * d.kw + rs) * d.c;
    if (wide) return load4(p);
    return make_float4(p[0], left > 1 ? p[1] : 0.0f, left > 2 ? p[2] : 0.0f, left > 3 ? p[3] : 0.0f);
  }
};
