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

// y[n, p, q, c] = max over the window of x[n, p*sh - ph + r, q*sw - pw + s, c], and arg the pixel
// (row * w + column) that won: the first of equal values, NaN over all. Padding never wins.
// Threads: one for an output element, neighbours along the channels.
// Traffic: kh * kw reads of x (once from memory where windows do not overlap) and two writes an output.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: exact.
// Limits: outputs < 2^31, h * w < 2^31; every window covers a pixel.
// Registers: at most 64.
// Measured: H100, 2026-11-24, the timed cases: 17 to 26 % of the memory's ceiling.
template <class T>
__global__ void __launch_bounds__(256)
    max_pool2d_fwd(const T* __restrict__ x, T* __restrict__ y, int* __restrict__ arg, MaxPool2dDims d) {
  FOR_EACH(i, d.n * d.ho * d.wo * d.c) {
    int c = i % d.c, q = i / d.c % d.wo, p = i / d.c / d.wo % d.ho, n = i / d.c / d.wo / d.ho;
    int r0 = p * d.sh - d.ph, s0 = q * d.sw - d.pw;
    const T* image = x + (size_t)n * d.h * d.w * d.c + c;  // [h, w] of stride c
    Largest found = largest_pixel(image, d.w, d.c, max(r0, 0), min(r0 + d.kh, d.h), max(s0, 0), min(s0 + d.kw, d.w));
    y[i] = from_float<T>(found.value);
    arg[i] = found.pixel;
  }
}

// gx[n, r, s, c] = the sum of gy over those windows whose arg is (r, s), in their order.
// Threads: one for an input element, neighbours along the channels: a gather, no atomics.
// Traffic: at most ceil(kh / sh) * ceil(kw / sw) reads of arg and gy and one write an input.
// Launch: as above; asked for 4 blocks at once the compiler does not spill registers to have 8.
// Numerics: as many roundings as windows won; the order is that of the CPU.
// Limits: inputs < 2^31.
template <class T>
__global__ void __launch_bounds__(256, 4)
    max_pool2d_bwd(const T* __restrict__ gy, const int* __restrict__ arg, T* __restrict__ gx, MaxPool2dDims d) {
  FOR_EACH(i, d.n * d.h * d.w * d.c) {
    int c = i % d.c, n = i / d.c / (d.h * d.w), pixel = i / d.c - n * d.h * d.w;
    Covering ps(pixel / d.w + d.ph, d.kh, d.sh, d.ho), qs(pixel % d.w + d.pw, d.kw, d.sw, d.wo);
    float sum = 0.0f;
    for (int p = ps.first; p < ps.last; ++p) {
      for (int q = qs.first; q < qs.last; ++q) {
        size_t o = (((size_t)n * d.ho + p) * d.wo + q) * d.c + c;
        if (arg[o] == pixel) sum += to_float(gy[o]);
      }
    }
    gx[i] = from_float<T>(sum);
  }
}
