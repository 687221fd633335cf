// Batch normalisation of so few rows that a block has a channel's all at once: one launch forward and one backward, and x is
// read once. batch_norm2d.cu treats more rows, and evaluation.
//
// The sums over the rows are done one after the other, each in a fixed order: of x, then of squares about the mean. From sm_90 on
// the blocks of a cluster can share the rows of a channel, and exchange what they have of it: the grid's y.
// Instances: T = float, half, bf16
#include "batch_norm2d.cuh"
#include "hopper.cuh"

struct BatchNorm2dWholeDims {
  int rows, c;       // x [rows, c]
  float keep, take;  // 1 - momentum, momentum
  float unbias;      // rows / (rows - 1)
  float eps;         // added to the variance
  float inv_rows;    // 1 / rows
  int activation;    // its number, or 0 for none: activation.cuh
  int of_sum;        // 1: the activation is of the sum with `plus`; 0: it comes before that
  int x_is_relu;     // 1: gx is what ReLU, which made x, passes on
};

constexpr int MOST = 4;  // rows that a thread has (Rust: `WHOLE` in src/ops/batch_norm2d/cuda.rs)

// Whether the blocks of a cluster share the rows.
__device__ __forceinline__ bool is_shared() { return CLUSTERS && gridDim.y > 1; }

// The first of the thread's i-th rows in the block that is the rank-th of its cluster.
__device__ __forceinline__ int first_row(int i, int rank) { return (i * gridDim.y + rank) * blockDim.x; }

// use(i, row) for the i-th row of the thread.
template <class Use>
__device__ __forceinline__ void each_row(const BatchNorm2dWholeDims& d, Use use) {
#pragma unroll
  for (int i = 0; i < MOST; ++i) {
    const int row = first_row(i, blockIdx.y) + threadIdx.x;
    if (row >= d.rows) return;
    use(i, row);
  }
}

// The rows of a block.
__device__ __forceinline__ float rows_of_block(const BatchNorm2dWholeDims& d, int rank) {
  int rows = 0;
#pragma unroll
  for (int i = 0; i < MOST; ++i) rows += min(max(d.rows - first_row(i, rank), 0), (int)blockDim.x);
  return rows;
}

// use(rank, v) with what each block of the cluster has in `place` of its shared memory, in order.
template <class Use>
__device__ __forceinline__ void each_block(const float& place, Use use) {
  const unsigned mine = smem_address(&place);
  float v[8];
#pragma unroll
  for (int rank = 0; rank < 8; ++rank)
    if (rank < gridDim.y) v[rank] = load_cluster(cluster_address(mine, rank));
#pragma unroll
  for (int rank = 0; rank < 8; ++rank)
    if (rank < gridDim.y) use(rank, v[rank]);
}

// V channels from c on of a row that has `channels`. One that is not there is 0.
template <int V, class T>
__device__ __forceinline__ Pack<float, V> some_of(const T* row, int c, int channels) {
  if (rows_of<V>(row, channels)) return load<V>(row + c);
  Pack<float, V> v;
#pragma unroll
  for (int k = 0; k < V; ++k) v.v[k] = c + k < channels ? to_float(row[c + k]) : 0.0f;
  return v;
}

// V channels of the thread's rows in registers, as words: the compiler gives each element of two bytes that it knows by
// itself a register.
template <class T, int V>
struct Held {
  static constexpr int WORDS = V * sizeof(T) / 4;
  Pack<unsigned, WORDS> rows[MOST];

  // The block's channels of x.
  __device__ __forceinline__ Held(const T* x, const BatchNorm2dWholeDims& d) {
    const int c = blockIdx.x * V;
    if (rows_of<V>(x, d.c)) {
      each_row(d,
               [&](int i, int row) { rows[i] = *reinterpret_cast<const Pack<unsigned, WORDS>*>(x + row * d.c + c); });
      return;
    }
    each_row(d, [&](int i, int row) { set<V>(i, 0, some_of<V>(x + row * d.c, c, d.c)); });
  }

