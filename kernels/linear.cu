// Linear (fully connected) layers: y = x·Wᵀ + b with x [n][inputs], W [outputs][inputs], b [outputs]. A ReLU behind it costs
// no pass of its own: it is applied as y is stored, and its gradient as the gradient of b is added up.
//
// Three products, each one of the skeleton in product.cuh: read that first. Explicit convolution (conv2d.cu) uses them
// too, with patches for x.
// Instances: T = float; Tile = Simt128, Simt64, Simt32 | T = half, bf16; Tile = Mma128, Mma64, Mma32 | sm_90a: T = half, bf16; Tile = Wgmma128, Wgmma64
#include "product.cuh"

struct LinearDims {
  int n;            // rows of x and y
  int inputs;       // columns of x
  int outputs;      // columns of y
  int accumulate;   // 1: add to the output; 0: overwrite it
  int relu;         // 1: of y its ReLU, forward alone
  int split_steps;  // steps along K of one split (product.cuh)
};

// y = x·Wᵀ + b, and its ReLU. In general C[m][n] = A[m][k]·B[k][n] in tiles of side S = 128, 64 or 32.
// Threads: 256, 128 or 64; each has 8x8, 8x4 or 4x4 outputs in groups of 4x4, 16 rows and 32 columns apart.
// Traffic: reads m·n·k·8/S bytes through the L2, S/4 FLOP for each; writes 4 bytes per output.
// Launch: grid [ceil(m/S)·ceil(n/S), 1, splits], block as above, 16.5, 17 or 9 KiB of static shared memory.
// Numerics: f32 FMA along K in order, then the splits as linear_split_sum adds them, then the bias.
//     Tiles of mma.cuh and wgmma_product.cuh: threads, shared memory and order of the sums as there, 2 bytes an element
//     instead of 4.
// Limits: sizes from 1; `partial` [splits][m][n] instead of the output if splits > 1, and then linear_split_sum.
// Registers: at most 128 (Simt128), 128 (Mma128), 128 (Mma64), 128 (Wgmma128), 80 (Wgmma64), 112.
// Measured: H100, 2026-11-26, b1-bn-cnn at batch 16: its three layers, 75 MB of weights, 54 µs (52 % of the memory's ceiling).
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    linear_fwd(const T* __restrict__ x, const T* __restrict__ w, OPTIONAL const float* __restrict__ b,
               T* __restrict__ y, OPTIONAL float* __restrict__ partial, LinearDims d) {
  const AlongK<T, Tile::CHUNK> a(x, d.n, d.inputs);         // A = x  [n][inputs]
  const AlongK<T, Tile::CHUNK> wt(w, d.outputs, d.inputs);  // B = Wᵀ: its columns are the rows of W
  product<Tile>(a, wt, {d.n, d.outputs, d.inputs, d.split_steps, partial}, Epilogue<T>{y, b, d.accumulate, d.relu});
}

// gx = gy·W, or gx += that where x has a gradient from another op already.
// Where x is what ReLU made, its gradient is what that passes on: 0 where `masks`, which is x, is not above 0.
// Numerics: what was there is added last.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    linear_bwd_x(const T* __restrict__ gy, const T* __restrict__ w, OPTIONAL const T* __restrict__ masks,
                 T* __restrict__ gx, OPTIONAL float* __restrict__ partial, LinearDims d) {
  const AlongK<T, Tile::CHUNK> a(gy, d.n, d.outputs);       // A = gy  [n][outputs]
  const AcrossK<T, Tile::CHUNK> b(w, d.inputs, d.outputs);  // B = W   [outputs][inputs]
  product<Tile>(a, b, {d.n, d.inputs, d.outputs, d.split_steps, partial},
                Epilogue<T>{gx, nullptr, d.accumulate, 0, takes_masks<Tile> ? masks : nullptr});
}

