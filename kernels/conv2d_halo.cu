// Convolution to few channels on Hopper's tensor cores: x goes to shared memory once, for all places of the window.
//
//   global memory --(TMA, runs of places)--> shared memory --> wgmma
//
// conv2d_fwd_tma (conv2d.cu) brings the pixels of a tile again for each place of the window, and with 64 columns its products
// ask for more than shared memory can deliver. Here neither is so, for strides of 1.
//
// The line. Lay the images out on one line, row after row, with their padding: what is right of a row is what is left of the
// next, and what is below an image what is above the next. That makes `row` places a row, and `rows` rows an image. The place
// (r, s) of the window that begins at place l is then l + r·row + s, whatever l is. So a run of M + (kh - 1)·row + kw - 1 places
// serves M windows, and a place of the window is another row for the operand to begin at, which wgmma's descriptors allow. TMA
// brings a run as one box: it walks over an image with what is left of it and above it. Windows that begin in the padding are
// computed and not stored: 12 % of all at 15x15 with a padding of 1, 6 % at 31x31.
//
// The product is of the transpose: rows are channels of y, columns are places. [64][16] times [16][256] reads 10 KiB of shared
// memory, four products of [64][16] times [16][64] read 16.
//
// One thread of a third warpgroup asks for the boxes. The other two warpgroups multiply, each its own tiles, in turns: while one
// stores, the other has the tensor cores. Runs take slots in turns, and so do the weights of a place and K channels; where all
// of these fit, they are brought once.
//
// Channels behind the last are zeros of TMA, in runs and in weights.
// Instances: sm_90a: T = half, bf16; Tile = Halo64, Halo32
#include "hopper.cuh"
#include "operand.cuh"
#include "pool.cuh"
#include "tensor_core.cuh"

struct Conv2dHaloDims {
  int n, h, w;           // y: images, rows and columns
  int c, o;              // channels of x; of y, N at most
  int kh, kw;            // window
  int up, left;          // from a pixel of y to the first that its window sees
  int row, rows;         // places of a row, rows of an image
  int run;               // places that M windows see
  int runs, weights;     // slots in shared memory
  int accumulate, relu;  // what is done with y (operand.cuh)
  // Where y is pooled: pairs of rows of a tile; and its windows whose last place is among the first 64, 128, 192 and 256.
  int pairs;
  int ended[4];
  // Divisors, as `divide` (common.cuh) takes them; across: w, down: pairs of rows of an image.
  unsigned by_row[2], by_rows[2], by_across[2], by_down[2];
};

// M places of the line to N channels, in steps of one place of the window and K channels: rows of 2·K bytes. BLOCKS on a
// multiprocessor, of SHARED bytes at most. LATENCY and SPEED are those of a prototype with the same products (H100): LATENCY is
// half of what a launch takes beside its steps. The host estimates a time of
//     2·LATENCY + ceil(tiles/132)·steps·M·N·K/(225·SPEED/100) ns, steps = kh·kw·ceil(c/K).
struct Halo64 {
  enum { M = 256, N = 64, K = 64, SHARED = 231424, THREADS = 384, MAPS = 1, BLOCKS = 1, LATENCY = 3500, SPEED = 1280 };
};
struct Halo32 {
  enum { M = 256, N = 64, K = 32, SHARED = 231424, THREADS = 384, MAPS = 1, BLOCKS = 1, LATENCY = 3500, SPEED = 960 };
};

// The window that begins at a place of the line: its image, and its row and column there.
struct Place {
  int image, row, column;
  __device__ __forceinline__ Place(int place, const Conv2dHaloDims& d) {
    const int line = divide(place, d.by_row);
    image = divide(line, d.by_rows), row = line - image * d.rows, column = place - line * d.row;
  }
  // The pixel of y that it makes, if there is one.
  __device__ __forceinline__ int pixel(const Conv2dHaloDims& d) const {
    return image < d.n && row < d.h && column < d.w ? (image * d.h + row) * d.w + column : NOWHERE;
  }
};

