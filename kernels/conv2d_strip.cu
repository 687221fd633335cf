// Convolution of few channels, on tensor cores: x goes to shared memory once, for all places of the window.
//
//   strip of x --(cp.async)--> shared memory --(ldmatrix)--> registers --> mma.sync
//
// conv2d_fwd (conv2d.cu) brings an element of x as often as windows see it; with few channels that takes longer than the
// product. Here a block has a tile of output pixels, `columns` x `rows` of `images` images, and copies the strip of x that
// they see: of each image `wide` x `high` pixels, `pitch` elements each, the channels and zeros. A row of a pixel's window is
// then a run of kw·pitch neighbours there, and the whole window kh runs, `wide`·pitch apart: along K the product only adds to
// an address, and the zeros of the padding are in the strip. Weights lie in shared memory for the whole kernel. Blocks walk
// over tiles, and the next strip is on its way while one is multiplied.
//
// A run is cut in steps of 16: `depth` is its length rounded up. What is behind it belongs to the next pixels, and meets
// weights of zero. (An infinite number there makes NaN, as it does in the windows that see it.)
//
// The input gradient is such a product too, of strips of gy. With strides of ah x aw the pixels of gx are of ah·aw classes, by
// what is left of their row and column: those of one class see the same places of the window, every ah-th row and aw-th column
// of it, turned round. A block computes all classes of its strip, one after the other.
//
// With a pitch of four, for three channels, fragments are read two elements at a time: rows of 8 bytes are not what ldmatrix
// takes.
// Instances: T = half, bf16
#include "conv2d_strip.cuh"

// The places of a window's side that pixels of a class see: `count` of them, every `stride`-th from `first` on; and how far
// down the one at `first` lies in gy.
struct Seen {
  int first, count, shift;
  __device__ __forceinline__ Seen(int a, int side, int stride, int pad) {
    first = (a + pad) % stride;
    count = first < side ? (side - first + stride - 1) / stride : 0;
    shift = (a + pad - first) / stride;
  }
};

// The runs of a class of pixels: where the first begins, from the pixel's place on, how many there are, and how long they are.
struct Runs {
  int at, count, length;
  __device__ __forceinline__ Runs(int a, int b, const Conv2dStripDims& d) : at(0), count(d.kh), length(d.kw * d.pitch) {
    if (!d.turned) return;
    const Seen down(a, d.kh, d.ah, d.ph), across(b, d.kw, d.aw, d.pw);
    at = ((down.shift - down.count + 1 + d.up) * d.wide + across.shift - across.count + 1 + d.left) * d.pitch;
    count = down.count, length = across.count * d.pitch;
  }
};

// Where a weight is in a row [classes][runs][depth] of shared memory: of a place of the window, tap, and a channel c of x.
__device__ __forceinline__ int place_of_weight(int tap, int c, const Conv2dStripDims& d) {
  const int r = divide(tap, d.by_kw), s = tap - r * d.kw;
  if (!d.turned) return r * d.depth + s * d.pitch + c;
  if (d.ah * d.aw == 1) return (d.kh - 1 - r) * d.depth + (d.kw - 1 - s) * d.pitch + c;
  // The class that sees it, and which of its places it is, from the last on.
  const int a = (r + d.ah * d.ph - d.ph) % d.ah, b = (s + d.aw * d.pw - d.pw) % d.aw;
  const Seen down(a, d.kh, d.ah, d.ph), across(b, d.kw, d.aw, d.pw);
  const int run = down.count - 1 - (r - down.first) / d.ah, in_run = across.count - 1 - (s - across.first) / d.aw;
  return ((a * d.aw + b) * d.runs + run) * d.depth + in_run * d.pitch + c;
}