// gW = gyᵀ·x.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    linear_bwd_w(const T* __restrict__ gy, const T* __restrict__ x, float* __restrict__ gw,
                 OPTIONAL float* __restrict__ partial, LinearDims d) {
  const AcrossK<T, Tile::CHUNK> a(gy, d.outputs, d.n);  // A = gyᵀ: its rows are the columns of gy [n][outputs]
  const AcrossK<T, Tile::CHUNK> b(x, d.inputs, d.n);    // B = x   [n][inputs]
  product<Tile>(a, b, {d.outputs, d.inputs, d.n, d.split_steps, partial},
                Epilogue<float>{gw, nullptr, d.accumulate, 0});
}

// The 256 threads of a block as rows of `width`, a power of two: the sum over the rows, in a tree, in the threads of the
// first row. All threads call it.
__device__ __forceinline__ float sum_of_rows(float* sums, float sum, int width) {
  const int t = threadIdx.x;
  sums[t] = sum;
  __syncthreads();
  for (int half = 128; half >= width; half /= 2) {
    if (t < half) sums[t] += sums[t + half];
    __syncthreads();
  }
  return sums[t];
}

struct SplitSumDims {
  int size;        // elements of one partial result: m * n
  int columns;     // n: the length of the bias
  int splits;      // partial results
  int groups;      // threads that share the splits of an element: a power of two, 32 at most
  int share;       // splits of a thread: ceil(splits / groups)
  int accumulate;  // 1: y += the sum; 0: y = the sum
  int relu;        // 1: y = max(y, 0) after that
  int fours;       // 1: each thread has four elements
};

// y = sum over z of partial[z] (+ b), or y += that: the second half of a product with split-K, and its epilogue.
// Threads: 256 as `groups` x 256/groups elements; neighbours lie along the columns. Few elements with many splits
//     would leave most of the GPU idle, and each thread with a long sum. Of many elements each has four, and four times the bytes
//     on their way.
// Traffic: reads 4·splits bytes and writes 4 per element; every byte once.
// Launch: grid [ceil(size·groups/256), 1, 1], block 256, 1 KiB of static shared memory. groups = 1, doubled while it is
//     below 32, below splits/4, and there are fewer than 67584 threads. A quarter of the threads with `fours`: in groups of 1, of
//     rows of whole fours, where so many threads are left (Rust: `add_up` in src/ops/product.rs).
// Numerics: f32; every thread its splits in order, a tree over the threads, then the bias.
// Limits: any sizes from 1; `b` has `columns` elements.
// Registers: at most 48.
// Measured: H100, 2026-11-26, an element a thread: 2.7 µs for small sums (a1-lenet), 1.7 TB/s for large ones (e1-resnet9-onecycle).
template <class T>
__global__ void __launch_bounds__(256)
    linear_split_sum(const float* __restrict__ partial, OPTIONAL const float* __restrict__ b,
                     OPTIONAL const T* __restrict__ masks, T* __restrict__ y, SplitSumDims d) {
  SHARED(float, sums, [256]);
  const Epilogue<T> epilogue = {y, b, d.accumulate, d.relu, masks};
  if (d.fours) {
    const int i = 4 * global_index();
    if (i >= d.size) return;
    Pack<float, 4> sum = {};
#pragma unroll 4
    for (int z = 0; z < d.splits; ++z)
      sum = map_pack<4>([](float a, float b) { return a + b; }, sum, load<4>(partial + ((size_t)z * d.size + i)));
    const int row = i / d.columns, column = i - row * d.columns;
#pragma unroll
    for (int k = 0; k < 4; ++k) sum.v[k] += epilogue.bias_at(column + k, d.columns);
    return epilogue.store(row, column, d.columns, sum);
  }
  const int t = threadIdx.x, width = 256 / d.groups;
  const int i = blockIdx.x * width + t % width;
  const int first = t / width * d.share, last = min(first + d.share, d.splits);
  float sum = 0.0f;
  if (i < d.size) {
#pragma unroll 8
    for (int z = first; z < last; ++z) sum += partial[(size_t)z * d.size + i];
  }
  if (d.groups > 1) {
    sum = sum_of_rows(sums, sum, width);
    if (t >= width) return;
  }
  if (i < d.size) epilogue.store(i, sum + epilogue.bias_at(i % d.columns, d.columns));
}