// Slots of shared memory that boxes take in turns. Each has two mbarriers. `full`: its bytes have come. `empty`: the warpgroup
// that multiplies with them has read them.
struct Slots {
  unsigned tiles, barriers;
  int size, count, slot, phase;
  __device__ __forceinline__ Slots(unsigned tiles, unsigned barriers, int size, int count)
      : tiles(tiles), barriers(barriers), size(size), count(count), slot(0), phase(0) {}
  __device__ __forceinline__ unsigned at() const { return tiles + slot * size; }
  __device__ __forceinline__ unsigned full() const { return barriers + 16 * slot; }
  __device__ __forceinline__ unsigned empty() const { return full() + 8; }
  __device__ __forceinline__ unsigned empty_before() const {
    return barriers + 16 * (slot == 0 ? count - 1 : slot - 1) + 8;
  }
  __device__ __forceinline__ void next() {
    if (++slot == count) slot = 0, phase ^= 1;
  }
  __device__ __forceinline__ void skip(int boxes) {
    const int rounds = (slot + boxes) / count;
    slot += boxes - rounds * count, phase ^= rounds & 1;
  }
  __device__ __forceinline__ void init() const {
    for (int i = 0; i < count; ++i) {
      mbarrier_init(barriers + 16 * i, 1);
      mbarrier_init(barriers + 16 * i + 8, 1);
    }
  }
};

// A warpgroup's results on their way to memory: 64 places of 64 channels.
constexpr int SLAB = 64 * 128;

// Shared memory: runs, weights, two slabs of each warpgroup that multiplies, mbarriers, the last two of which say whose turn it
// is to multiply.
template <class Tile>
struct Layout {
  Slots runs, weights;
  unsigned slabs, turns;
  __device__ __forceinline__ Layout(unsigned from, const Conv2dHaloDims& d)
      : runs(from, 0, (d.run * 2 * Tile::K + 1023) & ~1023, d.runs),
        weights(from + d.runs * runs.size, 0, Tile::N * 2 * Tile::K, d.weights) {
    slabs = weights.tiles + d.weights * weights.size;
    runs.barriers = slabs + 4 * SLAB;
    weights.barriers = runs.barriers + 16 * d.runs;
    turns = weights.barriers + 16 * d.weights;
  }
};

// Places from one tile to the next: M, or where y is pooled whole pairs of rows.
template <class Tile, bool POOL>
__device__ __forceinline__ int span_of(const Conv2dHaloDims& d) {
  return POOL ? 2 * d.row * d.pairs : Tile::M;
}

// The steps of a tile, each with weights of its own; and how many tiles there are.
template <class Tile>
__device__ __forceinline__ int steps_of(const Conv2dHaloDims& d) {
  return d.kh * d.kw * ((d.c + Tile::K - 1) / Tile::K);
}
template <class Tile, bool POOL>
__device__ __forceinline__ int tiles_of(const Conv2dHaloDims& d) {
  const int span = span_of<Tile, POOL>(d);
  return (d.n * d.rows * d.row + span - 1) / span;
}

// Asks for the boxes of a block's tiles, in the order in which they are multiplied.
template <class Tile, bool TURNED, bool POOL>
__device__ __forceinline__ void bring(const CUtensorMap* x, const CUtensorMap* w, const Layout<Tile>& layout,
                                      const Conv2dHaloDims& d) {
  Slots runs = layout.runs, weights = layout.weights;
  const int taps = d.kh * d.kw, tiles = tiles_of<Tile, POOL>(d);
  const bool stay = d.weights == steps_of<Tile>(d);
#pragma unroll 1
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const Place from(tile * span_of<Tile, POOL>(d), d);
#pragma unroll 1
    for (int c = 0; c < d.c; c += Tile::K) {
      // The phase before a barrier's first counts as past: all slots are free to begin with.
      mbarrier_wait(runs.empty(), runs.phase ^ 1);
      mbarrier_arrive_expect(runs.full(), d.run * 2 * Tile::K);
      tma_load_im2col(runs.at(), x, runs.full(), c, from.column - d.left, from.row - d.up, from.image, 0, 0);
      runs.next();
      if (stay && tile != blockIdx.x) continue;
#pragma unroll 1
      for (int i = 0; i < taps; ++i) {
        mbarrier_wait(weights.empty(), weights.phase ^ 1);
        mbarrier_arrive_expect(weights.full(), weights.size);
        if (TURNED) tma_load3(weights.at(), w, weights.full(), 0, taps - 1 - i, c);
        else tma_load3(weights.at(), w, weights.full(), c, i, 0);
        weights.next();
      }
    }
  }
}

