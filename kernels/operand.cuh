// The operands of a product, and what becomes of its sums.
//
// A source says where the elements of an operand lie. It knows lines (rows of A, columns of B) and gives the places of
// N neighbours at a time: those that a thread moves at once, 16 bytes of them. How is the product's business.
//     static constexpr bool along_k    the N are at (line, k..), otherwise at (line.., k)
//     const E* data, bool wide         the array; whether the N are always neighbours in it, and aligned
//     bool pairs                       whether each two of them are
//     void start(int line)             this thread's line, the same for the whole kernel
//     auto find(int k)                 what k alone says of the place, the same for all lines
//     int at(found)                    the place in `data` of the first of the N; NOWHERE for a zero
//     void each(int k, int (&at)[N])   the places of all
// AlongK and AcrossK below are plain matrices: a transpose is a choice of source. Convolution brings sources that find
// a matrix in the image (conv2d.cuh).
#pragma once
#include "activation.cuh"

// The place of an element that is outside of the matrix: zero. (Operands have fewer than 2^31 elements: an int is a
// place.)
constexpr int NOWHERE = -1;

// The sum of two parts of a place, if there are both.
__device__ __forceinline__ int place_of(int a, int b) { return (a | b) < 0 ? NOWHERE : a + b; }

// A matrix [lines][k_size]: K is contiguous.
template <class E, int N>
struct AlongK {
  using Element = E;
  static constexpr bool along_k = true;
  const E* data;
  int lines, k_size;
  bool wide, pairs;
  int row;  // the place of this thread's line, if there is one
  __device__ AlongK(const E* data, int lines, int k_size)
      : data(data), lines(lines), k_size(k_size), wide(rows_of<N>(data, k_size)), pairs(rows_of<2>(data, k_size)) {}
  __device__ __forceinline__ void start(int line) { row = line < lines ? line * k_size : NOWHERE; }
  __device__ __forceinline__ int find(int k) const { return k < k_size ? k : NOWHERE; }
  __device__ __forceinline__ int at(int found) const { return place_of(row, found); }
  __device__ __forceinline__ void each(int k, int (&at)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) at[i] = this->at(find(k + i));
  }
};

// A matrix [k_size][lines]: the lines are contiguous.
template <class E, int N>
struct AcrossK {
  using Element = E;
  static constexpr bool along_k = false;
  const E* data;
  int lines, k_size;
  bool wide, pairs;
  int line;  // the first of this thread's N, if there is one
  __device__ AcrossK(const E* data, int lines, int k_size)
      : data(data), lines(lines), k_size(k_size), wide(rows_of<N>(data, lines)), pairs(rows_of<2>(data, lines)) {}
  __device__ __forceinline__ void start(int first) { line = first < lines ? first : NOWHERE; }
  __device__ __forceinline__ int find(int k) const { return k < k_size ? k * lines : NOWHERE; }
  __device__ __forceinline__ int at(int found) const { return place_of(found, line); }
  __device__ __forceinline__ void each(int k, int (&at)[N]) const {
    const int found = this->at(find(k));
#pragma unroll
    for (int i = 0; i < N; ++i) at[i] = found != NOWHERE && line + i < lines ? found + i : NOWHERE;
  }
};

// An element as a float.
template <class E>
__device__ __forceinline__ float one_of(const E* data, int at) {
  return at == NOWHERE ? 0.0f : to_float(data[at]);
}

template <class>
using Void = void;

// Whether a tile masks what it stores: its struct does not say UNMASKED = 1.
template <class Tile, class = void>
constexpr bool takes_masks = true;
template <class Tile>
constexpr bool takes_masks<Tile, Void<decltype(Tile::UNMASKED)>> = false;

template <class E>
struct Epilogue;

// Whether an epilogue may mask what it stores. One that does has masks of N neighbours of a row as words, for rows of whole ones:
// has_masks says whether, and masks_at loads them before the sums are there; what is converted to floats would be waited for.
template <class Then>
constexpr bool may_mask = false;
template <class E>
constexpr bool may_mask<Epilogue<E>> = true;
template <int N, class E>
__device__ __forceinline__ bool has_masks(const Epilogue<E>& of, int n) {
  return of.masks && rows_of<N>(of.masks, n) && is_aligned<N>(of.y);
}
template <int N, class E>
__device__ __forceinline__ Pack<unsigned, N> masks_at(const Epilogue<E>& of, int row, int column, int n) {
  using Words = Pack<unsigned, N * sizeof(E) / 4>;
  const Words words = *reinterpret_cast<const Words*>(of.masks + (size_t)row * n + column);
  Pack<unsigned, N> masks;
#pragma unroll
  for (int i = 0; i < N * (int)sizeof(E) / 4; ++i) masks.v[i] = words.v[i];
  return masks;
}

