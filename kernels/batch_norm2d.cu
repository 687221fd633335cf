// Batch normalisation over (n, h, w), one mean and variance per channel.
//
// Seen as a matrix x [rows, c] with rows = n*h*w. Statistics over the rows take two kernels: blocks
// reduce a range of rows each to one partial result a channel, then a block a channel merges those. Few rows, which fit the
// registers of a block, are treated in batch_norm2d_whole.cu, and a max-pool behind it in batch_norm2d_pool.cu and
// batch_norm2d_overlap.cu.
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

// use(place, v) with what N arrays have there, for each of the thread's rows in order, and begin(v) before the first. Several rows
// are loaded before the first is used: with one at a time the memory would wait for the threads.
template <int V, int N, class T, class Use, class Begin>
__device__ __forceinline__ void for_rows(const Share<V>& my, const BatchNorm2dDims& d, const T* const (&from)[N],
                                         Use use, Begin begin) {
  constexpr int FIT = 64 / (N * V * sizeof(T)), AHEAD = FIT < 4 ? FIT : 4;  // at most 64 bytes
  for (int row = my.first; row < my.last; row += AHEAD * my.step) {
    Pack<T, V> ahead[AHEAD][N];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const int r = row + k * my.step;
        if (r < my.last) ahead[k][i] = *reinterpret_cast<const Pack<T, V>*>(from[i] + (r * d.c + my.c));
      }
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      const int r = row + k * my.step;
      if (r >= my.last) break;
      Pack<float, V> v[N];
#pragma unroll
      for (int i = 0; i < N; ++i) v[i] = to_floats(ahead[k][i]);
      if (k == 0 && row == my.first) begin(v);
      use(r * d.c + my.c, v);
    }
  }
}
template <int V, int N, class T, class Use>
__device__ __forceinline__ void for_rows(const Share<V>& my, const BatchNorm2dDims& d, const T* const (&from)[N],
                                         Use use) {
  for_rows(my, d, from, use, [](const Pack<float, V>(&)[N]) {});
}

// Two sums over rows.
struct Sums {
  float first, second;
};

// What the sums of a block's groups come to for each of its channels: a thread has a channel, at first of every so many groups.
// Those below `tile` return that of the channel of their number. Takes 512 * V floats of shared memory.
template <int V>
__device__ __forceinline__ Sums merge_groups(const Share<V>& my, const BatchNorm2dDims& d, const Pack<float, V>& first,
                                             const Pack<float, V>& second, float* shared) {
  float *of_first = shared, *of_second = shared + 256 * V;
  store(of_first + V * threadIdx.x, first);
  store(of_second + V * threadIdx.x, second);
  __syncthreads();
  // threadIdx.x / tile, and how many of those are whole.
  const int part = my.group / V, parts = min(my.step / V, 16), channel = threadIdx.x - part * d.tile;
  // The sums of the sets begin, begin + step, ... below end; V at a time, whose loads wait together.
  const auto sum = [&](int begin, int end, int step) {
    Sums all = {};
#pragma unroll 1
    for (int set = begin; set < end; set += V * step) {
      Sums some[V] = {};
#pragma unroll
      for (int k = 0; k < V; ++k)
        if (set + k * step < end) {
          const int at = (set + k * step) * d.tile + channel;
          some[k] = {of_first[at], of_second[at]};
        }
#pragma unroll
      for (int k = 0; k < V; ++k) {
        all.first += some[k].first;
        all.second += some[k].second;
      }
    }
    return all;
  };
  Sums mine = {};
  if (part < parts) mine = sum(part, my.step, parts);
  if (parts == 1) return mine;
  __syncthreads();
  if (part < parts) {
    of_first[threadIdx.x] = mine.first;
    of_second[threadIdx.x] = mine.second;
  }
  __syncthreads();
  return part == 0 ? sum(0, parts, 1) : mine;
}

// The range of rows that a block sums up: the last comes first, as the L2 cache has what was written last, and in the end what the
// pass over the elements begins with.
__device__ __forceinline__ int range_of_sums(const BatchNorm2dDims& d) { return d.ranges - 1 - (int)blockIdx.y; }

