// Linear (fully connected) layers: y = x·Wᵀ + b with x [n][inputs], W [outputs][inputs], b [outputs]. A ReLU behind it costs
// no pass of its own: it is applied as y is stored, and its gradient as the gradient of b is added up (bias.cu).
//
// Three products, each one of the skeleton in product.cuh: read that first. Explicit convolution (conv2d.cu) uses them
// too, with patches for x.
// Instances: T = float; Tile = Simt128, Simt64, Simt32 | T = half, bf16; Tile = Mma128, Mma64, Mma32 | sm_90a: T = half, bf16; Tile = Wgmma128, Wgmma64
#include "product.cuh"
#include "reduce.cuh"

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
    sum = sum_of_rows<1>(sums, {{sum}}, width).v[0];
    if (t >= width) return;
  }
  if (i < d.size) epilogue.store(i, sum + epilogue.bias_at(i % d.columns, d.columns));
}