  // N channels from k on, which is even.
  template <int N>
  __device__ __forceinline__ Pack<float, N> get(int i, int k) const {
    Pack<float, N> v;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int at = (k + n) * sizeof(T) / 4;
      if constexpr (sizeof(T) == 4) v.v[n] = __uint_as_float(rows[i].v[at]);
      else v.v[n] = to_float(T{(unsigned short)(rows[i].v[at] >> n % 2 * 16)});
    }
    return v;
  }
  template <int N>
  __device__ __forceinline__ void set(int i, int k, const Pack<float, N>& v) {
#pragma unroll
    for (int n = 0; n < N; n += 4 / sizeof(T)) {
      unsigned& at = rows[i].v[(k + n) * sizeof(T) / 4];
      if constexpr (sizeof(T) == 4) at = __float_as_uint(v.v[n]);
      else at = from_float<T>(v.v[n]).bits | (unsigned)from_float<T>(v.v[n + 1]).bits << 16;
    }
  }

  // Between two passes over them: what the first has converted is not kept for the second.
  __device__ __forceinline__ void rest() {
#pragma unroll
    for (int i = 0; i < MOST; ++i)
#pragma unroll
      for (int k = 0; k < WORDS; ++k) opaque(rows[i].v[k]);
  }

  // Back into memory.
  __device__ __forceinline__ void store(T* y, const BatchNorm2dWholeDims& d) const {
    const int c = blockIdx.x * V;
    if (rows_of<V>(y, d.c)) {
      each_row(d, [&](int i, int row) { *reinterpret_cast<Pack<unsigned, WORDS>*>(y + row * d.c + c) = rows[i]; });
      return;
    }
    each_row(d, [&](int i, int row) {
      const Pack<float, V> v = get<V>(i, 0);
#pragma unroll
      for (int k = 0; k < V; ++k)
        if (c + k < d.c) y[row * d.c + c + k] = from_float<T>(v.v[k]);
    });
  }
};

// totals[k] = the sum of v[k] over the block's threads, for all of them to read; N is a power of two, and the block has at
// least N warps. All threads call it.
template <int N>
__device__ __forceinline__ void block_sums(float (&v)[N], float (*of_warps)[32], float* totals) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // With each exchange a lane keeps half of what it has, summed with a lane that keeps the other half: fewer exchanges than a
  // sum of each by itself.
  int k = 0, far = 16;
#pragma unroll
  for (int many = N / 2; many > 0; many /= 2, far /= 2) {
    const bool upper = (lane & far) != 0;
#pragma unroll
    for (int i = 0; i < many; ++i) {
      const float give = upper ? v[i] : v[i + many], keep = upper ? v[i + many] : v[i];
      v[i] = keep + __shfl_xor_sync(ALL_LANES, give, far);
    }
    k += upper ? many : 0;
  }
#pragma unroll
  for (far = 16 / N; far > 0; far /= 2) v[0] += __shfl_xor_sync(ALL_LANES, v[0], far);
  if (lane % (32 / N) == 0) of_warps[k][warp] = v[0];
  __syncthreads();
  if (warp < N) {
    const float total = first_lane_sum(32 * lane < blockDim.x ? of_warps[warp][lane] : 0.0f);
    if (lane == 0) totals[warp] = total;
  }
  __syncthreads();
}

// Mean and variance of the block's channels, the step of their running statistics, and
// y = f((x - mean) * (gamma * inv_std) + beta) with the activation f; where there is `plus`, that is added, or f is of the sum.
// Threads: a block has four channels of all rows; thread t has rows t, t + threads, ..., at most four, in its registers.
// Traffic: one read of x, and of `plus`, and one write of y.
// Launch: grid (ceil(c / 4), blocks of a cluster), of 256 or 512; 624 bytes of shared memory.
// Numerics: sums about the value of the first row, again about what they give, then squares about the mean, in a fixed order.
// Limits: rows at most four times the threads of a cluster, of eight blocks at most; rows * c < 2^31.
// Registers: at most 64.
template <class T>
__global__ void __launch_bounds__(512, 2)
    batch_norm2d_whole_fwd(const T* __restrict__ x, OPTIONAL const T* __restrict__ plus,
                           const float* __restrict__ gamma, const float* __restrict__ beta, float* __restrict__ mean,
                           float* __restrict__ inv_std, float* __restrict__ running_mean,
                           float* __restrict__ running_var, T* __restrict__ y, BatchNorm2dWholeDims d) {
  constexpr int V = 4;
  SHARED(float, of_warps, [V][32]);
  SHARED(float, totals, [V]);
  SHARED(float, constants, [4][V]);
  Held<T, V> held(x, d);
  SHARED(float, of_block, [2][V]);                      // mean and sum of squared deviations
  const int c = blockIdx.x * V, own = c + threadIdx.x;  // own: the channel whose statistics this thread has
  const bool has = threadIdx.x < V && own < d.c, keeps = has && blockIdx.y == 0;
  const Running running(running_mean, running_var, own, keeps);
  if (threadIdx.x < V) {
    constants[2][threadIdx.x] = has ? gamma[own] : 0.0f;
    constants[3][threadIdx.x] = has ? beta[own] : 0.0f;
  }
  const float inv_rows = is_shared() ? 1.0f / fmaxf(rows_of_block(d, blockIdx.y), 1.0f) : d.inv_rows;

  // About the first row's, so that a large mean costs no digits; then about what that gave, so that a first row far from the mean
  // costs none.
  Pack<float, V> centre = some_of<V>(x, c, d.c);
  float sums[V];
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
#pragma unroll
    for (int k = 0; k < V; ++k) sums[k] = 0.0f;
    each_row(d, [&](int i, int) {
      const Pack<float, V> v = held.template get<V>(i, 0);
#pragma unroll
      for (int k = 0; k < V; ++k) sums[k] += v.v[k] - centre.v[k];
    });
    block_sums(sums, of_warps, totals);
    held.rest();
#pragma unroll
    for (int k = 0; k < V; ++k) centre.v[k] += totals[k] * inv_rows;
  }
