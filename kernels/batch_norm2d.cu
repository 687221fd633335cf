// Batch normalisation over (n, h, w), one mean and variance per channel.
//
// Seen as a matrix x [rows, c] with rows = n*h*w. Statistics over the rows take two kernels: blocks
// reduce a range of rows each to one partial result a channel, then a block a channel merges those. Few rows, which fit the
// registers of a block, are treated in batch_norm2d_whole.cu, and a max-pool behind it in batch_norm2d_pool.cu.
//
// An activation behind it costs no pass of its own: it is applied as y is written, and its gradient, for which what it was
// applied to is computed again, as gy is read. Nor does a sum with another tensor, as at the end of a residual block, before or
// behind the activation; behind it ReLU alone, whose gradient takes y.
// Instances: T = float, half, bf16
#include "batch_norm2d.cuh"

struct BatchNorm2dDims {
  int rows, c;       // x [rows, c]
  int tile;          // channels that a block treats, at most 128, or 256 where a thread has eight
  int chunk;         // rows that a block treats
  int ranges;        // ceil(rows / chunk)
  float keep, take;  // 1 - momentum, momentum
  float unbias;      // rows / (rows - 1)
  float eps;         // added to the variance
  float inv_rows;    // 1 / rows; 0 in evaluation, where the statistics are constants
  int activation;    // its number, or 0 for none: activation.cuh
  int of_sum;        // 1: the activation is of the sum with `plus`; 0: it comes before that
  int x_is_relu;     // 1: gx is what ReLU, which made x, passes on
};

// use(place, v) with what N arrays have there, for each of the thread's rows in order. Several rows are loaded before the
// first is used: with one at a time the memory would wait for the threads.
template <int V, int N, class T, class Use>
__device__ __forceinline__ void for_rows(const Share<V>& my, const BatchNorm2dDims& d, const T* const (&from)[N],
                                         Use use) {
  constexpr int FIT = 64 / (N * V * sizeof(T)), AHEAD = FIT < 4 ? FIT : 4;  // at most 64 bytes
  for (int row = my.first; row < my.last; row += AHEAD * my.step) {
    Pack<T, V> ahead[AHEAD][N];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const int r = row + k * my.step;
        if (r < my.last) ahead[k][i] = *reinterpret_cast<const Pack<T, V>*>(from[i] + r * d.c + my.c);
      }
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      const int r = row + k * my.step;
      if (r >= my.last) break;
      Pack<float, V> v[N];
#pragma unroll
      for (int i = 0; i < N; ++i) v[i] = to_floats(ahead[k][i]);
      use(r * d.c + my.c, v);
    }
  }
}

// What the second of two sets of values counts for in those of both, and what the square of the difference of their means
// does. Source: Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
struct Weights {
  float second, square;
  __device__ __forceinline__ Weights(float n, float o) : second(o / (n + o)), square(n * o / (n + o)) {}
};

// Mean and sum of squared deviations of some values.
struct __align__(8) Deviations {
  float mean, m2;
  // Of the values of both.
  __device__ __forceinline__ void add(Deviations o, Weights w) {
    float delta = o.mean - mean;
    mean += delta * w.second;
    m2 += o.m2 + delta * delta * w.square;
  }
};

// Sums of gy and of gy * (x - mean).
struct __align__(8) Sums {
  float gy, gyx;
  __device__ __forceinline__ void add(Sums o) {
    gy += o.gy;
    gyx += o.gyx;
  }
};

// Merges what the groups of a block have for their channels, in a tree: `add(thread)` adds what that thread has put to this
// one's, which `put()` puts into shared memory. The first group has the result.
template <int V, class Put, class Add>
__device__ __forceinline__ void merge_groups(const Share<V>& my, Put put, Add add) {
  put();
  for (int half = 1; half < my.step; half *= 2) {
    __syncthreads();
    if (my.group % (2 * half) == 0 && my.group + half < my.step) {
      add(threadIdx.x + half * my.lanes);
      put();
    }
  }
}

// use(range, k) for each of the ranges that a thread merges, its k-th: at most eight, as there are at most 1024 ranges.
constexpr int MERGED = 8;
template <class Use>
__device__ __forceinline__ void for_ranges(const BatchNorm2dDims& d, Use use) {
#pragma unroll
  for (int k = 0; k < MERGED; ++k) {
    const int range = threadIdx.x + k * blockDim.x;
    if (range < d.ranges) use(range, k);
  }
}

