// Max-pool: the largest value under each window; the gradient goes to its place.
// Instances: T = float, half, bf16
#include "pool.cuh"

struct MaxPool2dDims {
  int n, h, w, c;    // x [n, h, w, c]
  int ho, wo;        // y [n, ho, wo, c]
  int kh, kw;        // window
  int sh, sw;        // stride
  int ph, pw;        // padding
  int down, across;  // what threads share out: windows; backward the cells of x
  int up, left;      // windows that reach into a cell begin in so many cells before it: (kh - 1) / sh, (kw - 1) / sw
  unsigned by_c[2], by_packs[2], by_across[2],
      by_down[2];  // divisors, as `divide` (common.cuh) takes them; packs: of c
};

// What a thread has: from channel c on, in image n, what is at row p and column q of the grid. i counts these, the
// channels fastest.
template <int V>
struct Share {
  int c, q, p, n;
  __device__ __forceinline__ Share(int i, const MaxPool2dDims& d) {
    const int at = divide(i, V == 1 ? d.by_c : d.by_packs), np = divide(at, d.by_across);
    n = divide(np, d.by_down);
    c = (i - at * (d.c / V)) * V;
    q = at - np * d.across;
    p = np - n * d.down;
  }
};

// V channels a thread; K and S are the sides of window and stride, or 0: those in d. The place in the window that won
// (row * kw + column) is stored as a P.
template <int V, int K, int S, class P = unsigned char>
struct Pool {};

// Calls f with the Pool of elements of T: whole packs where rows lie so, the usual windows as constants, and places of four
// bytes where a window has more than fit in one.
template <class T, class F>
__device__ __forceinline__ void with_pool(bool packs, const MaxPool2dDims& d, F f) {
  constexpr int V = 16 / sizeof(T);
  const auto is = [&](int k, int s) { return d.kh == k && d.kw == k && d.sh == s && d.sw == s; };
  if (d.kh * d.kw > 256) return f(Pool<1, 0, 0, int>{});
  if (!packs) return f(Pool<1, 0, 0>{});
  if (is(2, 2)) return f(Pool<V, 2, 2>{});
  if (is(3, 2)) return f(Pool<V, 3, 2>{});
  if (is(3, 3)) return f(Pool<V, 3, 3>{});
  f(Pool<V, 0, 0>{});
}

template <int V, int K, int S, class P, class T>
__device__ __forceinline__ void largest(Pool<V, K, S, P>, const T* x, T* y, unsigned char* place,
                                        const MaxPool2dDims& d) {
  const int kh = K ? K : d.kh, kw = K ? K : d.kw, sh = S ? S : d.sh, sw = S ? S : d.sw;
  FOR_EACH(i, d.n * d.ho * d.wo * (d.c / V)) {
    const Share<V> my(i, d);
    // The window begins at (r0, s0). Its rows and columns outside x stand for the nearest inside: what is seen twice changes
    // nothing, and all loads can be on their way at once.
    const int r0 = my.p * sh - d.ph, s0 = my.q * sw - d.pw;
    const auto row = [&](int r) { return min(max(r, -r0), d.h - 1 - r0); };
    const auto column = [&](int s) { return min(max(s, -s0), d.w - 1 - s0); };
    const T* image = x + (size_t)my.n * d.h * d.w * d.c + my.c;  // [h, w] of stride c
    const auto at = [&](int r, int s) { return load<V>(image + (size_t)((r0 + r) * d.w + s0 + s) * d.c); };
    Largest<V> found(at(row(0), column(0)), row(0) * kw + column(0));
#pragma unroll
    for (int r = 0; r < kh; ++r) {
#pragma unroll
      for (int s = 0; s < kw; ++s) found.see(at(row(r), column(s)), row(r) * kw + column(s));
    }
    store(y + (size_t)i * V, found.value);
    Pack<P, V> won;
#pragma unroll
    for (int k = 0; k < V; ++k) won.v[k] = found.place[k];
    *reinterpret_cast<Pack<P, V>*>(reinterpret_cast<P*>(place) + (size_t)i * V) = won;
  }
}

