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

// use(value, pixel) for the pixels of a window of an image [h, w], whose values lie d.c apart, in order. Several are loaded before
// the first is used: with one at a time the threads, of which there are few, would wait for each.
template <class T, class Use>
__device__ __forceinline__ void for_window(const T* image, const Span& rows, const Span& cols,
                                           const AdaptivePool2dDims& d, Use use) {
  constexpr int AHEAD = 8;
  const int wide = cols.len(), area = rows.len() * wide;
  for (int j = 0, pixel = rows.first * d.w + cols.first, s = 0; j < area; j += AHEAD) {
    float v[AHEAD];
    int at[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      at[k] = pixel++;
      if (j + k < area) v[k] = load<1>(image + (size_t)at[k] * d.c).v[0];
      if (++s == wide) s = 0, pixel += d.w - wide;
    }
#pragma unroll
    for (int k = 0; k < AHEAD; ++k)
      if (j + k < area) use(v[k], at[k]);
  }
}

// What a thread of a backward pass has of x: V channels from c on, of a pixel of an image.
template <int V>
struct Input {
  int c, n, pixel;
  Span rows, cols;  // the windows that cover it
  __device__ __forceinline__ Input(int i, const AdaptivePool2dDims& d)
      : c(i % (d.c / V) * V),
        n(i / (d.c / V) / (d.h * d.w)),
        pixel(i / (d.c / V) - n * d.h * d.w),
        rows(pixel / d.w, d.h, d.ho),
        cols(pixel % d.w, d.w, d.wo) {}
  // use(p, q, at) for those windows, in order; what one has for the channels begins at `at`.
  template <class Use>
  __device__ __forceinline__ void for_windows(const AdaptivePool2dDims& d, Use use) const {
#pragma unroll 1
    for (int p = rows.first; p < rows.last; ++p) {
#pragma unroll 1
      for (int q = cols.first; q < cols.last; ++q) use(p, q, (((size_t)n * d.ho + p) * d.wo + q) * d.c + c);
    }
  }
};

// y[n, p, q, c] = max over the window (p, q) of x, and arg the pixel (row * w + column) that won:
// the first of equal values, NaN over all.
// Threads: one for an output element, neighbours along the channels.
// Traffic: one read of x for each pixel of the window and two writes an output.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: exact.
// Limits: outputs < 2^31, (h + 1) * ho and (w + 1) * wo < 2^31.
// Registers: at most 64.
template <class T>
__global__ void __launch_bounds__(256, 4)
    adaptive_pool2d_fwd_max(const T* __restrict__ x, T* __restrict__ y, int* __restrict__ arg, AdaptivePool2dDims d) {
  FOR_EACH(i, d.n * d.ho * d.wo * d.c) {
    int c = i % d.c, q = i / d.c % d.wo, p = i / d.c / d.wo % d.ho, n = i / d.c / d.wo / d.ho;
    Span rows(p, d.ho, d.h), cols(q, d.wo, d.w);
    const T* image = x + (size_t)n * d.h * d.w * d.c + c;  // [h, w] of stride c
    const int first = rows.first * d.w + cols.first;
    Largest<1> found(load<1>(image + (size_t)first * d.c), first);
    for_window(image, rows, cols, d, [&](float v, int pixel) { found.see(0, v, pixel); });
    y[i] = from_float<T>(found.value.v[0]);
    arg[i] = found.place[0];
  }
}

template <int V, class T>
__device__ __forceinline__ void of_winners(Width<V>, const T* gy, const int* arg, T* gx, const AdaptivePool2dDims& d) {
  FOR_EACH(i, d.n * d.h * d.w * (d.c / V)) {
    const Input<V> my(i, d);
    Pack<float, V> sum = {};
    my.for_windows(d, [&](int, int, size_t at) {
      const auto won = *reinterpret_cast<const Pack<int, V>*>(arg + at);
      const Pack<float, V> g = load<V>(gy + at);
#pragma unroll
      for (int k = 0; k < V; ++k)
        if (won.v[k] == my.pixel) sum.v[k] += g.v[k];
    });
    store(gx + (size_t)i * V, sum);
  }
}

// gx[n, r, s, c] = the sum of gy over those windows whose arg is (r, s), in their order.
// Threads: one for 16 bytes of an input pixel, or four elements or one, neighbours along the channels: a gather, no atomics.
// Traffic: one read of arg and gy for each window that covers the pixel and one write an input.
// Numerics: as many roundings as windows won; the order is that of the CPU.
// Limits: inputs < 2^31, (h + 1) * ho and (w + 1) * wo < 2^31.
template <class T>
__global__ void __launch_bounds__(256, 4) adaptive_pool2d_bwd_max(const T* __restrict__ gy, const int* __restrict__ arg,
                                                                  T* __restrict__ gx, AdaptivePool2dDims d) {
  with_width<16 / sizeof(T)>(d, [&](auto width) { of_winners(width, gy, arg, gx, d); }, gy, gx, arg);
}

// y[n, p, q, c] = the mean over the window (p, q) of x.
// Threads: one for an output element, neighbours along the channels.
// Traffic: one read of x for each pixel of the window and one write an output.
// Numerics: the window's values summed in order.
// Limits: outputs < 2^31, (h + 1) * ho and (w + 1) * wo < 2^31.
template <class T>
__global__ void __launch_bounds__(256, 4)
    adaptive_pool2d_fwd_avg(const T* __restrict__ x, T* __restrict__ y, AdaptivePool2dDims d) {
  FOR_EACH(i, d.n * d.ho * d.wo * d.c) {
    int c = i % d.c, q = i / d.c % d.wo, p = i / d.c / d.wo % d.ho, n = i / d.c / d.wo / d.ho;
    Span rows(p, d.ho, d.h), cols(q, d.wo, d.w);
    const T* image = x + (size_t)n * d.h * d.w * d.c + c;  // [h, w] of stride c
    float sum = 0.0f;
    for_window(image, rows, cols, d, [&](float v, int) { sum += v; });
    y[i] = from_float<T>(sum / (float)(rows.len() * cols.len()));
  }
}

template <int V, class T>
__device__ __forceinline__ void of_all(Width<V>, const T* gy, T* gx, const AdaptivePool2dDims& d) {
  FOR_EACH(i, d.n * d.h * d.w * (d.c / V)) {
    const Input<V> my(i, d);
    Pack<float, V> sum = {};
    my.for_windows(d, [&](int p, int q, size_t at) {
      const float area = (float)(Span(p, d.ho, d.h).len() * Span(q, d.wo, d.w).len());
      const Pack<float, V> g = load<V>(gy + at);
#pragma unroll
      for (int k = 0; k < V; ++k) sum.v[k] += g.v[k] / area;
    });
    store(gx + (size_t)i * V, sum);
  }
}

// gx[n, r, s, c] = the sum of gy / area over the windows that cover (r, s).
// Threads: one for 16 bytes of an input pixel, or four elements or one, neighbours along the channels: a gather, no atomics.
// Traffic: one read of gy for each window that covers the pixel and one write an input.
// Numerics: two roundings a window, in the windows' order.
// Limits: inputs < 2^31, (h + 1) * ho and (w + 1) * wo < 2^31.
template <class T>
__global__ void __launch_bounds__(256, 4)
    adaptive_pool2d_bwd_avg(const T* __restrict__ gy, T* __restrict__ gx, AdaptivePool2dDims d) {
  with_width<16 / sizeof(T)>(d, [&](auto width) { of_all(width, gy, gx, d); }, gy, gx);
}