// The sum of v over a block of at most four warps, for all its threads; all call it, with four floats for each call.
__device__ __forceinline__ float few_warps_sum(float v, float* of_warps) {
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = v;
  __syncthreads();
  float total = of_warps[0];
#pragma unroll
  for (int w = 1; w < 4; ++w)
    if (32 * w < blockDim.x) total += of_warps[w];
  return total;
}

template <int V, class T>
__device__ __forceinline__ void moments(Width<V>, const T* x, Deviations (*groups)[256], float* counts, float* part,
                                        const BatchNorm2dDims& d) {
  Share<V> my(d);
  // Sums about the thread's first value. It is one of the values, so (shift - mean)^2 is at most n
  // times their variance: a large mean costs no digits.
  float shift[V] = {}, sum[V] = {}, squares[V] = {};
  if (my.first < my.last) {
    Pack<float, V> v = load<V>(x + my.first * d.c + my.c);
#pragma unroll
    for (int k = 0; k < V; ++k) shift[k] = v.v[k];
  }
  float n = 0.0f;
  for_rows(my, d, {x}, [&](int, const Pack<float, V>(&v)[1]) {
    n += 1.0f;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      float delta = v[0].v[k] - shift[k];
      sum[k] += delta;
      squares[k] += delta * delta;
    }
  });
  Deviations mine[V] = {};
  if (n > 0.0f) {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      float mean = sum[k] / n;
      mine[k] = {shift[k] + mean, squares[k] - sum[k] * mean};
    }
  }
  const auto put = [&] {
    counts[threadIdx.x] = n;
#pragma unroll
    for (int k = 0; k < V; ++k) groups[k][threadIdx.x] = mine[k];
  };
  merge_groups(my, put, [&](int thread) {
    // The same for all channels: divisions cost much.
    const float others = counts[thread];
    if (others == 0.0f) return;
    const Weights weights(n, others);
#pragma unroll
    for (int k = 0; k < V; ++k) mine[k].add(groups[k][thread], weights);
    n += others;
  });
  if (my.group > 0 || my.c >= d.c) return;
  Deviations* out = reinterpret_cast<Deviations*>(part) + my.c * d.ranges + blockIdx.x;
#pragma unroll
  for (int k = 0; k < V; ++k) out[k * d.ranges] = mine[k];
}

// part[c, ranges] = mean and sum of squared deviations of x over each range of rows.
// Threads: a block has `tile` channels of `chunk` rows; a thread 16 bytes of channels (four or one where c is no multiple of
// those) of every so many rows. Neighbours along the channels, then along the rows.
// Traffic: one read of x.
// Launch: grid (ranges, ceil(c / tile)) of 256; 9216 bytes of shared memory, of two-byte elements 17408.
// Numerics: sums about the thread's first value, merged by Chan's formula in a fixed order.
// Limits: rows * c < 2^31.
// Registers: at most 64.
template <class T>
__global__ void __launch_bounds__(256, 4)
    batch_norm2d_fwd_part(const T* __restrict__ x, float* __restrict__ part, BatchNorm2dDims d) {
  SHARED(Deviations, groups, [16 / sizeof(T)][256]);
  SHARED(float, counts, [256]);
  with_width<16 / sizeof(T)>(d, [&](auto width) { moments(width, x, groups, counts, part, d); }, x);
}

