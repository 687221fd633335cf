// Rows of sums that four neighbouring lanes share, as tensor cores leave them: of each 8 columns a lane has 2. The lanes exchange
// them, so that each has 8 side by side to store. Sums that are stored in two bytes, whatever is there, are rounded first: two fit
// in a register, and half as much is exchanged.
#pragma once
#include "operand.cuh"
#include "tensor_core.cuh"

// This lane's 8 of 32 columns; of(p, q) is the q-th that it has of the p-th 8.
template <class Of>
__device__ __forceinline__ Pack<float, 8> exchange_sums(int lane, Of of) {
  Pack<float, 8> sums;
#pragma unroll
  for (int q = 0; q < 8; ++q) sums.v[q] = of(q / 2, q % 2);
  exchange<1>(sums.v, lane);
  exchange<2>(sums.v, lane);
  return sums;
}

// Eight elements of two bytes.
using Words = Pack<unsigned, 4>;

// The same of sums as they are stored.
template <class Of>
__device__ __forceinline__ Words exchange_rounded(int lane, Of of) {
  Words words;
#pragma unroll
  for (int p = 0; p < 4; ++p) words.v[p] = of(p, 0).bits | of(p, 1).bits << 16;
  exchange<1>(words.v, lane);
  exchange<2>(words.v, lane);
  return words;
}

// The biases of what this lane has of 32 columns from `column` on, before the exchange.
struct Biases {
  float of[4][2];
  template <class Then>
  __device__ __forceinline__ Biases(const Then& epilogue, int column, int n, int lane) {
#pragma unroll
    for (int p = 0; p < 4; ++p)
#pragma unroll
      for (int q = 0; q < 2; ++q) of[p][q] = epilogue.bias_at(column + 8 * p + lane % 4 * 2 + q, n);
  }
};

// Element i of words.
template <class E>
__device__ __forceinline__ E element(const Words& words, int i) {
  return E{(unsigned short)(words.v[i / 2] >> (i % 2 * 16))};
}

// Whether an epilogue may store words: epilogue.overwrites<8>(n) says whether it does.
template <class Then>
constexpr bool stores_words = false;
template <class E>
constexpr bool stores_words<Epilogue<E>> = sizeof(E) == 2;
