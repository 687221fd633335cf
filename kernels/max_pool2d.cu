// Max-pool: the largest value under each window; the gradient goes to its place.
// Instances: T = float, half, bf16
#include "pool.cuh"

struct MaxPool2dDims {
  int n, h, w, c;  // x [n, h, w, c]
  int ho, wo;      // y [n, ho, wo, c]
  int kh, kw;      // window
  int sh, sw;      // stride
  int ph, pw;      // padding
};

template <int V, class T>
__device__ __forceinline__ void largest(const T* x, T* y, int* arg, const MaxPool2dDims& d) {
  const int packs = d.c / V;
  FOR_EACH(i, d.n * d.ho * d.wo * packs) {
    int c = i % packs * V, at = i / packs, q = at % d.wo, p = at / d.wo % d.ho, n = at / d.wo / d.ho;
    int r0 = p * d.sh - d.ph, s0 = q * d.sw - d.pw;
    const T* image = x + (size_t)n * d.h * d.w * d.c + c;  // [h, w] of stride c
    Largest<V> found =
        largest_pixel<V>(image, d.w, d.c, max(r0, 0), min(r0 + d.kh, d.h), max(s0, 0), min(s0 + d.kw, d.w));
    store(y + (size_t)i * V, found.value);
    *reinterpret_cast<Pack<int, V>*>(arg + (size_t)i * V) = found.pixel;
  }
}

// y[n, p, q, c] = max over the window of x[n, p*sh - ph + r, q*sw - pw + s, c], and arg the pixel
// (row * w + column) that won: the first of equal values, NaN over all. Padding never wins.
// Threads: one for four channels of an output pixel (one where c is no multiple of 4), neighbours along the channels.
// Traffic: kh * kw reads of x (once from memory where windows do not overlap) and two writes an output.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory; asked for 4 blocks at once the compiler does not
//     spill registers to have 8.
// Numerics: exact.
// Limits: outputs < 2^31, h * w < 2^31; every window covers a pixel.
// Registers: at most 64.
// Measured: H100, 2026-11-26, e1-resnet9-onecycle's four: 73 % of the memory's ceiling; backward 59 %.
template <class T>
__global__ void __launch_bounds__(256, 4)
    max_pool2d_fwd(const T* __restrict__ x, T* __restrict__ y, int* __restrict__ arg, MaxPool2dDims d) {
  if (rows_of<4>(x, d.c) && is_aligned(y) && is_aligned(arg)) {
    largest<4>(x, y, arg, d);
  } else {
    largest<1>(x, y, arg, d);
  }
}

template <int V, class T>
__device__ __forceinline__ void gather(const T* gy, const int* arg, T* gx, const MaxPool2dDims& d) {
  const int packs = d.c / V;
  FOR_EACH(i, d.n * d.h * d.w * packs) {
    int c = i % packs * V, at = i / packs, n = at / (d.h * d.w), pixel = at - n * d.h * d.w;
    Covering ps(pixel / d.w + d.ph, d.kh, d.sh, d.ho), qs(pixel % d.w + d.pw, d.kw, d.sw, d.wo);
    Pack<float, V> sum = {};
    for (int p = ps.first; p < ps.last; ++p) {
      for (int q = qs.first; q < qs.last; ++q) {
        const size_t o = (((size_t)n * d.ho + p) * d.wo + q) * d.c + c;
        const Pack<int, V> won = *reinterpret_cast<const Pack<int, V>*>(arg + o);
        const Pack<float, V> g = load<V>(gy + o);
#pragma unroll
        for (int k = 0; k < V; ++k) sum.v[k] += won.v[k] == pixel ? g.v[k] : 0.0f;
      }
    }
    store(gx + (size_t)i * V, sum);
  }
}