// Two slabs of a warpgroup are 128 places of 64 channels, one behind the other: where it has a chunk of a place.
template <class T>
__device__ __forceinline__ Chunk<T>* chunk_of(Chunk<T>* slabs, int place, int chunk) {
  return slabs + 8 * place + (chunk ^ place % 8);
}

// Puts what becomes of a warpgroup's sums of the 64 places from 64 * i on into a slab, to which y there has been brought if
// it is to be added.
template <class T, int SUMS>
__device__ __forceinline__ void stage(const float (&acc)[SUMS], int i, Chunk<T>* slab, const float (&bias)[2],
                                      const Epilogue<T>& epilogue) {
  const int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
  const float least = epilogue.least();
  const auto result = [&](float v, unsigned old) -> unsigned {
    if (epilogue.accumulate) v += to_float(T{(unsigned short)old});
    return epilogue.rounded(v, least).bits;
  };
  // A warp has 16 channels: matrices of 8 places, first their first 8 channels, then the others, then 8 places more.
  Chunk<T>* mine = chunk_of(slab, lane / 16 * 8 + lane % 8, 2 * warp + lane / 8 % 2);
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    unsigned v[4] = {};
    if (epilogue.accumulate) {
      load_matrices<true>(v, mine + 64 * j);
      __syncwarp();  // all lanes have read what they will overwrite for each other
    }
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float* sum = acc + 32 * i + 4 * j + 2 * q;
      v[q] = result(sum[0] + bias[q % 2], v[q]) | result(sum[1] + bias[q % 2], v[q] >> 16) << 16;
    }
    store_tiles_transposed(smem_address(mine + 64 * j), v[0], v[1], v[2], v[3]);
  }
}

// Stores a warpgroup's sums: through slabs, so that eight threads have the channels of a pixel side by side.
template <class T, class Tile>
__device__ __forceinline__ void store_places(const float (&acc)[Tile::M / 2], int first, Chunk<T>* slabs, int group,
                                             const float (&bias)[2], const Epilogue<T>& epilogue,
                                             const Conv2dHaloDims& d) {
  const int t = threadIdx.x % 128, channel = t % 8 * 8;
#pragma unroll
  for (int i = 0; i < Tile::M / 64; ++i) {
    // All have read what was in this slab when they meet at the barrier of the other.
    Chunk<T>* slab = slabs + i % 2 * (SLAB / 16);
    int at[4];
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int pixel = Place(first + 64 * i + t / 8 + 16 * q, d).pixel(d);
      at[q] = pixel != NOWHERE && channel < d.o ? pixel * d.o + channel : NOWHERE;
    }
    if (epilogue.accumulate) {
#pragma unroll
      for (int q = 0; q < 4; ++q)
        *chunk_of(slab, t / 8 + 16 * q, t % 8) =
            at[q] != NOWHERE ? *reinterpret_cast<const Chunk<T>*>(epilogue.y + at[q]) : Chunk<T>{};
      named_sync(1 + group, 128);
    }
    stage(acc, i, slab, bias, epilogue);
    named_sync(1 + group, 128);
#pragma unroll
    for (int q = 0; q < 4; ++q)
      if (at[q] != NOWHERE) *reinterpret_cast<Chunk<T>*>(epilogue.y + at[q]) = *chunk_of(slab, t / 8 + 16 * q, t % 8);
  }
}

