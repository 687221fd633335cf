// Batch normalisation, an activation and a max-pool of 2x2 in one pass: what is pooled is never stored. And, backward, batch
// normalisation of what a max-pool of 2x2 gave.
//
// The statistics are those of batch_norm2d.cu. So are, backward, the sums: only pixels that won have a gradient, and what x was
// there is kept, as small as y. Windows that overlap: batch_norm2d_overlap.cu.
// Instances: T = float, half, bf16
#include "batch_norm2d_pool.cuh"

template <int V, class A, class T>
__device__ __forceinline__ void pool(Width<V>, A, const T* x, const float* mean, const float* inv_std,
                                     const float* gamma, const float* beta, T* y, T* won, unsigned char* place,
                                     const BatchNorm2dPoolDims& d) {
  const Share<V> my(d);
  if (my.first >= my.last) return;
  const Normal<V> normal(mean, inv_std, gamma, beta, my.c);
  for (int i = my.first; i < my.last; i += my.step) {
    const T* first = x + Place(i, d).pixel * d.c + my.c;
    Pack<float, V> in[4];
#pragma unroll
    for (int at = 0; at < 4; ++at) in[at] = load<V>(first + (at / 2 * d.w + at % 2) * d.c);
    // Rounded as it would be stored, so that those are equal that would be equal then.
    const auto stored = [&](int at) {
      Pack<float, V> v = in[at];
#pragma unroll
      for (int k = 0; k < V; ++k) v.v[k] = to_float(from_float<T>(A::of(normal.of(v.v[k], k))));
      return v;
    };
    Largest<V> found(stored(0), 0);
#pragma unroll
    for (int at = 1; at < 4; ++at) found.see(stored(at), at);
    Pack<float, V> best = in[0];
#pragma unroll
    for (int at = 1; at < 4; ++at)
#pragma unroll
      for (int k = 0; k < V; ++k) best.v[k] = found.place[k] == at ? in[at].v[k] : best.v[k];
    Pack<unsigned char, V> which;
#pragma unroll
    for (int k = 0; k < V; ++k) which.v[k] = found.place[k];
    const int to = i * d.c + my.c;
    store(y + to, found.value);
    store(won + to, best);
    *reinterpret_cast<Pack<unsigned char, V>*>(place + to) = which;
  }
}

// y[n, p, q, c] = the largest of f((x - mean) * (gamma * inv_std) + beta) in the window of 2x2, with the activation f; what x
// was there, and the place in the window: the first of equal values, NaN over all.
// Threads: a block has `tile` channels of `chunk` windows; a thread four channels (one where c is no multiple) of every so many
//     windows. Neighbours along the channels, then along the windows.
// Traffic: one read of x; for a quarter as many elements a write of y, of x and of a byte.
// Launch: grid (ceil(c / tile), ceil(windows / chunk)) of 256; no shared memory.
// Numerics: the mean is subtracted first; rounded to T before it is compared.
// Limits: elements of x < 2^31; h and w at least 2.
// Registers: at most 64.
// Measured: H100, 2026-11-27, before blocks that share rows came together, e1-resnet9-onecycle at batch 512 in bf16: 77 µs for 67
//     million elements, 2.8 TB/s; batch_norm2d_pool_bwd 111 µs, 2.9 TB/s.
template <class T>
__global__ void __launch_bounds__(256)
    batch_norm2d_pool_fwd(const T* __restrict__ x, const float* __restrict__ mean, const float* __restrict__ inv_std,
                          const float* __restrict__ gamma, const float* __restrict__ beta, T* __restrict__ y,
                          T* __restrict__ won, unsigned char* __restrict__ place, BatchNorm2dPoolDims d) {
  with_activation<T>(d.activation, [&](auto f) {
    with_width<4>(
        d, [&](auto width) { pool(width, f, x, mean, inv_std, gamma, beta, y, won, place, d); }, x, y, won, place);
  });
}

template <int V, class A, class T>
__device__ __forceinline__ void spread(Width<V>, A, const T* x, const float* mean, const float* inv_std,
                                       const float* gamma, const float* beta, const float* ggamma, const float* gbeta,
                                       const T* gy, const unsigned char* place, T* gx, const BatchNorm2dPoolDims& d) {
  const Share<V> my(d);
  if (my.first >= my.last) return;
  const Normal<V> normal(mean, inv_std, gamma, beta, my.c);
  const Slopes<V> slopes(normal, inv_std, ggamma, gbeta, my.c, d.inv_rows);
  for (int i = my.first; i < my.last; i += my.step) {
    const Place window(i, d);
    // What is not there is read as the nearest, so that no load waits for a branch.
    const int right = min(2 * window.q + 1, d.w - 1) - 2 * window.q,
              below = min(2 * window.p + 1, d.h - 1) - 2 * window.p;
    const int first = window.pixel * d.c + my.c;
    const auto pixel = [&](int at) { return first + ((at / 2 & below) * d.w + (at % 2 & right)) * d.c; };
    Pack<float, V> in[4];
#pragma unroll
    for (int at = 0; at < 4; ++at) in[at] = load<V>(x + pixel(at));
    const int p = min(window.p, d.ho - 1), q = min(window.q, d.wo - 1);
    const bool pooled = p == window.p && q == window.q;
    const int from = ((window.n * d.ho + p) * d.wo + q) * d.c + my.c;
    Pack<float, V> g = load<V>(gy + from);
    const Pack<unsigned char, V> which = *reinterpret_cast<const Pack<unsigned char, V>*>(place + from);
    // Of the pixel that won, to which it belongs alone.
    Pack<float, V> best = in[0];
#pragma unroll
    for (int at = 1; at < 4; ++at)
#pragma unroll
      for (int k = 0; k < V; ++k) best.v[k] = which.v[k] == at ? in[at].v[k] : best.v[k];
#pragma unroll
    for (int k = 0; k < V; ++k) g.v[k] = pooled ? A::gradient(normal.of(best.v[k], k), g.v[k]) : 0.0f;
#pragma unroll
    for (int at = 0; at < 4; ++at) {
#pragma unroll
      for (int k = 0; k < V; ++k) in[at].v[k] = slopes.of(normal, in[at].v[k], which.v[k] == at ? g.v[k] : 0.0f, k);
      if (at / 2 <= below && at % 2 <= right) store(gx + pixel(at), in[at]);
    }
  }
}

