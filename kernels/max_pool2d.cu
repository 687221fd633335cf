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