// The weights as rows of shared memory, one for each channel of y from o0 on; the rest is zero already.
template <int N, class T>
__device__ __forceinline__ void bring_weights(T* to, int pitch, const T* w, int o0, const Conv2dStripDims& d) {
  const int taps = d.kh * d.kw, here = min(d.o - o0, OUTPUTS);
  if (!d.turned) {
    const int chunks = N == 4 ? 1 : d.pitch / N;
    const auto part_of = [&](int i) {
      const int row = N == 4 ? i : divide(i, d.by_chunks), first = N == 4 ? 0 : (i - row * chunks) * N;
      return Part{(o0 * taps + row) * d.c + first, first, true};
    };
    const auto to_of = [&](int i) {
      const int row = N == 4 ? i : divide(i, d.by_chunks), first = N == 4 ? 0 : (i - row * chunks) * N;
      const int o = divide(row, d.by_taps);
      return to + o * pitch + place_of_weight(row - o * taps, first, d);
    };
    return copy_parts<N>(w, here * taps * chunks, d.c, rows_of<8>(w, d.c), part_of, to_of);
  }
  // One by one, but several on their way: weights are [c][kh][kw][o], whose neighbours are channels of y.
  constexpr int AHEAD = 8;
  const int count = d.c * taps * here;
  for (int i = threadIdx.x; i < count; i += AHEAD * blockDim.x) {
    T v[AHEAD];
#pragma unroll
    for (int e = 0; e < AHEAD; ++e) {
      const int j = i + e * blockDim.x, row = divide(j, d.by_side), in_row = j - row * here;
      if (j < count) v[e] = w[row * d.o + o0 + in_row];
    }
#pragma unroll
    for (int e = 0; e < AHEAD; ++e) {
      const int j = i + e * blockDim.x, row = divide(j, d.by_side), in_row = j - row * here;
      const int c = divide(row, d.by_taps);
      if (j < count) to[in_row * pitch + place_of_weight(row - c * taps, c, d)] = v[e];
    }
  }
}

// Stores N neighbours of a pixel, if it and the first of them are there.
template <int N, class T>
__device__ __forceinline__ void store_columns(const Epilogue<T>& epilogue, int pixel, int c, int columns,
                                              const Pack<float, N>& v) {
  if (pixel != NOWHERE && c < columns) epilogue.store(pixel, c, columns, v);
}