// What becomes of the sums of C [m][n]: the tile applies it, or split_sum if there are splits.
template <class E>
struct Epilogue {
  static constexpr bool BY_COLUMNS = false;  // whether what lies side by side in memory is of one column of C
  E* y;                                      // [m][n]
  const float* bias;                         // [n] or null, added to every row
  int accumulate;                            // add to y instead of overwriting it
  int relu;                                  // store max(y, 0)
  // [m][n] or null: store 0 where this is not above 0, as ReLU that made it passes on no gradient.
  const E* masks = nullptr;
  // For the sums of one split.
  __device__ __forceinline__ Epilogue<float> of_partial(float* partial) const { return {partial, nullptr, 0, 0}; }
  __device__ __forceinline__ float bias_at(int column, int n) const { return bias && column < n ? bias[column] : 0.0f; }
  // Whether rows are of N elements each that are stored as they are, whatever is there.
  template <int N>
  __device__ __forceinline__ bool overwrites(int n) const {
    return !accumulate && !masks && rows_of<N>(y, n);
  }
  // What is stored then of a sum, which has its bias already. Without a branch: no number is below -infinity.
  __device__ __forceinline__ float least() const { return relu ? 0.0f : __uint_as_float(0xff800000); }
  static __device__ __forceinline__ E rounded(float v, float least) { return from_float<E>(v < least ? least : v); }
  // What is stored of a sum where y is `old`.
  __device__ __forceinline__ float result(float v, float old) const {
    if (accumulate) v += old;
    return relu ? Relu::of(v) : v;
  }
  __device__ __forceinline__ void store(size_t at, float v) const {
    v = result(v, accumulate ? to_float(y[at]) : 0.0f);
    y[at] = from_float<E>(masks ? Relu::gradient(to_float(masks[at]), v) : v);
  }
  // N neighbours of a row, as many of them as there are columns.
  template <int N>
  __device__ __forceinline__ void store(int row, int column, int n, const Pack<float, N>& v) const {
    const size_t at = (size_t)row * n + column;
    if (masks ? has_masks<N>(*this, n) : rows_of<N>(y, n)) {
      const Pack<float, N> out = results<N>(at, v);
      return ::store(y + at, masks ? masked<N>(out, masks_at<N>(*this, row, column, n)) : out);
    }
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (column + i < n) store(at + i, v.v[i]);
  }
  // The same where there are these masks.
  template <int N>
  __device__ __forceinline__ void store(int row, int column, int n, const Pack<float, N>& v,
                                        const Pack<unsigned, N>& masks) const {
    const size_t at = (size_t)row * n + column;
    ::store(y + at, masked<N>(results<N>(at, v), masks));
  }
  // `result` of N neighbours.
  template <int N>
  __device__ __forceinline__ Pack<float, N> results(size_t at, Pack<float, N> v) const {
    if (accumulate) {
      const Pack<float, N> old = load<N>(y + at);
#pragma unroll
      for (int i = 0; i < N; ++i) v.v[i] += old.v[i];
    }
    return relu ? map_pack<N>([](float v) { return Relu::of(v); }, v) : v;
  }
  // What masks pass on of it.
  template <int N>
  static __device__ __forceinline__ Pack<float, N> masked(Pack<float, N> v, const Pack<unsigned, N>& masks) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float mask;
      if constexpr (sizeof(E) == 4) mask = __uint_as_float(masks.v[i]);
      else mask = to_float(E{(unsigned short)(masks.v[i / 2] >> i % 2 * 16)});
      v.v[i] = Relu::gradient(mask, v.v[i]);
    }
    return v;
  }
};

// Whether the rows of C are four of a window each, of which the largest is stored: PoolEpilogue in conv2d_pool.cu.
template <class Then>
constexpr bool pools = false;

// The same where the product is of the transpose: row and column of C are those of y the other way round, y [n][m].
template <class E>
struct Transposed {
  static constexpr bool BY_COLUMNS = true;
  E* y;            // [n][m]
  int m;           // rows of C
  int accumulate;  // add to y instead of overwriting it
  __device__ __forceinline__ Transposed<float> of_partial(float* partial) const { return {partial, m, 0}; }
  __device__ __forceinline__ float bias_at(int, int) const { return 0.0f; }
  // N neighbours of a row, of which all are there: maps are of rows of whole chunks. In memory the rows of neighbouring
  // threads are neighbours.
  template <int N>
  __device__ __forceinline__ void store(int row, int column, int, const Pack<float, N>& v) const {
    const Epilogue<E> each = {y, nullptr, accumulate, 0};
#pragma unroll
    for (int i = 0; i < N; ++i) each.store((size_t)(column + i) * m + row, v.v[i]);
  }
};

// The sizes of a product and how K is cut.
struct Cut {
  int m, n, k, split_steps;
  float* partial;  // [splits][m][n] (of a transpose [splits][n][m]), or null if there is no split
  int rows = 0;    // rows of a partial result where several products share it; else m
  int from = 0;    // where along K it begins: before there, a multiple of every step, are zeros
  // The first step of this block's split, and how many it has.
  template <int STEP>
  __device__ __forceinline__ int first_step() const {
    return from / STEP + blockIdx.z * split_steps;
  }
  template <int STEP>
  __device__ __forceinline__ int steps() const {
    return min((k + STEP - 1) / STEP - first_step<STEP>(), split_steps);
  }
  __device__ __forceinline__ float* partial_of(int split) const {
    return partial ? partial + (size_t)split * (rows ? rows : m) * n : nullptr;
  }
};