// Two numbers that its range has for a channel, into part[c, ranges]: of each of the block's channels a thread has them.
__device__ __forceinline__ void store_part(float* part, float first, float second, const BatchNorm2dDims& d) {
  const int c = blockIdx.x * d.tile + threadIdx.x;
  if (threadIdx.x >= d.tile || c >= d.c) return;
  reinterpret_cast<Pack<float, 2>*>(part)[c * d.ranges + range_of_sums(d)] = {first, second};
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
__device__ __forceinline__ void moments(Width<V>, const T* x, float* shared, float* part, const BatchNorm2dDims& d) {
  const int range = range_of_sums(d);
  const Share<V> my(d, range);
  // Sums about the thread's first value. It is one of the values, so (shift - mean)^2 is at most n
  // times their variance: a large mean costs no digits.
  Pack<float, V> shift = {}, sum = {}, squares = {};
  float n = 0.0f;
  for_rows(
      my, d, {x},
      [&](int, const Pack<float, V>(&v)[1]) {
        n += 1.0f;
#pragma unroll
        for (int k = 0; k < V; ++k) {
          const float delta = v[0].v[k] - shift.v[k];
          sum.v[k] += delta;
          squares.v[k] += delta * delta;
        }
      },
      [&](const Pack<float, V>(&v)[1]) { shift = v[0]; });
  // Those of all threads about the mean of the first group's rows, so that they can be added.
  float* centres = shared + 512 * V;
  if (my.group == 0) {
    const float by_n = 1.0f / fmaxf(n, 1.0f);
    store(centres + V * threadIdx.x,
          map_pack<V>([&](float shift, float sum) { return shift + sum * by_n; }, shift, sum));
  }
  __syncthreads();
  const Pack<float, V> centre = load<V>(centres + (my.c - blockIdx.x * d.tile));
#pragma unroll
  for (int k = 0; k < V; ++k) {
    const float far = shift.v[k] - centre.v[k], about_shift = sum.v[k];
    sum.v[k] += n * far;
    squares.v[k] += far * (about_shift + sum.v[k]);
  }
  const Sums all = merge_groups(my, d, sum, squares, shared);
  if (threadIdx.x >= d.tile) return;
  const float far = all.first / min(d.chunk, d.rows - range * d.chunk);
  store_part(part, centres[threadIdx.x] + far, all.second - all.first * far, d);
}

// part[c, ranges] = mean and sum of squared deviations of x over each range of rows.
// Threads: a block has `tile` channels of `chunk` rows; a thread 16 bytes of channels (four or one where c is no multiple of
// those) of every so many rows. Neighbours along the channels, then along the rows.
// Traffic: one read of x.
// Launch: grid (ceil(c / tile), ranges) of 256; 8704 bytes of shared memory, of two-byte elements 17408.
// Numerics: sums about the thread's first value, then about the mean of the first few rows, added in a fixed order.
// Limits: rows * c < 2^31.
// Registers: at most 64.
template <class T>
__global__ void __launch_bounds__(256, 4)
    batch_norm2d_fwd_part(const T* __restrict__ x, float* __restrict__ part, BatchNorm2dDims d) {
  constexpr int V = 16 / sizeof(T);
  using Floats = Pack<float, V>;
  SHARED(Floats, shared, [512 + 32]);
  with_width<V>(d, [&](auto width) { moments(width, x, shared->v, part, d); }, x);
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
  const Running running(running_mean, running_var, c, true);
  const Pack<float, 2>* ranges = reinterpret_cast<const Pack<float, 2>*>(part) + c * d.ranges;
  const auto count = [&](int range) { return (float)min(d.chunk, d.rows - range * d.chunk); };
  Pack<float, 2> mine[MERGED];  // mean and sum of squared deviations
  for_ranges(d, [&](int range, int k) { mine[k] = ranges[range]; });
  const float shift = ranges[0].v[0];
  float sum = 0.0f, squares = 0.0f;
  for_ranges(d, [&](int range, int k) { sum += count(range) * (mine[k].v[0] - shift); });
  const float all = shift + few_warps_sum(sum, of_warps[0]) / d.rows;
  for_ranges(d, [&](int range, int k) {
    const float delta = mine[k].v[0] - all;
    squares += mine[k].v[1] + count(range) * delta * delta;
  });
  squares = few_warps_sum(squares, of_warps[1]);
  if (threadIdx.x == 0) {
    const float var = squares / d.rows;
    mean[c] = all;
    inv_std[c] = 1.0f / sqrtf(var + d.eps);
    running.keep(running_mean, running_var, c, all, var, d);
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
// Launch: grid (ceil(c / tile), ranges) of 256; no shared memory.
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
                                     Gradient gradient, float* shared, float* part, const BatchNorm2dDims& d) {
  Pack<float, V> gy = {}, gyx = {};
  for_rows(my, d, from, [&](int at, const Pack<float, V>(&v)[N]) {
    const Pack<float, V> g = gradient(at, v);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      gy.v[k] += g.v[k];
      gyx.v[k] += g.v[k] * (v[0].v[k] - centre[k]);
    }
  });
  const Sums all = merge_groups(my, d, gy, gyx, shared);
  store_part(part, all.first, all.second, d);
}

template <int V, class A, class T>
__device__ __forceinline__ void sums_behind(Width<V>, A, const T* x, const T* gy, const float* mean,
                                            const float* inv_std, const float* gamma, const float* beta, float* shared,
                                            float* part, const BatchNorm2dDims& d) {
  const Share<V> my(d, range_of_sums(d));
  // Threads without rows may have no channels.
  const Normal<V> normal(mean, inv_std, gamma, beta, my.first < my.last ? my.c : 0);
  const auto gradient = [&](int, const Pack<float, V>(&v)[2]) {
    Pack<float, V> g;
#pragma unroll
    for (int k = 0; k < V; ++k) g.v[k] = A::gradient(normal.of(v[0].v[k], k), v[1].v[k]);
    return g;
  };
  sums(my, {x, gy}, normal.centre, gradient, shared, part, d);
}

// part[c, ranges] = the sums of gy and of gy * (x - mean) over each range of rows; gy as the activation passes it on.
// Threads: as in batch_norm2d_fwd_part, but four channels of whatever type: eight would take twice the registers, and two
// arrays have as many bytes on their way.
// Traffic: one read of x and of gy.
// Launch: grid (ceil(c / tile), ranges) of 256; 8192 bytes of shared memory.
// Numerics: by rows of a thread, then over threads in a fixed order.
template <class T>
__global__ void __launch_bounds__(256, 4)
    batch_norm2d_bwd_part(const T* __restrict__ x, const T* __restrict__ gy, const float* __restrict__ mean,
                          const float* __restrict__ inv_std, const float* __restrict__ gamma,
                          const float* __restrict__ beta, float* __restrict__ part, BatchNorm2dDims d) {
  SHARED(Four<float>, shared, [512]);
  with_activation<T>(d.activation, [&](auto f) {
    with_width<4>(
        d, [&](auto width) { sums_behind(width, f, x, gy, mean, inv_std, gamma, beta, shared->v, part, d); }, x, gy);
  });
}

template <int V, class T>
__device__ __forceinline__ void sums_of_masked(Width<V>, const T* x, const T* gy, const T* y, const float* mean, T* g,
                                               float* shared, float* part, const BatchNorm2dDims& d) {
  const Share<V> my(d, range_of_sums(d));
  float centre[V];
#pragma unroll
  for (int k = 0; k < V; ++k) centre[k] = mean[(my.first < my.last ? my.c : 0) + k];
  const auto masked = [&](int at, const Pack<float, V>(&v)[3]) {
    const Pack<float, V> passed = map_pack<V>([](float y, float gy) { return Relu::gradient(y, gy); }, v[2], v[1]);
    store(g + at, passed);
    return passed;
  };
  sums(my, {x, gy, y}, centre, masked, shared, part, d);
}

// g = gy where y > 0, else 0, and `part` as above of that: what y was made of, by a sum and ReLU of it, has the gradient g.
// Traffic: one read of x, gy and y and one write of g.
template <class T>
__global__ void __launch_bounds__(256, 4)
    batch_norm2d_bwd_part_masked(const T* __restrict__ x, const T* __restrict__ gy, const T* __restrict__ y,
                                 const float* __restrict__ mean, T* __restrict__ g, float* __restrict__ part,
                                 BatchNorm2dDims d) {
  SHARED(Four<float>, shared, [512]);
  with_width<4>(d, [&](auto width) { sums_of_masked(width, x, gy, y, mean, g, shared->v, part, d); }, x, gy, y, g);
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
  const float by = inv_std[c];  // now: nothing waits for it then
  const Pack<float, 2>* ranges = reinterpret_cast<const Pack<float, 2>*>(part) + c * d.ranges;
  float gy = 0.0f, gyx = 0.0f;
  for_ranges(d, [&](int range, int) {
    gy += ranges[range].v[0];
    gyx += ranges[range].v[1];
  });
  gy = few_warps_sum(gy, of_warps[0]);
  gyx = few_warps_sum(gyx, of_warps[1]);
  if (threadIdx.x == 0) {
    ggamma[c] = gyx * by;
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
// Launch: grid (ceil(c / tile), ranges) of 256; no shared memory.
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
