// Batch normalisation, an activation and a max-pool of 3x3 with a stride of 2 and a padding of 1 in one pass, as a ResNet begins:
// what is pooled is never stored.
//
// As in batch_norm2d_pool.cu; but windows overlap, and a pixel can win up to four. A window has the 2x2 pixels from its middle on
// for a cell, which no other has.
// Instances: T = float, half, bf16
#include "batch_norm2d_pool.cuh"

// Blocks on a multiprocessor: as many as registers allow. For sm_75, sm_100 and sm_120 the compiler would spill with three.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 1000
template <class T>
constexpr int BLOCKS = sizeof(T) == 2 ? 3 : 2;
#else
template <class T>
constexpr int BLOCKS = 2;
#endif

template <int V, class A, class T>
__device__ __forceinline__ void pool_overlapping(Width<V>, A, const T* x, const float* mean, const float* inv_std,
                                                 const float* gamma, const float* beta, T* y, T* won,
                                                 unsigned char* place, const BatchNorm2dPoolDims& d) {
  const Share<V> my(d);
  if (my.first >= my.last) return;
  const Normal<V> normal(mean, inv_std, gamma, beta, my.c);
  for (int i = my.first; i < my.last; i += my.step) {
    const Place window(i, d);
    // A place in the padding is taken for the nearest that is not, which is seen twice then and wins as itself.
    const auto row = [&](int r) { return min(max(r, 1 - 2 * window.p), d.h - 2 * window.p); };
    const auto column = [&](int s) { return min(max(s, 1 - 2 * window.q), d.w - 2 * window.q); };
    const auto place_of = [&](int at) { return row(at / 3) * 3 + column(at % 3); };
    Pack<T, V> in[9];
#pragma unroll
    for (int at = 0; at < 9; ++at) {
      const int pixel = window.pixel + (row(at / 3) - 1) * d.w + column(at % 3) - 1;
      in[at] = *reinterpret_cast<const Pack<T, V>*>(x + pixel * d.c + my.c);
    }
    // Rounded as it would be stored, so that those are equal that would be equal then.
    const auto stored = [&](int at) {
      Pack<float, V> v = to_floats(in[at]);
#pragma unroll
      for (int k = 0; k < V; ++k) v.v[k] = to_float(from_float<T>(A::of(normal.of(v.v[k], k))));
      return v;
    };
    Largest<V> found(stored(0), place_of(0));
#pragma unroll
    for (int at = 1; at < 9; ++at) found.see(stored(at), place_of(at));
    Pack<T, V> best = in[0];
    Pack<unsigned char, V> which;
#pragma unroll
    for (int k = 0; k < V; ++k) which.v[k] = found.place[k];
#pragma unroll
    for (int at = 1; at < 9; ++at)
#pragma unroll
      for (int k = 0; k < V; ++k) best.v[k] = found.place[k] == place_of(at) ? in[at].v[k] : best.v[k];
    const int to = i * d.c + my.c;
    store(y + to, found.value);
    *reinterpret_cast<Pack<T, V>*>(won + to) = best;
    *reinterpret_cast<Pack<unsigned char, V>*>(place + to) = which;
  }
}

// y[n, p, q, c] = the largest of f((x - mean) * (gamma * inv_std) + beta) in the window of 3x3 about x[n, 2p, 2q, c], with the
// activation f; what x was there, and the place in the window: the first of equal values, NaN over all.
// Threads: a block has `tile` channels of `chunk` windows; a thread four channels (one where c is no multiple) of every so many
//     windows. Neighbours along the channels, then along the windows.
// Traffic: nine reads of x a window, which come from memory once; for a quarter as many elements as x has a write of y, of x and
//     of a byte.
// Launch: grid (ceil(c / tile), ceil(windows / chunk)) of 256; no shared memory.
// Numerics: the mean is subtracted first; rounded to T before it is compared.
// Limits: elements of x < 2^31.
// Registers: at most 128, of three blocks 80.
template <class T>
__global__ void __launch_bounds__(256, BLOCKS<T>)
    batch_norm2d_overlap_fwd(const T* __restrict__ x, const float* __restrict__ mean, const float* __restrict__ inv_std,
                             const float* __restrict__ gamma, const float* __restrict__ beta, T* __restrict__ y,
                             T* __restrict__ won, unsigned char* __restrict__ place, BatchNorm2dPoolDims d) {
  with_activation<T>(d.activation, [&](auto f) {
    with_width<4>(
        d, [&](auto width) { pool_overlapping(width, f, x, mean, inv_std, gamma, beta, y, won, place, d); }, x, y, won,
        place);
  });
}