#pragma unroll
  for (int k = 0; k < V; ++k) sums[k] = 0.0f;
  each_row(d, [&](int i, int) {
    const Pack<float, V> v = held.template get<V>(i, 0);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const float delta = v.v[k] - centre.v[k];
      sums[k] += delta * delta;
    }
  });
  // What a thread below keeps of its channel.
  float mine = 0.0f;
#pragma unroll
  for (int k = 0; k < V; ++k)
    if (threadIdx.x == k) mine = centre.v[k];
  block_sums(sums, of_warps, totals);
  held.rest();
  float squares = threadIdx.x < V ? totals[threadIdx.x] : 0.0f;
  if constexpr (CLUSTERS) {
    if (is_shared()) {
      if (threadIdx.x < V) of_block[0][threadIdx.x] = mine, of_block[1][threadIdx.x] = squares;
      cluster_sync();
      if (threadIdx.x < V) {
        // About the first block's mean, then the squares about the mean of all.
        float shift = 0.0f, sum = 0.0f;
        each_block(of_block[0][threadIdx.x], [&](int rank, float mean) {
          if (rank == 0) shift = mean;
          sum += rows_of_block(d, rank) * (mean - shift);
        });
        mine = shift + sum * d.inv_rows;
        squares = 0.0f;
        each_block(of_block[0][threadIdx.x],
                   [&](int rank, float mean) { squares += rows_of_block(d, rank) * (mean - mine) * (mean - mine); });
        each_block(of_block[1][threadIdx.x], [&](int, float m2) { squares += m2; });
      }
      // Nobody leaves while others read what it has: see the end.
      cluster_arrive();
    }
  }
  if (threadIdx.x < V) {
    const float var = squares * d.inv_rows, inverse = has ? 1.0f / sqrtf(var + d.eps) : 0.0f;
    if (keeps) {
      running.keep(running_mean, running_var, own, mine, var, d);
      mean[own] = mine;
      inv_std[own] = inverse;
    }
    constants[0][threadIdx.x] = mine;
    constants[1][threadIdx.x] = inverse;
  }
  __syncthreads();

  with_activation<T>(d.activation, [&](auto f) {
    const Normal<V> normal(constants[0], constants[1], constants[2], constants[3], 0);
    each_row(d, [&](int i, int row) {
      Pack<float, V> v = held.template get<V>(i, 0);
      if (plus) {
        const Pack<float, V> other = some_of<V>(plus + row * d.c, c, d.c);
#pragma unroll
        for (int k = 0; k < V; ++k) v.v[k] = sum_of<decltype(f)>(normal.of(v.v[k], k), other.v[k], d.of_sum);
      } else {
#pragma unroll
        for (int k = 0; k < V; ++k) v.v[k] = decltype(f)::of(normal.of(v.v[k], k));
      }
      held.set(i, 0, v);
    });
  });
  held.store(y, d);
  if constexpr (CLUSTERS) {
    if (is_shared()) cluster_wait();
  }
}