// y[n, p, q, c] = max over the window of x[n, p*sh - ph + r, q*sw - pw + s, c], and the place in it that won: the first of
// equal values, NaN over all. Padding never wins.
// Threads: one for 16 bytes of channels of an output pixel (one channel where they are not all of 16 bytes), neighbours
//     along the channels.
// Traffic: kh * kw reads of x (once from memory, or from the L1 and L2 where windows overlap), one write of y, and a byte an
//     output.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: exact.
// Limits: outputs < 2^31, h * w < 2^31; every window covers a pixel. A window of more than 256 places has places of four
//     bytes.
// Registers: at most 80.
template <class T>
__global__ void __launch_bounds__(256, 3)
    max_pool2d_fwd(const T* __restrict__ x, T* __restrict__ y, unsigned char* __restrict__ place, MaxPool2dDims d) {
  constexpr int V = 16 / sizeof(T);
  const bool packs = rows_of<V>(x, d.c) && is_aligned<V>(y) && is_aligned<V>(place);
  with_pool<T>(packs, d, [&](auto pool) { largest(pool, x, y, place, d); });
}

template <int V, int K, int S, class P, class T>
__device__ __forceinline__ void gather(Pool<V, K, S, P>, const T* gy, const unsigned char* place, T* gx,
                                       const MaxPool2dDims& d) {
  const int kh = K ? K : d.kh, kw = K ? K : d.kw, sh = S ? S : d.sh, sw = S ? S : d.sw;
  const int most_up = K ? (K - 1) / S : d.up, most_left = K ? (K - 1) / S : d.left;
  constexpr int C = S ? S : 1;  // sums of C x C pixels at a time: of the cell, where its sides are constants
  FOR_EACH(i, d.n * d.down * d.across * (d.c / V)) {
    const Share<V> my(i, d);
    for (int r0 = 0; r0 < sh; r0 += C) {
      for (int s0 = 0; s0 < sw; s0 += C) {
        Pack<float, V> sum[C][C] = {};
        // Which windows reach into a cell follows from its place: those that begin in it and so many cells before it.
#pragma unroll
        for (int up = most_up; up >= 0; --up) {
#pragma unroll
          for (int left = most_left; left >= 0; --left) {
            const int p = my.p - up, q = my.q - left;              // the window
            const int top = r0 + up * sh, start = s0 + left * sw;  // the place in it of the first pixel
            if (top >= kh || start >= kw) continue;
            // One that is not there is read as the nearest, so that no load waits for a branch.
            const bool there = p >= 0 && p < d.ho && q >= 0 && q < d.wo;
            const size_t o =
                (size_t)((my.n * d.ho + min(max(p, 0), d.ho - 1)) * d.wo + min(max(q, 0), d.wo - 1)) * d.c + my.c;
            const Pack<float, V> g = load<V>(gy + o);
            const Pack<P, V> won = *reinterpret_cast<const Pack<P, V>*>(reinterpret_cast<const P*>(place) + o);
#pragma unroll
            for (int r = 0; r < C; ++r) {
#pragma unroll
              for (int s = 0; s < C; ++s) {
                if (top + r >= kh || start + s >= kw) continue;
#pragma unroll
                for (int k = 0; k < V; ++k)
                  sum[r][s].v[k] += there && won.v[k] == (top + r) * kw + start + s ? g.v[k] : 0.0f;
              }
            }
          }
        }
#pragma unroll
        for (int r = 0; r < C; ++r) {
#pragma unroll
          for (int s = 0; s < C; ++s) {
            const int row = my.p * sh + r0 + r - d.ph, column = my.q * sw + s0 + s - d.pw;
            if (row < 0 || row >= d.h || column < 0 || column >= d.w) continue;
            store(gx + (size_t)((my.n * d.h + row) * d.w + column) * d.c + my.c, sum[r][s]);
          }
        }
      }
    }
  }
}

// gx[n, r, s, c] = the sum of gy over those windows that (r, s) won, in their order.
// Threads: one for 16 bytes of channels of a cell of x, padding included: the sh x sw pixels from where one window begins to
//     where the next one does. A gather, no atomics.
// Traffic: ceil(kh / sh) * ceil(kw / sw) reads of gy and of the places a cell (once from memory), one write of gx.
// Numerics: as many roundings as windows won; the order is that of the CPU.
// Limits: inputs < 2^31, padding included; otherwise as above.
template <class T>
__global__ void __launch_bounds__(256, 3)
    max_pool2d_bwd(const T* __restrict__ gy, const unsigned char* __restrict__ place, T* __restrict__ gx,
                   MaxPool2dDims d) {
  constexpr int V = 16 / sizeof(T);
  const bool packs = rows_of<V>(gy, d.c) && is_aligned<V>(gx) && is_aligned<V>(place);
  with_pool<T>(packs, d, [&](auto pool) { gather(pool, gy, place, gx, d); });
}