template <int V, class A, class T>
__device__ __forceinline__ void spread_overlapping(Width<V>, A, const T* x, const float* mean, const float* inv_std,
                                                   const float* gamma, const float* beta, const float* ggamma,
                                                   const float* gbeta, const T* gy, const unsigned char* place, T* gx,
                                                   const BatchNorm2dPoolDims& d) {
  const Share<V> my(d);
  if (my.first >= my.last) return;
  const Normal<V> normal(mean, inv_std, gamma, beta, my.c);
  const Slopes<V> slopes(normal, inv_std, ggamma, gbeta, my.c, d.inv_rows);
  for (int i = my.first; i < my.last; i += my.step) {
    const Place window(i, d);
    // Windows and pixels that are not there are read as the nearest, so that no load waits for a branch.
    const int down = window.p + 1 < d.ho, across = window.q + 1 < d.wo;
    const int below = 2 * window.p + 1 < d.h, right = 2 * window.q + 1 < d.w;
    Pack<T, V> in[4], g[4];
    Pack<unsigned char, V> won[4];
#pragma unroll
    for (int at = 0; at < 4; ++at) {
      const int from = (i + (at / 2 & down) * d.wo + (at % 2 & across)) * d.c + my.c;
      g[at] = *reinterpret_cast<const Pack<T, V>*>(gy + from);
      won[at] = *reinterpret_cast<const Pack<unsigned char, V>*>(place + from);
      const int pixel = window.pixel + (at / 2 & below) * d.w + (at % 2 & right);
      in[at] = *reinterpret_cast<const Pack<T, V>*>(x + pixel * d.c + my.c);
    }
#pragma unroll
    for (int at = 0; at < 4; ++at) {
      const Pack<float, V> v = to_floats(in[at]);
      Pack<float, V> sum = {}, out;
      // Of the windows that have the pixel, in their order: it is further up and left in those below and to the right.
#pragma unroll
      for (int of = 0; of < 4; ++of) {
        const int r = at / 2 + 1 - 2 * (of / 2), s = at % 2 + 1 - 2 * (of % 2);
        if (r < 0 || s < 0) continue;
        const bool there = (of / 2 <= down) && (of % 2 <= across);
#pragma unroll
        for (int k = 0; k < V; ++k) sum.v[k] += there && won[of].v[k] == 3 * r + s ? to_float(g[of].v[k]) : 0.0f;
      }
#pragma unroll
      for (int k = 0; k < V; ++k) out.v[k] = slopes.of(normal, v.v[k], A::gradient(normal.of(v.v[k], k), sum.v[k]), k);
      const int pixel = window.pixel + at / 2 * d.w + at % 2;
      if (at / 2 <= below && at % 2 <= right) store(gx + pixel * d.c + my.c, out);
    }
  }
}

// gx = gamma * inv_std * (g - gbeta / pixels - (x - mean) * inv_std * ggamma / pixels); g is what the activation passes on of the
// sum of gy over those windows that the pixel won.
// Threads: as above, a cell each.
// Traffic: one read of x and one write of gx; for a quarter as many elements four reads of gy and of a byte, which come from memory
//     once.
// Numerics: the mean is subtracted first, so that a large one costs no digits; gradients of up to four windows are added in their
//     order, and not rounded.
// Registers: at most 128, of three blocks 80.
template <class T>
__global__ void __launch_bounds__(256, BLOCKS<T>)
    batch_norm2d_overlap_bwd(const T* __restrict__ x, const float* __restrict__ mean, const float* __restrict__ inv_std,
                             const float* __restrict__ gamma, const float* __restrict__ beta,
                             const float* __restrict__ ggamma, const float* __restrict__ gbeta,
                             const T* __restrict__ gy, const unsigned char* __restrict__ place, T* __restrict__ gx,
                             BatchNorm2dPoolDims d) {
  with_activation<T>(d.activation, [&](auto f) {
    with_width<4>(
        d,
        [&](auto width) {
          spread_overlapping(width, f, x, mean, inv_std, gamma, beta, ggamma, gbeta, gy, place, gx, d);
        },
        x, gy, place, gx);
  });
}