// mean and inv_std = 1 / sqrt(var + eps) of the batch from the partial moments, and the step of the
// running statistics: running = keep * running + take * batch, with the unbiased variance.
// Threads: a block for a channel, a thread at most eight ranges, which it keeps in registers.
// Traffic: one read of the partial moments.
// Launch: grid c of 128, or of 32 where that is enough for the ranges; 32 bytes of shared memory.
// Numerics: the mean about the first range's, then the squares about the mean, summed in a fixed order: a merge in pairs by
// Chan's formula divides twice for each.
// Limits: ranges <= 1024, ranges * c < 2^31.
// Registers: at most 48.
__global__ void __launch_bounds__(128)
    batch_norm2d_fwd_merge(const float* __restrict__ part, float* __restrict__ mean, float* __restrict__ inv_std,
                           float* __restrict__ running_mean, float* __restrict__ running_var, BatchNorm2dDims d) {
  SHARED(float, of_warps, [2][4]);
  const int c = blockIdx.x;
  const Deviations* ranges = reinterpret_cast<const Deviations*>(part) + c * d.ranges;
  const auto count = [&](int range) { return (float)min(d.chunk, d.rows - range * d.chunk); };
  Deviations mine[MERGED];
  for_ranges(d, [&](int range, int k) { mine[k] = ranges[range]; });
  const float shift = ranges[0].mean;
  float sum = 0.0f, squares = 0.0f;
  for_ranges(d, [&](int range, int k) { sum += count(range) * (mine[k].mean - shift); });
  const float all = shift + few_warps_sum(sum, of_warps[0]) / d.rows;
  for_ranges(d, [&](int range, int k) {
    const float delta = mine[k].mean - all;
    squares += mine[k].m2 + count(range) * delta * delta;
  });
  squares = few_warps_sum(squares, of_warps[1]);
  if (threadIdx.x == 0) {
    mean[c] = all;
    inv_std[c] = keep_statistics(c, all, squares / d.rows, running_mean, running_var, d);
  }
}

// mean and inv_std from the running statistics, for evaluation.
// Threads: one for a channel, neighbours side by side.
// Traffic: two reads and two writes a channel.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: two roundings.
// Limits: c < 2^31.
// Registers: at most 32.
__global__ void __launch_bounds__(256)
    batch_norm2d_fwd_eval(const float* __restrict__ running_mean, const float* __restrict__ running_var,
                          float* __restrict__ mean, float* __restrict__ inv_std, BatchNorm2dDims d) {
  FOR_EACH(c, d.c) {
    mean[c] = running_mean[c];
    inv_std[c] = 1.0f / sqrtf(running_var[c] + d.eps);
  }
}

template <int V, class A, class T>
__device__ __forceinline__ void normalise(Width<V>, A, const T* x, const T* plus, const float* mean,
                                          const float* inv_std, const float* gamma, const float* beta, T* y,
                                          const BatchNorm2dDims& d) {
  Share<V> my(d);
  if (my.first >= my.last) return;
  const Normal<V> normal(mean, inv_std, gamma, beta, my.c);
  if (plus) {
    for_rows(my, d, {x, plus}, [&](int at, const Pack<float, V>(&v)[2]) {
      Pack<float, V> out;
#pragma unroll
      for (int k = 0; k < V; ++k) out.v[k] = sum_of<A>(normal.of(v[0].v[k], k), v[1].v[k], d.of_sum);
      store(y + at, out);
    });
    return;
  }
  for_rows(my, d, {x}, [&](int at, const Pack<float, V>(&v)[1]) {
    Pack<float, V> out;
#pragma unroll
    for (int k = 0; k < V; ++k) out.v[k] = A::of(normal.of(v[0].v[k], k));
    store(y + at, out);
  });
}

// y = f((x - mean) * (gamma * inv_std) + beta) with the activation f; where there is `plus`, that is added, or f is of the sum.
// Threads: as in batch_norm2d_fwd_part, but four channels at most (with eight of two bytes it takes 9 % longer); a thread keeps
// its channels' constants in registers.
// Traffic: one read of x, and of `plus`, and one write of y.
// Launch: grid (ranges, ceil(c / tile)) of 256; no shared memory.
// Numerics: the mean is subtracted first, so that a large one costs no digits; one rounding.
// Limits: rows * c < 2^31.
// Registers: at most 64.
template <class T>
__global__ void __launch_bounds__(256)
    batch_norm2d_fwd(const T* __restrict__ x, OPTIONAL const T* __restrict__ plus, const float* __restrict__ mean,
                     const float* __restrict__ inv_std, const float* __restrict__ gamma, const float* __restrict__ beta,
                     T* __restrict__ y, BatchNorm2dDims d) {
  with_activation<T>(d.activation, [&](auto f) {
    with_width<4>(d, [&](auto width) { normalise(width, f, x, plus, mean, inv_std, gamma, beta, y, d); }, x, plus, y);
  });
}

