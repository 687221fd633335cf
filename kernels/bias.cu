// The gradients of biases, of linear layers and convolutions: sums over rows, and of what an activation behind the layer passes on.
// Instances: T = float, half, bf16
#include "activation.cuh"
#include "reduce.cuh"

struct BiasDims {
  int rows, columns;  // of gy
  int wide;           // columns of a thread: four, where they come in fours, or one
  int width;          // threads side by side: a power of two, 32 at most
  int strip;          // rows of a block
  int accumulate;     // 1: gb += the sums; 0: gb = the sums
  int activation;     // its number: activation.cuh
};

// V elements from p[i] on, in one access if they lie so.
template <int V, class T>
__device__ __forceinline__ Pack<float, V> elements(const T* p, size_t i, bool aligned) {
  if (aligned) return load<V>(p + i);
  Pack<float, V> v;
#pragma unroll
  for (int k = 0; k < V; ++k) v.v[k] = to_float(p[i + k]);
  return v;
}

// Of V columns the sums over the rows of a strip, in the threads of the first row of `width`: of(place) gives V elements, and is
// called for several rows before `keep(place, elements)`, so that loads do not wait for stores.
template <int V, class Of, class Keep>
__device__ __forceinline__ void column_sums(Of of, Keep keep, float* sums, float* gb, float* partial,
                                            const BiasDims& d) {
  constexpr int AHEAD = 4;
  const int t = threadIdx.x, step = 256 / d.width;
  const int column = (blockIdx.x * d.width + t % d.width) * V;
  const int last = column < d.columns ? min(d.rows, (int)(blockIdx.y + 1) * d.strip) : 0;
  const auto place = [&](int row) { return (size_t)row * d.columns + column; };
  Pack<float, V> sum = {};
  for (int row = blockIdx.y * d.strip + t / d.width; row < last; row += AHEAD * step) {
    Pack<float, V> v[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) v[k] = row + k * step < last ? of(place(row + k * step)) : Pack<float, V>{};
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      sum = map_pack<V>([](float a, float b) { return a + b; }, sum, v[k]);
      if (row + k * step < last) keep(place(row + k * step), v[k]);
    }
  }
  sum = sum_of_rows<V>(sums, sum, d.width);
  if (t >= d.width || column >= d.columns) return;
#pragma unroll
  for (int k = 0; k < V; ++k) {
    if (partial) partial[(size_t)blockIdx.y * d.columns + column + k] = sum.v[k];
    else gb[column + k] = d.accumulate ? gb[column + k] + sum.v[k] : sum.v[k];
  }
}

template <int V, class T>
__device__ __forceinline__ void sums_of(const T* gy, float* sums, float* gb, float* partial, const BiasDims& d) {
  const bool aligned = is_aligned<V>(gy);
  column_sums<V>([&](size_t i) { return elements<V>(gy, i, aligned); }, [](size_t, const Pack<float, V>&) {}, sums, gb,
                 partial, d);
}

// gb[j] = sum over the rows of gy[i][j].
// Threads: 256 as 256/width rows x width threads of `wide` columns; neighbours lie along the columns, then the rows.
// Traffic: reads gy once; nothing else to speak of.
// Launch: grid [ceil(columns/(wide·width)), strips, 1], block 256, 4 KiB of static shared memory. width = the power of two from
//     columns/wide up, 32 at most; strips = min(ceil(rows·width/4096), max(1, 528/ceil(columns/(wide·width)))),
//     strip = ceil(rows/strips), strips = ceil(rows/strip) (Rust: `device_sums` in src/ops/operands.rs).
// Numerics: f32; every thread its rows in order, a tree over the threads, then the strips as linear_split_sum adds them.
// Limits: any sizes from 1; `partial` [strips][columns] if strips > 1, and then linear_split_sum with size = columns and
//     splits = strips.
// Registers: at most 64.
template <class T>
__global__ void __launch_bounds__(256, 4)
    bias_sums(const T* __restrict__ gy, float* __restrict__ gb, OPTIONAL float* __restrict__ partial, BiasDims d) {
  SHARED(float, sums, [1024]);
  if (d.wide == 4) return sums_of<4>(gy, sums, gb, partial, d);
  sums_of<1>(gy, sums, gb, partial, d);
}

template <int V, class T>
__device__ __forceinline__ void relu_sums(const T* y, T* g, float* sums, float* gb, float* partial, const BiasDims& d) {
  const bool aligned = is_aligned<V>(y) && is_aligned<V>(g);
  const auto of = [&](size_t i) {
    return map_pack<V>([](float y, float g) { return Relu::gradient(y, g); }, elements<V>(y, i, aligned),
                       elements<V>(g, i, aligned));
  };
  const auto keep = [&](size_t i, const Pack<float, V>& v) {
    if (aligned) return store(g + i, v);
#pragma unroll
    for (int k = 0; k < V; ++k) g[i + k] = from_float<T>(v.v[k]);
  };
  column_sums<V>(of, keep, sums, gb, partial, d);
}

// g[i][j] = y[i][j] > 0 ? g[i][j] : 0, in place, and gb as above of that: the gradients of what ReLU made y of, and of the
// bias in it.
// Traffic: reads y and g and writes g, each element once.
template <class T>
__global__ void __launch_bounds__(256, 4)
    bias_relu_sums(const T* __restrict__ y, T* __restrict__ g, float* __restrict__ gb,
                   OPTIONAL float* __restrict__ partial, BiasDims d) {
  SHARED(float, sums, [1024]);
  if (d.wide == 4) return relu_sums<4>(y, g, sums, gb, partial, d);
  relu_sums<1>(y, g, sums, gb, partial, d);
}

template <int V, class A, class T>
__device__ __forceinline__ void activation_sums(A, const T* x, const T* gy, float* sums, float* gb, float* partial,
                                                const BiasDims& d) {
  const bool aligned = is_aligned<V>(x) && is_aligned<V>(gy);
  const auto of = [&](size_t i) {
    return map_pack<V>([](float x, float gy) { return A::gradient(x, gy); }, elements<V>(x, i, aligned),
                       elements<V>(gy, i, aligned));
  };
  column_sums<V>(of, [](size_t, const Pack<float, V>&) {}, sums, gb, partial, d);
}

// gb as above of what an activation of x passes on of gy, which nobody else needs: the layer's bias alone is trained.
// Traffic: reads x and gy, each element once.
template <class T>
__global__ void __launch_bounds__(256, 4)
    bias_activation_sums(const T* __restrict__ x, const T* __restrict__ gy, float* __restrict__ gb,
                         OPTIONAL float* __restrict__ partial, BiasDims d) {
  SHARED(float, sums, [1024]);
  with_activation<T>(d.activation, [&](auto f) {
    if (d.wide == 4) return activation_sums<4>(f, x, gy, sums, gb, partial, d);
    activation_sums<1>(f, x, gy, sums, gb, partial, d);
  });
}