// The same for windows of 2x2, of which the largest value and its place are stored. A window is of two rows: those that end in
// one slab begin in it or in the one before, if a row has less than 64 places.
template <class T, class Tile>
__device__ __forceinline__ void pool_places(const float (&acc)[Tile::M / 2], int tile, Chunk<T>* slabs, int group,
                                            const float (&bias)[2], const Epilogue<T>& epilogue, unsigned char* place,
                                            const Conv2dHaloDims& d) {
  const int t = threadIdx.x % 128, channel = t % 8 * 8;
  int window = t / 8;
#pragma unroll
  for (int i = 0; i < Tile::M / 64; ++i) {
    named_sync(1 + group, 128);  // all have read what was in this slab
    stage(acc, i, slabs + i % 2 * (SLAB / 16), bias, epilogue);
    named_sync(1 + group, 128);
#pragma unroll 1
    for (; window < d.ended[i]; window += 16) {
      const int pair = divide(window, d.by_across), q = window - pair * d.w;
      const int line = tile * d.pairs + pair, image = divide(line, d.by_down), p = line - image * (d.rows / 2);
      if (image >= d.n || p >= d.h || channel >= d.o) continue;
      const auto at = [&](int r, int s) {
        return to_floats(*chunk_of(slabs, ((2 * pair + r) * d.row + 2 * q + s) % 128, t % 8));
      };
      Largest<8> found(at(0, 0), 0);
      found.see(at(0, 1), 1);
      found.see(at(1, 0), 2);
      found.see(at(1, 1), 3);
      store_winners(epilogue.y, place, ((image * d.h + p) * d.w + q) * d.o + channel, epilogue.relu, found);
    }
  }
}

// Multiplies and stores every second tile of the block's, from the one of this warpgroup's number on.
template <class T, class Tile, bool TURNED, bool POOL>
__device__ __forceinline__ void multiply_runs(Chunk<T>* smem, const Layout<Tile>& layout, int group,
                                              const Epilogue<T>& epilogue, unsigned char* place,
                                              const Conv2dHaloDims& d) {
  constexpr int M = Tile::M, ROW = 2 * Tile::K;
  Slots runs = layout.runs, weights = layout.weights;
  Chunk<T>* slabs = smem + (layout.slabs + 2 * group * SLAB - runs.tiles) / 16;
  const int tiles = tiles_of<Tile, POOL>(d), steps = steps_of<Tile>(d), chunks = steps / (d.kh * d.kw);
  const bool stay = d.weights == steps, speaks = threadIdx.x % 128 == 0;
  const int channel = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  const float bias[2] = {epilogue.bias_at(channel, d.o), epilogue.bias_at(channel + 8, d.o)};
  runs.skip(group * chunks);
  weights.skip(group * steps);
  // The first turn is that of warpgroup 0: the phase before the first counts as past.
  int turn = group ^ 1;
  float acc[M / 2];
#pragma unroll 1
  for (int tile = blockIdx.x + group * gridDim.x; tile < tiles; tile += 2 * gridDim.x, turn ^= 1) {
    wgmma_keep(acc);
    mbarrier_wait(layout.turns + 8 * group, turn);
    bool fresh = true;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      mbarrier_wait(runs.full(), runs.phase);
#pragma unroll 1
      for (int r = 0; r < d.kh; ++r) {
#pragma unroll 1
        for (int s = 0; s < d.kw; ++s) {
          mbarrier_wait(weights.full(), stay ? 0 : weights.phase);
          const unsigned at = weights.at(), bt = runs.at() + (r * d.row + s) * ROW;
          wgmma_fence();
#pragma unroll
          for (int k = 0; k < Tile::K / 16; ++k) {
            const auto a =
                TURNED ? descriptor<128>(at + k * 16 * 128, 1024, 0) : descriptor<ROW>(at + 32 * k, 8 * ROW, 0);
            wgmma<T, M, TURNED, 0>(acc, a, descriptor<ROW>(bt + 32 * k, 8 * ROW, 0), !fresh || k > 0);
          }
          wgmma_commit();
          // The products of the step before are done with their operands.
          wgmma_wait<1>();
          if (speaks && !fresh) {
            if (!stay) mbarrier_arrive(weights.empty_before());
            if (r + s == 0) mbarrier_arrive(runs.empty_before());
          }
          weights.next();
          fresh = false;
        }
      }
      runs.next();
    }
    if (speaks) mbarrier_arrive(layout.turns + 8 * (group ^ 1));
    wgmma_wait<0>();
    if (speaks) {
      if (!stay) mbarrier_arrive(weights.empty_before());
      mbarrier_arrive(runs.empty_before());
    }
    wgmma_keep(acc);
    // Those of the other warpgroup's tile.
    runs.skip(chunks);
    weights.skip(steps);
    if constexpr (POOL) pool_places<T, Tile>(acc, tile, slabs, group, bias, epilogue, place, d);
    else store_places<T, Tile>(acc, tile * M, slabs, group, bias, epilogue, d);
  }
}