// Pixels of a tile times weights: 32 pixels a warp, SIXTEENS of channels of y. Sums begin with the bias.
template <int N, int SIXTEENS, class T>
__device__ __forceinline__ void multiply_strips(T* smem, float* biases, const T* x, const T* w, const float* b, T* y,
                                                const Conv2dStripDims& d) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, o0 = blockIdx.y * OUTPUTS;
  const int pitch_w = d.ah * d.aw * d.runs * d.depth + 8, weights_size = 16 * SIXTEENS * pitch_w;
  if (threadIdx.x < OUTPUTS) biases[threadIdx.x] = b && o0 + threadIdx.x < d.o ? b[o0 + threadIdx.x] : 0.0f;
  T* weights = smem;
  for (int i = threadIdx.x; i < weights_size / 8; i += blockDim.x) reinterpret_cast<Chunk<T>*>(weights)[i] = {};
  const Strips<T> strips(smem + weights_size, d);
  __syncthreads();
  bring_weights<N>(weights, pitch_w, w, o0, d);
  if (blockIdx.x < d.tiles) bring<N>(strips.at(0), x, blockIdx.x, d);
  copy_commit();

  // Of the pixels whose rows of fragments this lane brings (N = 8), or that it has (N = 4): where their windows begin.
  constexpr int PER = N == 4 ? 2 : 1;
  int place[2][PER];
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int p = 0; p < PER; ++p)
      place[i][p] = InTile(32 * warp + 16 * i + (N == 4 ? 8 * p + lane / 4 : lane % 16), d).place(d);
  const Epilogue<T> epilogue = {y, nullptr, d.accumulate, d.relu};
  const T* weights_row = weights + (lane % 8 + lane / 16 * 8) * pitch_w + lane / 8 % 2 * 8;
  int which = 0;
  for (int tile = blockIdx.x; tile < d.tiles; tile += gridDim.x, which ^= 1) {
    // The strip is there, and all have done with the other one.
    copy_wait<0>();
    __syncthreads();
    if (tile + gridDim.x < d.tiles) bring<N>(strips.at(which ^ 1), x, tile + gridDim.x, d);
    copy_commit();
    const T* strip = strips.at(which);
    for (int of = 0; of < d.ah * d.aw; ++of) {
      const int down = of / d.aw, across = of - down * d.aw;
      const Runs runs(down, across, d);
      float acc[2][2 * SIXTEENS][4];
#pragma unroll
      for (int j = 0; j < 2 * SIXTEENS; ++j)
#pragma unroll
        for (int q = 0; q < 4; ++q) acc[0][j][q] = acc[1][j][q] = biases[8 * j + lane % 4 * 2 + q % 2];
      for (int run = 0; run < runs.count; ++run) {
#pragma unroll 1
        for (int k = 0; k < runs.length; k += 16) {
          const int at = runs.at + run * d.wide * d.pitch + k;
          unsigned av[2][4];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if constexpr (N == 4) {
              // Register 2h + p: row 8p + l/4, columns 8h + 2(l%4) and the next.
#pragma unroll
              for (int p = 0; p < PER; ++p) {
                const T* from = strip + place[i][p] + at + lane % 4 * 2;
                av[i][p] = *reinterpret_cast<const unsigned*>(from);
                av[i][2 + p] = *reinterpret_cast<const unsigned*>(from + 8);
              }
            } else {
              load_matrices<false>(av[i], reinterpret_cast<const Chunk<T>*>(strip + place[i][0] + at + lane / 16 * 8));
            }
          }
          const T* row = weights_row + (of * d.runs + run) * d.depth + k;
          unsigned bv[SIXTEENS][4];
#pragma unroll
          for (int j = 0; j < SIXTEENS; ++j)
            load_matrices<false>(bv[j], reinterpret_cast<const Chunk<T>*>(row + 16 * j * pitch_w));
#pragma unroll
          for (int j = 0; j < 2 * SIXTEENS; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i)
              multiply(Operand<T>{}, acc[i][j], av[i], bv[j / 2][j % 2 * 2], bv[j / 2][j % 2 * 2 + 1]);
        }
      }
      // Not before: registers are scarce.
      const TileStart start(tile, d);
      const bool whole = epilogue.template overwrites<8>(d.o);
      const float least = epilogue.least();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int pixel = start.pixel(InTile(32 * warp + 8 * i + lane / 4, d), down, across, d);
        if constexpr (SIXTEENS == 1) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int c = o0 + 8 * j + lane % 4 * 2;
            const float* sum = acc[i / 2][j] + i % 2 * 2;
            store_columns(epilogue, pixel, c, d.o, Pack<float, 2>{{sum[0], sum[1]}});
          }
        } else {
          // Whole sectors of memory.
#pragma unroll
          for (int j = 0; j < 2 * SIXTEENS; j += 4) {
            const int c = o0 + 8 * (j + lane % 4);
            if (whole) {
              const Words words = exchange_rounded(
                  lane, [&](int p, int q) { return epilogue.rounded(acc[i / 2][j + p][i % 2 * 2 + q], least); });
              if (pixel != NOWHERE && c < d.o) *reinterpret_cast<Words*>(y + (size_t)pixel * d.o + c) = words;
              continue;
            }
            const Pack<float, 8> v =
                exchange_sums(lane, [&](int p, int q) { return acc[i / 2][j + p][i % 2 * 2 + q]; });
            store_columns(epilogue, pixel, c, d.o, v);
          }
        }
      }
    }
  }
}

// y = conv(x, w) + b, and its ReLU; or the input gradient y of a gradient x.
// Threads: four warps, each 32 output pixels of a tile and up to 64 channels.
// Traffic: one read of x and one write of y; edges of strips are read twice.
// Launch: grid [blocks that walk over the tiles, ceil(o/64), 1], block 128; 256 bytes of static and, as dynamic shared memory: 64 rows of weights, or o in
//     sixteens, and two strips, as the host computes them (Rust: src/ops/conv2d/strip.rs).
// Numerics: f32 sums in the tensor cores, from the bias on, along (r, s, c), rounded once.
// Limits: any geometry whose strips and weights fit in shared memory; the depth a multiple of 16; a pitch of 4, or a
//     multiple of 8.
// Registers: at most 128.
template <class T>
__global__ void __launch_bounds__(128, 4)
    conv2d_strip_fwd(const T* __restrict__ x, const T* __restrict__ w, OPTIONAL const float* __restrict__ b,
                     T* __restrict__ y, Conv2dStripDims d) {
  DYN_SMEM(T, smem);
  SHARED(float, biases, [OUTPUTS]);
  with_sixteens(d.o, [&](auto sixteens) {
    constexpr int SIXTEENS = decltype(sixteens)::COUNT;
    if (d.pitch == 4) multiply_strips<4, SIXTEENS>(smem, biases, x, w, b, y, d);
    else multiply_strips<8, SIXTEENS>(smem, biases, x, w, b, y, d);
  });
}