// gx[n, r, s, c] = the sum of gy over those windows whose arg is (r, s), in their order.
// Threads: one for four channels of an input pixel (one where c is no multiple of 4), neighbours along the channels: a
//     gather, no atomics.
// Traffic: at most ceil(kh / sh) * ceil(kw / sw) reads of arg and gy and one write an input.
// Launch: as above, asked for 3 blocks at once.
// Numerics: as many roundings as windows won; the order is that of the CPU.
// Limits: inputs < 2^31.
// Registers: at most 80.
template <class T>
__global__ void __launch_bounds__(256, 3)
    max_pool2d_bwd(const T* __restrict__ gy, const int* __restrict__ arg, T* __restrict__ gx, MaxPool2dDims d) {
  if (rows_of<4>(gy, d.c) && is_aligned(arg) && is_aligned(gx)) {
    gather<4>(gy, arg, gx, d);
  } else {
    gather<1>(gy, arg, gx, d);
  }
}

// Windows that tile the image: no padding, and as far apart as they are large, which is what networks have. Each pixel lies in
// one window at most, so a thread that has a window has all its pixels, and the place of the largest fits in a byte.
struct MaxPool2dTilesDims {
  int n, h, w, c;                        // x [n, h, w, c]
  int ho, wo;                            // y [n, ho, wo, c]
  int kh, kw;                            // window, of 256 places at most
  int rows, columns;                     // windows that cover x: those at its lower and right end may stick out
  unsigned by_c[2], by_wo[2], by_ho[2];  // divisors, as `divide` (common.cuh) takes them
  unsigned by_packs[2], by_columns[2], by_rows[2];  // packs: c / 8, or c / 4 of float
};

// Which window a thread has, and where in the channels: i counts them, the channels fastest.
struct Window {
  int c, q, p, n;
  template <int V>
  static __device__ __forceinline__ Window of(int i, int c, const unsigned (&by_packs)[2], int columns,
                                              const unsigned (&by_columns)[2], int rows, const unsigned (&by_rows)[2]) {
    const int at = divide(i, by_packs), np = divide(at, by_columns), n = divide(np, by_rows);
    return {(i - at * (c / V)) * V, at - np * columns, np - n * rows, n};
  }
};

// V channels a thread. KH and KW are the window's sizes, or 0: those in d.
template <int V, int KH, int KW>
struct Tiles {};

// Calls f with the Tiles of elements of T: whole packs where rows lie so, and the usual windows as constants.
template <class T, class F>
__device__ __forceinline__ void with_tiles(bool packs, const MaxPool2dTilesDims& d, F f) {
  constexpr int V = 16 / sizeof(T);
  if (!packs) return f(Tiles<1, 0, 0>{});
  if (d.kh == 2 && d.kw == 2) return f(Tiles<V, 2, 2>{});
  if (d.kh == 3 && d.kw == 3) return f(Tiles<V, 3, 3>{});
  f(Tiles<V, 0, 0>{});
}

template <int V, int KH, int KW, class T>
__device__ __forceinline__ void largest_of_tiles(Tiles<V, KH, KW>, const T* x, T* y, unsigned char* place,
                                                 const MaxPool2dTilesDims& d) {
  const int kh = KH ? KH : d.kh, kw = KW ? KW : d.kw;
  FOR_EACH(i, d.n * d.ho * d.wo * (d.c / V)) {
    const Window at = Window::of<V>(i, d.c, V == 1 ? d.by_c : d.by_packs, d.wo, d.by_wo, d.ho, d.by_ho);
    const T* first = x + (size_t)((at.n * d.h + at.p * kh) * d.w + at.q * kw) * d.c + at.c;
    Pack<float, V> best = load<V>(first);
    Pack<unsigned char, V> won = {};
#pragma unroll
    for (int r = 0; r < kh; ++r) {
#pragma unroll
      for (int s = 0; s < kw; ++s) {
        const Pack<float, V> v = load<V>(first + (size_t)(r * d.w + s) * d.c);
#pragma unroll
        for (int k = 0; k < V; ++k) {
          // Neither <= nor == holds for NaN.
          if (v.v[k] <= best.v[k] || best.v[k] != best.v[k]) continue;
          best.v[k] = v.v[k];
          won.v[k] = r * kw + s;
        }
      }
    }
    store(y + (size_t)i * V, best);
    *reinterpret_cast<Pack<unsigned char, V>*>(place + (size_t)i * V) = won;
  }
}

