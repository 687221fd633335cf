// Strips of images in shared memory, for conv2d_strip.cu: the sizes, which pixels a tile has and sees, and how they come there.
#pragma once
#include "rows.cuh"

struct Conv2dStripDims {
  int n, h, w, c;             // what is read: images, their height, width, channels
  int ho, wo, o;              // what is computed, or for the weight gradient the other factor
  int kh, kw;                 // window
  int sh, sw, up, left;       // from the window of a pixel to its neighbours'; how far outside x the first one begins
  int turned;                 // 1: input gradient, weights [c][kh][kw][o]
  int ah, aw, ph, pw;         // its classes down and across, 1 without; then also the padding
  int accumulate, relu;       // what is done with y (operand.cuh)
  int images, rows, columns;  // pixels of a tile, of each class
  int high, wide;             // rows and columns that they see of an image
  int pitch;                  // elements of a pixel in shared memory
  int runs, depth;            // runs of a class, at most, and elements of one
  int tiles, down, across;    // tiles, and those of an image down and across
  // Divisors, as `divide` (common.cuh) takes them; chunks are those of a pixel.
  unsigned by_columns[2], by_rows[2], by_wide[2], by_high[2], by_chunks[2], by_across[2], by_down[2];
  unsigned by_kw[2], by_taps[2], by_side[2];  // kh·kw; c, or o if turned: what a block has of it
  unsigned by_half_columns[2], by_half_rows[2];
};

// Pixels of a tile: at most so many.
constexpr int PIXELS = 128;
// Channels of y that a block computes, or of gy that it reads; what they take in shared memory, spread over the banks.
constexpr int OUTPUTS = 64, OUTPUT_PITCH = OUTPUTS + 8;
// Elements behind a strip that are read and mean nothing.
constexpr int BEHIND = 16;

// Calls f with as many times 16 channels as a block has: one, two or four.
template <int N>
struct Sixteens {
  static constexpr int COUNT = N;
};
template <class F>
__device__ __forceinline__ void with_sixteens(int channels, F f) {
  if (channels <= 16) f(Sixteens<1>{});
  else if (channels <= 32) f(Sixteens<2>{});
  else f(Sixteens<OUTPUTS / 16>{});
}

// An output pixel of a tile: the image and the place in it, counted from the tile's first.
struct InTile {
  int image, row, column;
  InTile() = default;
  __device__ __forceinline__ InTile(int m, const Conv2dStripDims& d) {
    const int line = divide(m, d.by_columns);
    image = divide(line, d.by_rows), row = line - image * d.rows, column = m - line * d.columns;
  }
  // Where its window begins in the strip.
  __device__ __forceinline__ int place(const Conv2dStripDims& d) const {
    return image < d.images ? ((image * d.high + row * d.sh) * d.wide + column * d.sw) * d.pitch : 0;
  }
};

// The first output pixel of a tile.
struct TileStart {
  int image, row, column;
  __device__ __forceinline__ TileStart(int tile, const Conv2dStripDims& d) {
    const int line = divide(tile, d.by_across), group = divide(line, d.by_down);
    image = group * d.images, row = (line - group * d.down) * d.rows, column = (tile - line * d.across) * d.columns;
  }
  // The number in y of a pixel of class (a, b), if there is one.
  __device__ __forceinline__ int pixel(const InTile& in, int a, int b, const Conv2dStripDims& d) const {
    const int i = image + in.image, r = (row + in.row) * d.ah + a, c = (column + in.column) * d.aw + b;
    return in.image < d.images && i < d.n && r < d.ho && c < d.wo ? (i * d.ho + r) * d.wo + c : NOWHERE;
  }
};

// A chunk of a row of `size` elements: the N from the one at `first` on, which is `at` in an array; zeros behind the row's end,
// or if there is no row.
struct Part {
  int at, first;
  bool there;
};

// Copies `count` parts of N elements, the i-th of which is part_of(i) in `from`, to to_of(i). `whole`: rows are of whole chunks.
// Others are read several at a time: else each would wait for the one before it.
template <int N, class T, class PartOf, class ToOf>
__device__ __forceinline__ void copy_parts(const T* from, int count, int size, bool whole, PartOf part_of, ToOf to_of) {
  if (N == 8 && whole) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const Part part = part_of(i);
      const bool valid = part.there && part.first < size;
      copy_async(reinterpret_cast<Chunk<T>*>(to_of(i)), from + (valid ? part.at : 0), valid);
    }
    return;
  }
  constexpr int AHEAD = N == 8 ? 2 : 4;
  for (int i = threadIdx.x; i < count; i += AHEAD * blockDim.x) {
    Pack<T, N> v[AHEAD];
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      const int j = i + a * blockDim.x;
      const Part part = part_of(j);
      const bool there = j < count && part.there;
      const T* at = from + part.at;
#pragma unroll
      for (int e = 0; e < N; ++e) v[a].v[e] = there && part.first + e < size ? at[e] : T{};
    }
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      const int j = i + a * blockDim.x;
      if (j < count) *reinterpret_cast<Pack<T, N>*>(to_of(j)) = v[a];
    }
  }
}

// What a tile sees of x. N: elements that are copied at once.
template <int N, class T>
__device__ __forceinline__ void bring(T* strip, const T* x, int tile, const Conv2dStripDims& d) {
  const TileStart start(tile, d);
  const int chunks = N == 4 ? 1 : d.pitch / N;
  const int row0 = start.row * d.sh - d.up, column0 = start.column * d.sw - d.left;
  const auto part_of = [&](int i) {
    const int pixel = N == 4 ? i : divide(i, d.by_chunks), first = N == 4 ? 0 : (i - pixel * chunks) * N;
    const int line = divide(pixel, d.by_wide), image = divide(line, d.by_high);
    const int n = start.image + image, h = row0 + line - image * d.high, w = column0 + pixel - line * d.wide;
    const bool there = n < d.n && (unsigned)h < (unsigned)d.h && (unsigned)w < (unsigned)d.w;
    return Part{((n * d.h + h) * d.w + w) * d.c + first, first, there};
  };
  const auto to_of = [&](int i) { return strip + i * N; };
  copy_parts<N>(x, d.images * d.high * d.wide * chunks, d.c, rows_of<8>(x, d.c), part_of, to_of);
}

// Both strips, and zeros behind them: N elements from `strips` on that no strip covers.
template <class T>
struct Strips {
  T* first;
  int size;
  __device__ __forceinline__ Strips(T* first, const Conv2dStripDims& d)
      : first(first), size(d.images * d.high * d.wide * d.pitch + BEHIND) {
    for (int i = threadIdx.x; i < 2 * BEHIND; i += blockDim.x)
      first[i / BEHIND * size + size - BEHIND + i % BEHIND] = T{};
  }
  __device__ __forceinline__ T* at(int which) const { return first + which * size; }
};