// gx = gamma * inv_std * (g - gbeta / pixels - (x - mean) * inv_std * ggamma / pixels); g is gy of the window, as the activation
// passes it on, for the pixel that won it, and 0 for the others and for those that no window has.
// Threads: as above, windows that h and w cut off included.
// Traffic: one read of x and one write of gx; for a quarter as many elements a read of gy and of a byte.
// Numerics: the mean is subtracted first, so that a large one costs no digits.
// Registers: at most 80.
template <class T>
__global__ void __launch_bounds__(256, 3)
    batch_norm2d_pool_bwd(const T* __restrict__ x, const float* __restrict__ mean, const float* __restrict__ inv_std,
                          const float* __restrict__ gamma, const float* __restrict__ beta,
                          const float* __restrict__ ggamma, const float* __restrict__ gbeta, const T* __restrict__ gy,
                          const unsigned char* __restrict__ place, T* __restrict__ gx, BatchNorm2dPoolDims d) {
  with_activation<T>(d.activation, [&](auto f) {
    with_width<4>(
        d, [&](auto width) { spread(width, f, x, mean, inv_std, gamma, beta, ggamma, gbeta, gy, place, gx, d); }, x, gy,
        place, gx);
  });
}

template <int V, class A, class T>
__device__ __forceinline__ void unpool(Width<V>, A, const T* x, const float* mean, const float* inv_std,
                                       const float* gamma, const float* beta, const float* ggamma, const float* gbeta,
                                       const T* gy, const unsigned char* place, T* to, const BatchNorm2dPoolDims& d) {
  const Share<V> my(d);
  if (my.first >= my.last) return;
  const Normal<V> normal(mean, inv_std, gamma, beta, my.c);
  const Slopes<V> slopes(normal, inv_std, ggamma, gbeta, my.c, d.inv_rows);
#pragma unroll 2
  for (int i = my.first; i < my.last; i += my.step) {
    const int from = i * d.c + my.c, first = Place(i, d).pixel * d.c + my.c;
    const Pack<float, V> v = load<V>(x + from), g = load<V>(gy + from);
    const Pack<unsigned char, V> which = *reinterpret_cast<const Pack<unsigned char, V>*>(place + from);
    Pack<float, V> gx;
#pragma unroll
    for (int k = 0; k < V; ++k) gx.v[k] = slopes.of(normal, v.v[k], A::gradient(normal.of(v.v[k], k), g.v[k]), k);
#pragma unroll
    for (int at = 0; at < 4; ++at) {
      Pack<float, V> out;
#pragma unroll
      for (int k = 0; k < V; ++k) out.v[k] = which.v[k] == at ? gx.v[k] : 0.0f;
      store(to + first + (at / 2 * d.w + at % 2) * d.c, out);
    }
  }
}

// The gradient of what a max-pool gave, as batch_norm2d_bwd_input computes it, at the pixels that won: to [n, h, w, c] with
// h = 2·ho and w = 2·wo, of x, gy and place [n, ho, wo, c]. Where the place is none of the window's four, ReLU came before the
// max-pool and lets nothing through.
// Threads: as above.
// Traffic: one read of x, of gy and of a byte, and a write of four times as many elements.
// Numerics: those of batch_norm2d_bwd_input and max_pool2d_bwd, one after the other.
// Registers: at most 80.
template <class T>
__global__ void __launch_bounds__(256, 3)
    batch_norm2d_pool_spread(const T* __restrict__ x, const float* __restrict__ mean, const float* __restrict__ inv_std,
                             const float* __restrict__ gamma, const float* __restrict__ beta,
                             const float* __restrict__ ggamma, const float* __restrict__ gbeta,
                             const T* __restrict__ gy, const unsigned char* __restrict__ place, T* __restrict__ to,
                             BatchNorm2dPoolDims d) {
  with_activation<T>(d.activation, [&](auto f) {
    with_width<4>(
        d, [&](auto width) { unpool(width, f, x, mean, inv_std, gamma, beta, ggamma, gbeta, gy, place, to, d); }, x, gy,
        place, to);
  });
}