// gbeta = sum of gy, ggamma = sum of gy * (x - mean) * inv_std, and
// gx = gamma * inv_std * (gy - gbeta / rows - (x - mean) * inv_std * ggamma / rows), gy as the activation passes it on. Where
// there is y, made by ReLU of a sum, gy is first what that passes on, which is g. Where ReLU made x, gx is what that passes on.
// Threads: as above, but 8 bytes of channels: those of gy are in registers too.
// Traffic: one read of x and of gy and one write of gx; one read of y and one write of g.
// Launch: grid (ceil(c / V), blocks of a cluster), V being the elements of 8 bytes, of 256 or 512; at most 1168 bytes of shared
//     memory.
// Numerics: by rows of a thread, then over threads in a fixed order.
template <class T>
__global__ void __launch_bounds__(512, 2)
    batch_norm2d_whole_bwd(const T* __restrict__ x, const T* __restrict__ gy, OPTIONAL const T* __restrict__ y,
                           OPTIONAL T* __restrict__ g, const float* __restrict__ mean,
                           const float* __restrict__ inv_std, const float* __restrict__ gamma,
                           const float* __restrict__ beta, float* __restrict__ ggamma, float* __restrict__ gbeta,
                           T* __restrict__ gx, BatchNorm2dWholeDims d) {
  constexpr int V = 8 / sizeof(T);
  SHARED(float, of_warps, [2 * V][32]);
  SHARED(float, totals, [2 * V]);
  SHARED(float, all, [2 * V]);  // the totals of a cluster
  SHARED(float, constants, [5][V]);
  Held<T, V> held(x, d), gradients(gy, d);
  const int c = blockIdx.x * V;
  if (y) {
    each_row(d, [&](int i, int row) {
      const Pack<float, V> of = some_of<V>(y + row * d.c, c, d.c), all = gradients.template get<V>(i, 0);
      gradients.set(i, 0, map_pack<V>([](float y, float gy) { return Relu::gradient(y, gy); }, of, all));
    });
  }
  if (threadIdx.x < V) {
    const int k = threadIdx.x;
    const bool there = c + k < d.c;
    constants[0][k] = there ? mean[c + k] : 0.0f;
    constants[1][k] = there ? inv_std[c + k] : 0.0f;
    constants[2][k] = there ? gamma[c + k] : 0.0f;
    constants[3][k] = there ? beta[c + k] : 0.0f;
  }
  __syncthreads();

  float sums[2 * V] = {};  // of gy, then of gy * (x - mean)
  // Two channels at a time, here and below, whose constants fit the registers.
  with_activation<T>(d.activation, [&](auto f) {
#pragma unroll
    for (int first = 0; first < V; first += 2) {
      const Normal<2> normal(constants[0], constants[1], constants[2], constants[3], first);
      each_row(d, [&](int i, int) {
        const Pack<float, 2> v = held.template get<2>(i, first), g = gradients.template get<2>(i, first);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const float gradient = decltype(f)::gradient(normal.of(v.v[k], k), g.v[k]);
          sums[first + k] += gradient;
          sums[V + first + k] += gradient * (v.v[k] - normal.centre[k]);
        }
      });
    }
  });
  block_sums(sums, of_warps, totals);
  held.rest();
  gradients.rest();
  if constexpr (CLUSTERS) {
    if (is_shared()) cluster_sync();
  }
  if (threadIdx.x < 2 * V) {
    float sum = totals[threadIdx.x];
    if constexpr (CLUSTERS) {
      if (is_shared()) {
        sum = 0.0f;
        each_block(totals[threadIdx.x], [&](int, float v) { sum += v; });
      }
    }
    all[threadIdx.x] = sum;
  }
  if constexpr (CLUSTERS) {
    // Nobody leaves while others read what it has: see the end. An arrival waits for what its thread has stored.
    if (is_shared()) cluster_arrive();
  }
  if (y) gradients.store(g, d);
  __syncthreads();
  if (threadIdx.x < V) {
    const int k = threadIdx.x;
    const float of_gamma = all[V + k] * constants[1][k];
    constants[4][k] = of_gamma;
    if (c + k < d.c && blockIdx.y == 0) {
      ggamma[c + k] = of_gamma;
      gbeta[c + k] = all[k];
    }
  }
  __syncthreads();

  with_activation<T>(d.activation, [&](auto f) {
#pragma unroll
    for (int first = 0; first < V; first += 2) {
      const Normal<2> normal(constants[0], constants[1], constants[2], constants[3], first);
      const Slopes<2> slopes(normal, constants[1], constants[4], all, first, d.inv_rows);
      each_row(d, [&](int i, int) {
        Pack<float, 2> v = held.template get<2>(i, first);
        const Pack<float, 2> g = gradients.template get<2>(i, first);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const float gradient = decltype(f)::gradient(normal.of(v.v[k], k), g.v[k]);
          const float of_x = slopes.of(normal, v.v[k], gradient, k);
          v.v[k] = d.x_is_relu ? Relu::gradient(v.v[k], of_x) : of_x;
        }
        held.set(i, first, v);
      });
    }
  });
  held.store(gx, d);
  if constexpr (CLUSTERS) {
    if (is_shared()) cluster_wait();
  }
}
