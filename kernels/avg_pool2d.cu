// Average-pool: the mean under each window.
// Instances: T = float, half, bf16
#include "common.cuh"

struct AvgPool2dDims {
  int n, h, w, c;   // x [n, h, w, c]
  int ho, wo;       // y [n, ho, wo, c]
  int kh, kw;       // window
  int sh, sw;       // stride
  int ph, pw;       // padding
  int include_pad;  // whether a sum is divided by kh * kw, or else by the pixels that the window covers
};

// The pixels that window (p, q) covers, and by what their sum is divided.
struct Covered {
  int r0, r1, s0, s1;
  float area;
  __device__ __forceinline__ Covered(int p, int q, const AvgPool2dDims& d)
      : r0(max(p * d.sh - d.ph, 0)),
        r1(min(p * d.sh - d.ph + d.kh, d.h)),
        s0(max(q * d.sw - d.pw, 0)),
        s1(min(q * d.sw - d.pw + d.kw, d.w)),
        area((float)(d.include_pad ? d.kh * d.kw : (r1 - r0) * (s1 - s0))) {}
};

// The windows first <= o < last of `outs` that cover position i of the padded input:
// o * stride <= i < o * stride + kernel.
struct Covering {
  int first, last;
  __device__ __forceinline__ Covering(int i, int kernel, int stride, int outs)
      : first(max(i - kernel + stride, 0) / stride), last(min(i / stride + 1, outs)) {}
};

// y[n, p, q, c] = the sum over the window of x[n, p*sh - ph + r, q*sw - pw + s, c], divided by its area.
// Threads: one for an output element, neighbours along the channels.
// Traffic: kh * kw reads of x (once from memory where windows do not overlap) and one write an output.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: the window's values summed in order, then one division: the CPU's bits.
// Limits: outputs < 2^31, h * w < 2^31; every window covers a pixel.
// Registers: at most 64.
template <class T>
__global__ void __launch_bounds__(256) avg_pool2d_fwd(const T* __restrict__ x, T* __restrict__ y, AvgPool2dDims d) {
  FOR_EACH(i, d.n * d.ho * d.wo * d.c) {
    int c = i % d.c, q = i / d.c % d.wo, p = i / d.c / d.wo % d.ho, n = i / d.c / d.wo / d.ho;
    Covered win(p, q, d);
    const T* image = x + (size_t)n * d.h * d.w * d.c + c;  // [h, w] of stride c
    float sum = 0.0f;
    for (int r = win.r0; r < win.r1; ++r) {
      for (int s = win.s0; s < win.s1; ++s) sum += to_float(image[(size_t)(r * d.w + s) * d.c]);
    }
    y[i] = from_float<T>(sum / win.area);
  }
}

// gx[n, r, s, c] = the sum of gy / area over the windows that cover (r, s), in their order.
// Threads: one for an input element, neighbours along the channels: a gather, no atomics.
// Traffic: at most ceil(kh / sh) * ceil(kw / sw) reads of gy and one write an input.
// Launch: as above; asked for 4 blocks at once the compiler does not spill registers to have 8.
// Numerics: two roundings a window; the order is that of the CPU.
// Limits: inputs < 2^31.
template <class T>
__global__ void __launch_bounds__(256, 4)
    avg_pool2d_bwd(const T* __restrict__ gy, T* __restrict__ gx, AvgPool2dDims d) {
  FOR_EACH(i, d.n * d.h * d.w * d.c) {
    int c = i % d.c, n = i / d.c / (d.h * d.w), pixel = i / d.c - n * d.h * d.w;
    Covering ps(pixel / d.w + d.ph, d.kh, d.sh, d.ho), qs(pixel % d.w + d.pw, d.kw, d.sw, d.wo);
    float sum = 0.0f;
    for (int p = ps.first; p < ps.last; ++p) {
      for (int q = qs.first; q < qs.last; ++q) {
        size_t o = (((size_t)n * d.ho + p) * d.wo + q) * d.c + c;
        sum += to_float(gy[o]) / Covered(p, q, d).area;
      }
    }
    gx[i] = from_float<T>(sum);
  }
}