// y as of max_pool2d_fwd, and the place in the window (row * kw + column) that won.
// Threads: one for 16 bytes of channels of a window (one channel where they are not all of 16 bytes), neighbours along the
//     channels.
// Traffic: one read of x, one write of y, and a byte an output.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: exact.
// Limits: as above; windows of 256 places at most.
// Registers: at most 80.
// Measured: H100, 2026-11-26, e1-resnet9-onecycle at batch 512 in bf16: 99 % of the memory's ceiling; backward 95 %. Without
//     tiles, and with the pixel in four bytes, 75 % and 39 %.
template <class T>
__global__ void __launch_bounds__(256, 3)
    max_pool2d_fwd_tiles(const T* __restrict__ x, T* __restrict__ y, unsigned char* __restrict__ place,
                         MaxPool2dTilesDims d) {
  constexpr int V = 16 / sizeof(T);
  const bool packs = rows_of<V>(x, d.c) && is_aligned<V>(y) && is_aligned<V>(place);
  with_tiles<T>(packs, d, [&](auto tiles) { largest_of_tiles(tiles, x, y, place, d); });
}

template <int V, int KH, int KW, class T>
__device__ __forceinline__ void scatter_to_tiles(Tiles<V, KH, KW>, const T* gy, const unsigned char* place, T* gx,
                                                 const MaxPool2dTilesDims& d) {
  const int kh = KH ? KH : d.kh, kw = KW ? KW : d.kw;
  FOR_EACH(i, d.n * d.rows * d.columns * (d.c / V)) {
    const Window at = Window::of<V>(i, d.c, V == 1 ? d.by_c : d.by_packs, d.columns, d.by_columns, d.rows, d.by_rows);
    Pack<float, V> g = {};
    Pack<unsigned char, V> won = {};
    if (at.p < d.ho && at.q < d.wo) {
      const size_t o = (size_t)((at.n * d.ho + at.p) * d.wo + at.q) * d.c + at.c;
      g = load<V>(gy + o);
      won = *reinterpret_cast<const Pack<unsigned char, V>*>(place + o);
    }
    T* first = gx + (size_t)((at.n * d.h + at.p * kh) * d.w + at.q * kw) * d.c + at.c;
#pragma unroll
    for (int r = 0; r < kh; ++r) {
#pragma unroll
      for (int s = 0; s < kw; ++s) {
        if (at.p * kh + r >= d.h || at.q * kw + s >= d.w) continue;
        Pack<float, V> out;
#pragma unroll
        for (int k = 0; k < V; ++k) out.v[k] = won.v[k] == r * kw + s ? 0.0f + g.v[k] : 0.0f;
        store(first + (size_t)(r * d.w + s) * d.c, out);
      }
    }
  }
}

// gx as of max_pool2d_bwd, zero where no window is.
// Threads: one for 16 bytes of channels of a window, those that stick out among them; otherwise as above.
// Traffic: one read of gy and of the places, one write of gx.
template <class T>
__global__ void __launch_bounds__(256, 3)
    max_pool2d_bwd_tiles(const T* __restrict__ gy, const unsigned char* __restrict__ place, T* __restrict__ gx,
                         MaxPool2dTilesDims d) {
  constexpr int V = 16 / sizeof(T);
  const bool packs = rows_of<V>(gy, d.c) && is_aligned<V>(gx) && is_aligned<V>(place);
  with_tiles<T>(packs, d, [&](auto tiles) { scatter_to_tiles(tiles, gy, place, gx, d); });
}