// The sums of a block over what `gradient(place, v, k)` makes of a channel of several arrays, the first of which is x, which has
// the mean `centre`.
template <int V, int N, class T, class Gradient>
__device__ __forceinline__ void sums(const Share<V>& my, const T* const (&from)[N], const float (&centre)[V],
                                     Gradient gradient, Sums (*groups)[256], float* part, const BatchNorm2dDims& d) {
  Sums mine[V] = {};
  for_rows(my, d, from, [&](int at, const Pack<float, V>(&v)[N]) {
    const Pack<float, V> g = gradient(at, v);
#pragma unroll
    for (int k = 0; k < V; ++k) mine[k].add({g.v[k], g.v[k] * (v[0].v[k] - centre[k])});
  });
  const auto put = [&] {
#pragma unroll
    for (int k = 0; k < V; ++k) groups[k][threadIdx.x] = mine[k];
  };
  merge_groups(my, put, [&](int thread) {
#pragma unroll
    for (int k = 0; k < V; ++k) mine[k].add(groups[k][thread]);
  });
  if (my.group > 0 || my.c >= d.c) return;
  Sums* out = reinterpret_cast<Sums*>(part) + my.c * d.ranges + blockIdx.x;
#pragma unroll
  for (int k = 0; k < V; ++k) out[k * d.ranges] = mine[k];
}

template <int V, class A, class T>
__device__ __forceinline__ void sums_behind(Width<V>, A, const T* x, const T* gy, const float* mean,
                                            const float* inv_std, const float* gamma, const float* beta,
                                            Sums (*groups)[256], float* part, const BatchNorm2dDims& d) {
  const Share<V> my(d);
  // Threads without rows may have no channels.
  const Normal<V> normal(mean, inv_std, gamma, beta, my.first < my.last ? my.c : 0);
  const auto gradient = [&](int, const Pack<float, V>(&v)[2]) {
    Pack<float, V> g;
#pragma unroll
    for (int k = 0; k < V; ++k) g.v[k] = A::gradient(normal.of(v[0].v[k], k), v[1].v[k]);
    return g;
  };
  sums(my, {x, gy}, normal.centre, gradient, groups, part, d);
}

// part[c, ranges] = the sums of gy and of gy * (x - mean) over each range of rows; gy as the activation passes it on.
// Threads: as in batch_norm2d_fwd_part, but four channels of whatever type: eight would take twice the registers, and two
// arrays have as many bytes on their way.
// Traffic: one read of x and of gy.
// Launch: grid (ranges, ceil(c / tile)) of 256; 8192 bytes of shared memory.
// Numerics: by rows of a thread, then over threads in a fixed order.
template <class T>
__global__ void __launch_bounds__(256, 4)
    batch_norm2d_bwd_part(const T* __restrict__ x, const T* __restrict__ gy, const float* __restrict__ mean,
                          const float* __restrict__ inv_std, const float* __restrict__ gamma,
                          const float* __restrict__ beta, float* __restrict__ part, BatchNorm2dDims d) {
  SHARED(Sums, groups, [4][256]);
  with_activation<T>(d.activation, [&](auto f) {
    with_width<4>(
        d, [&](auto width) { sums_behind(width, f, x, gy, mean, inv_std, gamma, beta, groups, part, d); }, x, gy);
  });
}

template <int V, class T>
__device__ __forceinline__ void sums_of_masked(Width<V>, const T* x, const T* gy, const T* y, const float* mean, T* g,
                                               Sums (*groups)[256], float* part, const BatchNorm2dDims& d) {
  const Share<V> my(d);
  float centre[V];
#pragma unroll
  for (int k = 0; k < V; ++k) centre[k] = mean[(my.first < my.last ? my.c : 0) + k];
  const auto masked = [&](int at, const Pack<float, V>(&v)[3]) {
    const Pack<float, V> passed = map_pack<V>([](float y, float gy) { return Relu::gradient(y, gy); }, v[2], v[1]);
    store(g + at, passed);
    return passed;
  };
  sums(my, {x, gy, y}, centre, masked, groups, part, d);
}

