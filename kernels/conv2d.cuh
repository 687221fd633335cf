// The geometry of a convolution and the sources that read an image as a matrix (implicit GEMM).
//
// With patches = im2col(x), the matrix [n·ho·wo][kh·kw·c] whose row is what the window sees at an output pixel:
//     forward          y[n·ho·wo][o]   = patches · wᵀ
//     input gradient   gx[n·h·w][c]    = taps · w'      taps: what reaches an input pixel, [n·h·w][kh·kw·o]; with a stride less,
//                                                       phase by phase (below)
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
  int keeps;        // 1: it stays where nothing is added, as it is masked if it is to be: in phases without taps
  int relu;         // 1: of y its ReLU, forward alone
  int split_steps;  // steps along K of one split (product.cuh)
  int from,
      to;  // what of K there is to add, forward and of the input gradient: other taps lie in the padding for all pixels
  // Divisors, as `divide` (common.cuh) takes them.
  unsigned by_c[2], by_o[2], by_kw[2], by_ho[2], by_wo[2], by_sh[2], by_sw[2];
  // Of the input gradient's phases (below): kh / sh and kw / sw, h / sh and w / sw, what is left of each, and of the padding;
  // divisors: all but the first, and those plus 1.
  int down, across, tall, broad;
  int more_down, more_across, more_tall, more_broad;
  int rest_h, rest_w;
  unsigned by_across[2], by_wider[2], by_tall[2], by_taller[2], by_broad[2], by_broader[2];
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

// The input gradient with a stride. Whether a tap of the window reached an input pixel depends on the remainders of the pixel's
// row and column, the padding included, by the stride: those of the tap are the same. Pixels with the same remainders are a
// phase. Each is a product of its own, of its pixels and its taps alone: without them three of four elements of `taps` would be
// zeros at a stride of 2. With a stride of 1 there is one phase.
//
// It is named by one number: the row of its first tap and, in the lower 16 bits, the column, which are the remainders.
struct PhaseTaps {
  int phase;
  __device__ __forceinline__ int r() const { return phase >> 16; }
  __device__ __forceinline__ int s() const { return phase & 0xffff; }
  // Its taps in the window: every sh-th row from r on, every sw-th column from s on.
  __device__ __forceinline__ int down(const Conv2dDims& d) const { return d.down + (r() < d.more_down); }
  __device__ __forceinline__ bool wide(const Conv2dDims& d) const { return s() < d.more_across; }
  __device__ __forceinline__ int across(const Conv2dDims& d) const { return d.across + wide(d); }
  __device__ __forceinline__ int size(const Conv2dDims& d) const { return down(d) * across(d) * d.o; }
  // A tap by k, which counts (down, across, o), o the fastest. Behind the last r is `down` or more.
  __device__ __forceinline__ Tap at(int k, const Conv2dDims& d) const {
    const int rs = divide(k, d.by_o), r = wide(d) ? divide(rs, d.by_wider) : divide(rs, d.by_across);
    return {r, rs - r * across(d), k - rs * d.o};
  }
  // The same tap in the window.
  __device__ __forceinline__ int in_window(const Tap& tap, const Conv2dDims& d) const {
    return (r() + tap.r * d.sh) * d.kw + s() + tap.s * d.sw;
  }
  __device__ __forceinline__ Tap after(Tap tap, const Conv2dDims& d) const {
    if (++tap.channel == d.o) {
      tap.channel = 0;
      if (++tap.s == across(d)) tap.s = 0, ++tap.r;
    }
    return tap;
  }
};

// Its pixels in an image: every sh-th row from `top` on, h of them; every sw-th column from `left` on, w of them.
struct Phase : PhaseTaps {
  int top, left, h, w;
  __device__ __forceinline__ Phase(int phase, const Conv2dDims& d) : PhaseTaps{phase} {
    top = r() - d.rest_h, left = s() - d.rest_w;
    if (top < 0) top += d.sh;
    if (left < 0) left += d.sw;
    h = d.tall + (top < d.more_tall), w = d.broad + (left < d.more_broad);
  }
  __device__ __forceinline__ int pixels(const Conv2dDims& d) const { return d.n * h * w; }
  // Where the outputs lie that saw its first row and column through its first tap: h - r is a multiple of the stride for the padded
  // row h, and the output at (h - r) / sh. Through tap t that is t less; of the next row it is the next.
  __device__ __forceinline__ int first_row(const Conv2dDims& d) const { return divide(top + d.ph - r(), d.by_sh); }
  __device__ __forceinline__ int first_column(const Conv2dDims& d) const { return divide(left + d.pw - s(), d.by_sw); }
  // A pixel by its number: its image, and the row and column among those of the phase.
  __device__ __forceinline__ void find(int pixel, const Conv2dDims& d, int& image, int& row, int& column) const {
    const int nh = w > d.broad ? divide(pixel, d.by_broader) : divide(pixel, d.by_broad);
    image = h > d.tall ? divide(nh, d.by_taller) : divide(nh, d.by_tall);
    row = nh - image * h, column = pixel - nh * w;
  }
};

// The phase of a block: the grid's y counts them.
__device__ __forceinline__ int phase_of_block(const Conv2dDims& d) {
  const int r = divide(blockIdx.y, d.by_sw);
  return r << 16 | blockIdx.y - r * d.sw;
}