struct ColumnSumsDims {
  int rows, columns;  // of gy
  int width;          // columns of a block: a power of two, 32 at most
  int strip;          // rows of a block
  int accumulate;     // 1: gb += the sums; 0: gb = the sums
};

// Of column `column` the sum over the rows of a strip, in the threads of the first row of `width`: of(place) gives an
// element, and is called for several rows before `keep(place, element)`, so that loads do not wait for stores.
template <class Of, class Keep>
__device__ __forceinline__ void column_sums(Of of, Keep keep, float* gb, float* partial, const ColumnSumsDims& d) {
  SHARED(float, sums, [256]);
  constexpr int AHEAD = 4;
  const int t = threadIdx.x, step = 256 / d.width;
  const int column = blockIdx.x * d.width + t % d.width;
  const int last = column < d.columns ? min(d.rows, (int)(blockIdx.y + 1) * d.strip) : 0;
  const auto place = [&](int row) { return (size_t)row * d.columns + column; };
  float sum = 0.0f;
  for (int row = blockIdx.y * d.strip + t / d.width; row < last; row += AHEAD * step) {
    float v[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) v[k] = row + k * step < last ? of(place(row + k * step)) : 0.0f;
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      sum += v[k];
      if (row + k * step < last) keep(place(row + k * step), v[k]);
    }
  }
  sum = sum_of_rows(sums, sum, d.width);
  if (t >= d.width || column >= d.columns) return;
  if (partial) partial[(size_t)blockIdx.y * d.columns + column] = sum;
  else gb[column] = d.accumulate ? gb[column] + sum : sum;
}

// gb[j] = sum over the rows of gy[i][j]: the gradient of a bias, for linear and for convolution.
// Threads: 256 as 256/width rows x width columns; neighbours lie along the columns, then the rows.
// Traffic: reads 4 bytes per element of gy, each once; nothing else to speak of.
// Launch: grid [ceil(columns/width), strips, 1], block 256, 1 KiB of static shared memory. width = the power of
//     two from `columns` up, 32 at most; strips = min(ceil(rows·width/4096), max(1, 528/ceil(columns/width))),
//     strip = ceil(rows/strips), strips = ceil(rows/strip) (Rust: `device_column_sums` in src/ops/product.rs).
// Numerics: f32; every thread its rows in order, a tree over the threads, then the strips as
//     linear_split_sum adds them.
// Limits: any sizes from 1; `partial` [strips][columns] if strips > 1, and then linear_split_sum with
//     size = columns and splits = strips.
// Registers: at most 40.
template <class T>
__global__ void __launch_bounds__(256) linear_column_sums(const T* __restrict__ gy, float* __restrict__ gb,
                                                          OPTIONAL float* __restrict__ partial, ColumnSumsDims d) {
  column_sums([&](size_t i) { return to_float(gy[i]); }, [](size_t, float) {}, gb, partial, d);
}

// g[i][j] = y[i][j] > 0 ? g[i][j] : 0, in place, and gb as above of that: the gradients of what ReLU made y of, and of the
// bias in it.
// Traffic: reads y and g and writes g, each element once.
template <class T>
__global__ void __launch_bounds__(256)
    linear_relu_sums(const T* __restrict__ y, T* __restrict__ g, float* __restrict__ gb,
                     OPTIONAL float* __restrict__ partial, ColumnSumsDims d) {
  column_sums([&](size_t i) { return Relu::gradient(to_float(y[i]), to_float(g[i])); },
              [&](size_t i, float v) { g[i] = from_float<T>(v); }, gb, partial, d);
}