// g = gy where y > 0, else 0, and `part` as above of that: what y was made of, by a sum and ReLU of it, has the gradient g.
// Traffic: one read of x, gy and y and one write of g.
template <class T>
__global__ void __launch_bounds__(256, 4)
    batch_norm2d_bwd_part_masked(const T* __restrict__ x, const T* __restrict__ gy, const T* __restrict__ y,
                                 const float* __restrict__ mean, T* __restrict__ g, float* __restrict__ part,
                                 BatchNorm2dDims d) {
  SHARED(Sums, groups, [4][256]);
  with_width<4>(d, [&](auto width) { sums_of_masked(width, x, gy, y, mean, g, groups, part, d); }, x, gy, y, g);
}

// ggamma = sum of gy * (x - mean) * inv_std and gbeta = sum of gy, from the partial sums.
// Threads: a block for a channel, a thread at most eight ranges.
// Traffic: one read of the partial sums.
// Launch: grid c of 128, or of 32 where that is enough for the ranges; 32 bytes of shared memory.
// Numerics: in a fixed order.
// Limits: ranges <= 1024, ranges * c < 2^31.
// Registers: at most 48.
__global__ void __launch_bounds__(128)
    batch_norm2d_bwd_merge(const float* __restrict__ part, const float* __restrict__ inv_std,
                           float* __restrict__ ggamma, float* __restrict__ gbeta, BatchNorm2dDims d) {
  SHARED(float, of_warps, [2][4]);
  const int c = blockIdx.x;
  const Sums* ranges = reinterpret_cast<const Sums*>(part) + c * d.ranges;
  Sums all = {};
  for_ranges(d, [&](int range, int) { all.add(ranges[range]); });
  const float gy = few_warps_sum(all.gy, of_warps[0]), gyx = few_warps_sum(all.gyx, of_warps[1]);
  if (threadIdx.x == 0) {
    ggamma[c] = gyx * inv_std[c];
    gbeta[c] = gy;
  }
}

template <int V, class A, class T>
__device__ __forceinline__ void input_gradient(Width<V>, A, const T* x, const float* mean, const float* inv_std,
                                               const float* gamma, const float* beta, const float* ggamma,
                                               const float* gbeta, const T* gy, T* gx, const BatchNorm2dDims& d) {
  Share<V> my(d);
  if (my.first >= my.last) return;
  const Normal<V> normal(mean, inv_std, gamma, beta, my.c);
  const Slopes<V> slopes(normal, inv_std, ggamma, gbeta, my.c, d.inv_rows);
  for_rows(my, d, {x, gy}, [&](int at, const Pack<float, V>(&v)[2]) {
    Pack<float, V> out;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const float gradient = A::gradient(normal.of(v[0].v[k], k), v[1].v[k]);
      out.v[k] = slopes.of(normal, v[0].v[k], gradient, k);
      if (d.x_is_relu) out.v[k] = Relu::gradient(v[0].v[k], out.v[k]);
    }
    store(gx + at, out);
  });
}

// gx = gamma * inv_std * (gy - gbeta / rows - (x - mean) * inv_std * ggamma / rows), gy as the activation passes it on. In
// evaluation inv_rows is 0 and the last two terms with it. Where ReLU made x, what that passes on.
// Threads: as in batch_norm2d_bwd_part; a thread keeps its channels' constants in registers.
// Traffic: one read of x and of gy and one write of gx.
// Launch: grid (ranges, ceil(c / tile)) of 256; no shared memory.
// Numerics: the mean is subtracted first, so that a large one costs no digits.
// Limits: rows * c < 2^31.
// Registers: at most 72.
template <class T>
__global__ void __launch_bounds__(256)
    batch_norm2d_bwd_input(const T* __restrict__ x, const float* __restrict__ mean, const float* __restrict__ inv_std,
                           const float* __restrict__ gamma, const float* __restrict__ beta,
                           const float* __restrict__ ggamma, const float* __restrict__ gbeta, const T* __restrict__ gy,
                           T* __restrict__ gx, BatchNorm2dDims d) {
  with_activation<T>(d.activation, [&](auto f) {
    with_width<4>(
        d, [&](auto width) { input_gradient(width, f, x, mean, inv_std, gamma, beta, ggamma, gbeta, gy, gx, d); }, x,
        gy, gx);
  });
}