// Columns of the patch that a warp has, eight at a time, and a block.
constexpr int EIGHTS = 4, COLUMNS = 8 * EIGHTS * 8;

// The pixels of gy of a tile, [PIXELS][OUTPUTS] in shared memory, zeros where there are none; SIXTEENS of channels. `begin` asks
// for them, `end` comes when the tile before it is multiplied, and a barrier follows.
template <int SIXTEENS, class T>
struct OfPixels {
  const T* gy;
  bool whole;
  __device__ __forceinline__ OfPixels(const T* gy, const Conv2dStripDims& d) : gy(gy), whole(rows_of<8>(gy, d.o)) {}
  __device__ __forceinline__ void begin(T* to, const TileStart& start, const Conv2dStripDims& d) const {
    const int o0 = blockIdx.z * OUTPUTS;
    const auto part_of = [&](int i) {
      const int first = o0 + i % (2 * SIXTEENS) * 8, pixel = start.pixel(InTile(i / (2 * SIXTEENS), d), 0, 0, d);
      return Part{pixel * d.o + first, first, pixel != NOWHERE};
    };
    const auto to_of = [&](int i) { return to + i / (2 * SIXTEENS) * OUTPUT_PITCH + i % (2 * SIXTEENS) * 8; };
    copy_parts<8>(gy, PIXELS * 2 * SIXTEENS, d.o, whole, part_of, to_of);
  }
  __device__ __forceinline__ void end(T*, const Conv2dStripDims&) const {}
};

// The same of the gradient g of what a max-pool of 2x2 gave, and where in its window each value won. A thread has eight channels
// of a window: until the tile before is multiplied, both lie where two of its pixels will.
template <int SIXTEENS, class T>
struct OfWindows {
  static constexpr int THREADS = PIXELS / 4 * 2 * SIXTEENS;
  using Won = Pack<unsigned char, 8>;
  const T* g;
  const unsigned char* won;
  __device__ __forceinline__ OfWindows(const T* g, const unsigned char* won) : g(g), won(won) {}
  static __device__ __forceinline__ int channel() { return threadIdx.x % (2 * SIXTEENS) * 8; }
  // The thread's window, as the first of its pixels in the tile.
  static __device__ __forceinline__ InTile window(const Conv2dStripDims& d) {
    InTile in;
    const int i = threadIdx.x / (2 * SIXTEENS), line = divide(i, d.by_half_columns);
    in.image = divide(line, d.by_half_rows);
    in.row = 2 * line - in.image * d.rows, in.column = 2 * i - line * d.columns;
    return in;
  }
  // Where the pixel at a place of it lies. Pixels behind those of the tile come in fours too, side by side.
  static __device__ __forceinline__ Pack<T, 8>* chunk(T* gys, const InTile& in, int place, const Conv2dStripDims& d) {
    const bool of_tile = in.image < d.images;
    const int first = of_tile ? (in.image * d.rows + in.row) * d.columns + in.column : threadIdx.x / (2 * SIXTEENS) * 4;
    const int pixel = first + place % 2 + place / 2 * (of_tile ? d.columns : 2);
    return reinterpret_cast<Pack<T, 8>*>(gys + pixel * OUTPUT_PITCH + channel());
  }
  __device__ __forceinline__ void begin(T* gys, const TileStart& start, const Conv2dStripDims& d) const {
    if (threadIdx.x >= THREADS) return;
    const InTile in = window(d);
    const int n = start.image + in.image, p = start.row + in.row, q = start.column + in.column;
    const int o = blockIdx.z * OUTPUTS + channel();
    const bool there = in.image < d.images && n < d.n && p < d.ho && q < d.wo && o < d.o;
    const int at = there ? ((n * d.ho + p) * (d.wo / 2) + q) / 2 * d.o + o : 0;
    copy_async(chunk(gys, in, 0, d), g + at, there);
    copy_async(reinterpret_cast<Won*>(chunk(gys, in, 1, d)), won + at, there);
  }
  __device__ __forceinline__ void end(T* gys, const Conv2dStripDims& d) const {
    if (threadIdx.x >= THREADS) return;
    copy_wait<0>();
    const InTile in = window(d);
    const Pack<T, 8> values = *chunk(gys, in, 0, d);
    const Won place = *reinterpret_cast<const Won*>(chunk(gys, in, 1, d));
#pragma unroll
    for (int at = 0; at < 4; ++at) {
      Pack<T, 8> v;
#pragma unroll
      for (int k = 0; k < 8; ++k) v.v[k] = place.v[k] == at ? values.v[k] : T{};
      *chunk(gys, in, at, d) = v;
    }
  }
};

