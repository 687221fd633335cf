// Adaptive pools: the largest value, or the mean, under windows that follow from the output's size.
// Instances: T = float, half, bf16
#include "pool.cuh"

struct AdaptivePool2dDims {
  int n, h, w, c;  // x [n, h, w, c]
  int ho, wo;      // y [n, ho, wo, c]
};

// The positions first .. last - 1 of `size` that position o of `outs` covers. Seen from the other
// side it is the same formula: position i is covered by those that i of `size` covers of `outs`.
struct Span {
  int first, last;
  __device__ __forceinline__ Span(int o, int outs, int size)
      : first(o * size / outs), last(((o + 1) * size + outs - 1) / outs) {}
  __device__ __forceinline__ int len() const { return last - first; }
};

// y[n, p, q, c] = max over the window (p, q) of x, and arg the pixel (row * w + column) that won:
// the first of equal values, NaN over all.
// Threads: one for an output element, neighbours along the channels.
// Traffic: one read of x for each pixel of the window and two writes an output.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory; asked for 6 blocks at once the
// compiler does not spill registers to have 8.
// Numerics: exact.
// Limits: outputs < 2^31, (h + 1) * ho and (w + 1) * wo < 2^31.
// Registers: at most 64.
template <class T>
__global__ void __launch_bounds__(256, 6)
    adaptive_pool2d_fwd_max(const T* __restrict__ x, T* __restrict__ y, int* __restrict__ arg, AdaptivePool2dDims d) {
  FOR_EACH(i, d.n * d.ho * d.wo * d.c) {
    int c = i % d.c, q = i / d.c % d.wo, p = i / d.c / d.wo % d.ho, n = i / d.c / d.wo / d.ho;
    Span rows(p, d.ho, d.h), cols(q, d.wo, d.w);
    const T* image = x + (size_t)n * d.h * d.w * d.c + c;  // [h, w] of stride c
    const auto at = [&](int pixel) { return load<1>(image + (size_t)pixel * d.c); };
    const int first = rows.first * d.w + cols.first;
    Largest<1> found(at(first), first);
    for (int r = rows.first; r < rows.last; ++r) {
      for (int pixel = r * d.w + cols.first; pixel < r * d.w + cols.last; ++pixel) found.see(at(pixel), pixel);
    }
    y[i] = from_float<T>(found.value.v[0]);
    arg[i] = found.place[0];
  }
}

// gx[n, r, s, c] = the sum of gy over those windows whose arg is (r, s), in their order.
// Threads: one for an input element, neighbours along the channels: a gather, no atomics.
// Traffic: one read of arg and gy for each window that covers the pixel and one write an input.
// Numerics: as many roundings as windows won; the order is that of the CPU.
// Limits: inputs < 2^31, (h + 1) * ho and (w + 1) * wo < 2^31.
template <class T>
__global__ void __launch_bounds__(256) adaptive_pool2d_bwd_max(const T* __restrict__ gy, const int* __restrict__ arg,
                                                               T* __restrict__ gx, AdaptivePool2dDims d) {
  FOR_EACH(i, d.n * d.h * d.w * d.c) {
    int c = i % d.c, n = i / d.c / (d.h * d.w), pixel = i / d.c - n * d.h * d.w;
    Span rows(pixel / d.w, d.h, d.ho), cols(pixel % d.w, d.w, d.wo);
    float sum = 0.0f;
    for (int p = rows.first; p < rows.last; ++p) {
      for (int q = cols.first; q < cols.last; ++q) {
        size_t o = (((size_t)n * d.ho + p) * d.wo + q) * d.c + c;
        if (arg[o] == pixel) sum += to_float(gy[o]);
      }
    }
    gx[i] = from_float<T>(sum);
  }
}

// y[n, p, q, c] = the mean over the window (p, q) of x.
// Threads: one for an output element, neighbours along the channels.
// Traffic: one read of x for each pixel of the window and one write an output.
// Numerics: the window's values summed in order.
// Limits: outputs < 2^31, (h + 1) * ho and (w + 1) * wo < 2^31.
template <class T>
__global__ void __launch_bounds__(256)
    adaptive_pool2d_fwd_avg(const T* __restrict__ x, T* __restrict__ y, AdaptivePool2dDims d) {
  FOR_EACH(i, d.n * d.ho * d.wo * d.c) {
    int c = i % d.c, q = i / d.c % d.wo, p = i / d.c / d.wo % d.ho, n = i / d.c / d.wo / d.ho;
    Span rows(p, d.ho, d.h), cols(q, d.wo, d.w);
    const T* image = x + (size_t)n * d.h * d.w * d.c + c;  // [h, w] of stride c
    float sum = 0.0f;
    for (int r = rows.first; r < rows.last; ++r) {
      for (int s = cols.first; s < cols.last; ++s) sum += to_float(image[(size_t)(r * d.w + s) * d.c]);
    }
    y[i] = from_float<T>(sum / (float)(rows.len() * cols.len()));
  }
}

// gx[n, r, s, c] = the sum of gy / area over the windows that cover (r, s).
// Threads: one for an input element, neighbours along the channels: a gather, no atomics.
// Traffic: one read of gy for each window that covers the pixel and one write an input.
// Numerics: two roundings a window, in the windows' order.
// Limits: inputs < 2^31, (h + 1) * ho and (w + 1) * wo < 2^31.
template <class T>
__global__ void __launch_bounds__(256)
    adaptive_pool2d_bwd_avg(const T* __restrict__ gy, T* __restrict__ gx, AdaptivePool2dDims d) {
  FOR_EACH(i, d.n * d.h * d.w * d.c) {
    int c = i % d.c, n = i / d.c / (d.h * d.w), pixel = i / d.c - n * d.h * d.w;
    Span rows(pixel / d.w, d.h, d.ho), cols(pixel % d.w, d.w, d.wo);
    float sum = 0.0f;
    for (int p = rows.first; p < rows.last; ++p) {
      for (int q = cols.first; q < cols.last; ++q) {
        int area = Span(p, d.ho, d.h).len() * Span(q, d.wo, d.w).len();
        sum += to_float(gy[(((size_t)n * d.ho + p) * d.wo + q) * d.c + c]) / (float)area;
      }
    }
    gx[i] = from_float<T>(sum);
  }
}