// `taps`: for an input pixel of a phase and one of its taps, the output pixel that saw it there, if there is one:
// p·sh - ph + r = h.
//
// Which taps those are is the same for all of K: a line has a bit for each row and each column of taps. There are 15 of
// each at most; the host has another way for larger windows.
template <class E, int N>
struct TapsAlongK : InImage<E, N> {
  using InImage<E, N>::d;
  static constexpr bool along_k = true;
  // A tap, and how far it leads from `base`.
  struct Move {
    int r, s, by;
  };
  PhaseTaps taps;
  int base;       // the place of the output pixel that saw it through the phase's first tap
  unsigned mask;  // the rows of taps that the pixel was seen through, and from bit 16 on the columns
  __device__ TapsAlongK(const E* gy, const Conv2dDims& d, PhaseTaps taps) : InImage<E, N>(gy, d, d.o), taps(taps) {}
  // The bits of those of so many taps t for which p - t is an output.
  static __device__ __forceinline__ unsigned seen(int p, int taps, int outs) {
    unsigned bits = 0;
    for (int t = 0; t < taps && t <= p; ++t)
      if (p - t < outs) bits |= 1u << t;
    return bits;
  }
  __device__ __forceinline__ void start(int line) {
    base = mask = 0;
    const Phase of(taps.phase, d);
    if (line >= of.pixels(d)) return;
    int image, p, q;
    of.find(line, d, image, p, q);
    p += of.first_row(d), q += of.first_column(d);
    base = ((image * d.ho + p) * d.wo + q) * d.o;
    mask = seen(p, of.down(d), d.ho) | seen(q, of.across(d), d.wo) << 16;
  }
  __device__ __forceinline__ Move move_of(const Tap& tap) const {
    return {min(tap.r, 15), tap.s, tap.channel - (tap.r * d.wo + tap.s) * d.o};
  }
  __device__ __forceinline__ Move find(int k) const { return move_of(taps.at(k, d)); }
  __device__ __forceinline__ int at(const Move& move) const {
    return mask >> move.r & mask >> (16 + move.s) & 1 ? base + move.by : NOWHERE;
  }
  // The place of the first channel of the output pixel that saw it through a tap.
  __device__ __forceinline__ int pixel_of(const Tap& tap) const { return this->at(move_of({tap.r, tap.s, 0})); }
  __device__ __forceinline__ void each(int k, int (&at)[N]) const {
    Tap tap = taps.at(k, d);
    int pixel = pixel_of(tap);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      at[i] = pixel == NOWHERE ? NOWHERE : pixel + tap.channel;
      tap = taps.after(tap, d);
      // Another tap, another pixel.
      if (i < N - 1 && tap.channel == 0) pixel = pixel_of(tap);
    }
  }
};

// w', the weights [o][kh][kw][c] as the matrix [taps·o][c] that belongs to `taps` of a phase. Input gradient.
template <class E, int N>
struct WeightsByTap : InImage<E, N> {
  using InImage<E, N>::d;
  static constexpr bool along_k = false;
  PhaseTaps taps;
  int channel;  // the first of this thread's N, if there is one
  __device__ WeightsByTap(const E* weights, const Conv2dDims& d, PhaseTaps taps)
      : InImage<E, N>(weights, d, d.c), taps(taps) {}
  __device__ __forceinline__ void start(int first) { channel = first < d.c ? first : NOWHERE; }
  __device__ __forceinline__ int find(int k) const {
    const Tap tap = taps.at(k, d);
    if (tap.r >= taps.down(d)) return NOWHERE;
    return (tap.channel * d.kh * d.kw + taps.in_window(tap, d)) * d.c;
  }
  __device__ __forceinline__ int at(int found) const { return place_of(found, channel); }
  __device__ __forceinline__ void each(int k, int (&at)[N]) const {
    const int found = this->at(find(k));
#pragma unroll
    for (int i = 0; i < N; ++i) at[i] = found != NOWHERE && channel + i < d.c ? found + i : NOWHERE;
  }
};

// What becomes of the sums of a phase: its rows are every so many of gx.
template <class E>
struct PhaseEpilogue {
  static constexpr bool BY_COLUMNS = false;
  Epilogue<E> all;
  const Conv2dDims& d;
  int phase;
  __device__ __forceinline__ PhaseEpilogue<float> of_partial(float* partial) const {
    return {all.of_partial(partial), d, phase};
  }
  // The pixel of gx that is a row of the phase.
  __device__ __forceinline__ int pixel_of(int row) const {
    if (d.sh * d.sw == 1) return row;
    const Phase of(phase, d);
    int image, h, w;
    of.find(row, d, image, h, w);
    return (image * d.h + of.top + d.sh * h) * d.w + of.left + d.sw * w;
  }
  __device__ __forceinline__ float bias_at(int, int) const { return 0.0f; }
  // `masks` are those of masks_at, if any.
  template <int N, class... M>
  __device__ __forceinline__ void store(int row, int column, int n, const Pack<float, N>& v, const M&... masks) const {
    all.store(pixel_of(row), column, n, v, masks...);
  }
};
template <class E>
constexpr bool may_mask<PhaseEpilogue<E>> = true;
template <int N, class E>
__device__ __forceinline__ bool has_masks(const PhaseEpilogue<E>& of, int n) {
  return has_masks<N>(of.all, n);
}
template <int N, class E>
__device__ __forceinline__ Pack<unsigned, N> masks_at(const PhaseEpilogue<E>& of, int row, int column, int n) {
  return masks_at<N>(of.all, of.pixel_of(row), column, n);
}