// SIXTEENS of channels of gy, as `from` has it.
template <int N, int SIXTEENS, class From, class T>
__device__ __forceinline__ void gather_strips(T* smem, int* place, From from, const T* x, float* partial,
                                              const Conv2dStripDims& d) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, o0 = blockIdx.z * OUTPUTS;
  const Strips<T> strips(smem + 2 * PIXELS * OUTPUT_PITCH, d);
  if (threadIdx.x < PIXELS) place[threadIdx.x] = InTile(threadIdx.x, d).place(d);
  const auto gy_of = [&](int which) { return smem + which * PIXELS * OUTPUT_PITCH; };
  const auto begin = [&](int tile, int which) {
    // In this order: the other takes a register more.
    from.begin(gy_of(which), TileStart(tile, d), d);
    bring<N>(strips.at(which), x, tile, d);
  };
  if (blockIdx.x < d.tiles) begin(blockIdx.x, 0);
  copy_commit();
  if (blockIdx.x < d.tiles) from.end(gy_of(0), d);
  // The warp's columns [kh][depth] of the patch, and where the strip has the first of each eight.
  const int first = blockIdx.y * COLUMNS + warp * 8 * EIGHTS;
  const auto base_of = [&](int eight) {
    const int column = first + 8 * eight, r = column / d.depth;
    return r < d.kh ? r * d.wide * d.pitch + column - r * d.depth : 0;
  };
  int base[EIGHTS];
#pragma unroll
  for (int j = 0; j < EIGHTS; ++j) base[j] = base_of(N == 4 ? j : j / 2 * 2 + lane / 16);
  const bool busy = first < d.kh * d.depth;
  float acc[SIXTEENS][EIGHTS][4] = {};
  int which = 0;
  for (int tile = blockIdx.x; tile < d.tiles; tile += gridDim.x, which ^= 1) {
    copy_wait<0>();
    __syncthreads();
    if (tile + gridDim.x < d.tiles) begin(tile + gridDim.x, which ^ 1);
    copy_commit();
    const T *strip = strips.at(which), *gys = gy_of(which);
    if (busy) {
#pragma unroll DEPTH
      for (int k = 0; k < PIXELS; k += 16) {
        unsigned bv[EIGHTS / 2][4];
        if constexpr (N == 4) {
          // Two pixels in a register, at one column: rows 2(l%4), the next, and both 8 further.
          const int at = k + lane % 4 * 2;
          const T* pixels[4] = {strip + place[at], strip + place[at + 1], strip + place[at + 8], strip + place[at + 9]};
#pragma unroll
          for (int j = 0; j < EIGHTS; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h)
              bv[j / 2][j % 2 * 2 + h] =
                  pixels[2 * h][base[j] + lane / 4].bits | (unsigned)pixels[2 * h + 1][base[j] + lane / 4].bits << 16;
        } else {
          const T* pixel = strip + place[k + lane % 16];
#pragma unroll
          for (int j = 0; j < EIGHTS / 2; ++j)
            load_matrices<true>(bv[j], reinterpret_cast<const Chunk<T>*>(pixel + base[2 * j]));
        }
        unsigned av[SIXTEENS][4];
#pragma unroll
        for (int i = 0; i < SIXTEENS; ++i) {
          const T* row = gys + (k + lane % 8 + lane / 16 * 8) * OUTPUT_PITCH + 16 * i + lane / 8 % 2 * 8;
          load_matrices<true>(av[i], reinterpret_cast<const Chunk<T>*>(row));
        }
#pragma unroll
        for (int i = 0; i < SIXTEENS; ++i)
#pragma unroll
          for (int j = 0; j < EIGHTS; ++j)
            multiply(Operand<T>{}, acc[i][j], av[i], bv[j / 2][j % 2 * 2], bv[j / 2][j % 2 * 2 + 1]);
      }
    }
    if (tile + gridDim.x < d.tiles) from.end(gy_of(which ^ 1), d);
  }
  if (!busy) return;
  partial += (size_t)blockIdx.x * d.o * d.kh * d.kw * d.c;  // [o][kh][kw][c]