// A block's tiles.
template <class T, class Tile, bool TURNED, bool POOL = false>
__device__ __forceinline__ void halo(const CUtensorMap* x, const CUtensorMap* w, const Epilogue<T>& epilogue,
                                     const Conv2dHaloDims& d, unsigned char* place = nullptr) {
  static_assert(Tile::M == 256 && Tile::N == 64 && Tile::THREADS == 384, "a warpgroup multiplies a whole tile");
  DYN_TILES(Chunk<T>, smem);
  const Layout<Tile> layout(smem_address(smem), d);
  if (threadIdx.x == 0) {
    layout.runs.init();
    layout.weights.init();
    mbarrier_init(layout.turns, 1);
    mbarrier_init(layout.turns + 8, 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  const int group = threadIdx.x / 128;
  if (group == 2) {
    registers_down<40>();
    if (threadIdx.x % 128 == 0) bring<Tile, TURNED, POOL>(x, w, layout, d);
  } else {
    registers_up<232>();
    multiply_runs<T, Tile, TURNED, POOL>(smem, layout, group, epilogue, place, d);
  }
}

// y = conv(x, w) + b, and its ReLU: `x` is a map of images, d.run places of K channels a box, `w` one of the weights
// [o][kh·kw][c], N rows of K channels a box (Rust: src/ops/conv2d/halo.rs).
// Threads: two warpgroups multiply, a tile each in turns; one thread of the third asks for the boxes.
// Traffic: of x each tile's run, M places and (kh - 1)·row + kw - 1 more; the weights once a block, or if they do not stay once a
//     tile; one write of y.
// Launch: grid [blocks that walk over the tiles, 1, 1], block 384; dynamic shared memory as Layout has it.
// Numerics: f32 sums in the tensor cores along (chunk of K channels, r, s, channel), then the bias, rounded once.
// Limits: a stride of 1, and less padding than the window is long; c and o multiples of 8, y aligned to 16 bytes; runs of 1024
//     places at most; two runs in shared memory, and four weights or all.
// Registers: at most 168.
// Measured: H100, 2026-11-27, 2000 images in f16, Halo64: 64 to 64 channels at 15x15 62 µs, 537 TFLOP/s (Tma64 98); Halo32: 24 to
//     64 at 31x31 164 µs (by strips 304). conv2d_halo_bwd_x, Halo64: 256 to 64 at 15x15 204 µs, 649 TFLOP/s; 64 to 24 at 31x31
//     212 µs (by strips 527).
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    conv2d_halo_fwd(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                    OPTIONAL const float* __restrict__ b, T* __restrict__ y, Conv2dHaloDims d) {
  halo<T, Tile, false>(&x, &w, {y, b, 0, d.relu}, d);
}

// The same, and of that a max-pool of 2x2: y [n, h/2, w/2, o], and of each of its values the place in its window that won, or
// NOBODY where the ReLU passes nothing on (pool.cuh).
// Traffic: as above, but a quarter of the write and a byte an output. What is pooled stays in shared memory.
// Numerics: as above; rounded before it is compared.
// Limits: as above; rows of 63 places at most. An image has an even number of rows, one more than it needs if need be.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    conv2d_halo_pool_fwd(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                         OPTIONAL const float* __restrict__ b, T* __restrict__ y, unsigned char* __restrict__ place,
                         Conv2dHaloDims d) {
  halo<T, Tile, false, true>(&x, &w, {y, b, 0, d.relu}, d, place);
}

// The input gradient likewise: `gy` is a map of images that the window sees turned round, `w` one of the weights [c][kh·kw][o],
// of which a box has K rows of N channels. The sizes are those of that product: c channels of gy, o of gx.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    conv2d_halo_bwd_x(const __grid_constant__ CUtensorMap gy, const __grid_constant__ CUtensorMap w, T* __restrict__ gx,
                      Conv2dHaloDims d) {
  halo<T, Tile, true>(&gy, &w, {gx, nullptr, d.accumulate, 0}, d);
}