#pragma unroll
  for (int j = 0; j < EIGHTS; ++j)
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const int column = first + 8 * j + lane % 4 * 2 + q;
      const int r = column / d.depth, in_row = column - r * d.depth, s = in_row / d.pitch, c = in_row - s * d.pitch;
      if (r >= d.kh || s >= d.kw || c >= d.c) continue;
#pragma unroll
      for (int i = 0; i < 2 * SIXTEENS; ++i) {
        const int o = o0 + 8 * i + lane / 4;
        if (o < d.o) partial[((o * d.kh + r) * d.kw + s) * d.c + c] = acc[i / 2][j][i % 2 * 2 + q];
      }
    }
}

// partial[block][o][kh][kw][c] = the sums of gy · patches over the block's pixels: the weight gradient.
// Threads: eight warps, each 32 columns of the patch and up to 64 rows.
// Traffic: one read of x and of gy.
// Launch: grid [blocks that walk over the tiles, ceil(kh·depth/256), ceil(o/64)], block 256; dynamic shared memory: two tiles of
//     gy and two strips.
// Numerics: f32 sums in the tensor cores, of a block's pixels in order; linear_split_sum adds up the blocks'.
// Limits: as above; the depth a multiple of 8.
template <class T>
__global__ void __launch_bounds__(256, 2) conv2d_strip_bwd_w(const T* __restrict__ gy, const T* __restrict__ x,
                                                             float* __restrict__ partial, Conv2dStripDims d) {
  DYN_SMEM(T, smem);
  SHARED(int, place, [PIXELS]);
  with_sixteens(d.o, [&](auto sixteens) {
    constexpr int SIXTEENS = decltype(sixteens)::COUNT;
    const OfPixels<SIXTEENS, T> from(gy, d);
    if (d.pitch == 4) gather_strips<4, SIXTEENS>(smem, place, from, x, partial, d);
    else gather_strips<8, SIXTEENS>(smem, place, from, x, partial, d);
  });
}

// The same of gy as a max-pool of 2x2 passes on its gradient g [n, ho/2, wo/2, o]: to the place in the window that won; where that
// is none of the four, to none. gy, four times as large, is not stored.
// Threads: as above; 64, 128 or 256 of them, for up to 16, 32 or more channels of a block, each load eight channels of a window while
//     the tile before is multiplied, and then lay out its four pixels.
// Traffic: one read of x, of g and of a byte.
// Limits: as above; o a multiple of 8; g aligned to 16 bytes; ho, wo, and rows and columns of a tile even.
template <class T>
__global__ void __launch_bounds__(256, 2)
    conv2d_strip_bwd_w_pooled(const T* __restrict__ g, const unsigned char* __restrict__ won, const T* __restrict__ x,
                              float* __restrict__ partial, Conv2dStripDims d) {
  DYN_SMEM(T, smem);
  SHARED(int, place, [PIXELS]);
  with_sixteens(d.o, [&](auto sixteens) {
    constexpr int SIXTEENS = decltype(sixteens)::COUNT;
    const OfWindows<SIXTEENS, T> from(g, won);
    if (d.pitch == 4) gather_strips<4, SIXTEENS>(smem, place, from, x, partial, d);
    else gather_strips<8, SIXTEENS>(smem, place, from, x, partial, d);
  });
}
