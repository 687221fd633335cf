// Neighbours that are read or written with one access: four at a time, or 16 bytes, which cost as many
// instructions as one element.
#pragma once
#include "common.cuh"

template <class E, int N>
struct __align__(N * sizeof(E)) Pack {
  E v[N];
};
template <class E>
using Four = Pack<E, 4>;

// Whether p is aligned for N elements, the same for all threads. A tensor with memory of its own is; a
// view into another's need not be.
template <int N = 4, class E>
__device__ __forceinline__ bool is_aligned(const E* p) {
  return reinterpret_cast<size_t>(p) % sizeof(Pack<E, N>) == 0;
}

// Whether rows of `length` elements from p on are all of N aligned elements each.
template <int N, class E>
__device__ __forceinline__ bool rows_of(const E* p, int length) {
  return length % N == 0 && is_aligned<N>(p);
}

template <class E, int N>
__device__ __forceinline__ Pack<float, N> to_floats(const Pack<E, N>& in) {
  Pack<float, N> out;
#pragma unroll
  for (int k = 0; k < N; ++k) out.v[k] = to_float(in.v[k]);
  return out;
}

// N elements as floats, with one access.
template <int N, class E>
__device__ __forceinline__ Pack<float, N> load(const E* p) {
  const Pack<E, N> in = *reinterpret_cast<const Pack<E, N>*>(p);
  return to_floats(in);
}
template <class E, int N>
__device__ __forceinline__ void store(E* p, const Pack<float, N>& v) {
  Pack<E, N> out;
#pragma unroll
  for (int k = 0; k < N; ++k) out.v[k] = from_float<E>(v.v[k]);
  *reinterpret_cast<Pack<E, N>*>(p) = out;
}

// V channels a thread.
template <int V>
struct Width {};

// Calls f with the channels that a thread has: MOST of them, or four, where those of all p lie so; else one.
template <int MOST, class Dims, class F, class... P>
__device__ __forceinline__ void with_width(const Dims& d, F f, const P*... p) {
  if ((rows_of<MOST>(p, d.c) && ...)) return f(Width<MOST>{});
  if constexpr (MOST != 4) {
    if ((rows_of<4>(p, d.c) && ...)) return f(Width<4>{});
  }
  f(Width<1>{});
}

// f of each of N elements.
template <int N, class F, class... Packs>
__device__ __forceinline__ Pack<float, N> map_pack(F f, const Packs&... x) {
  Pack<float, N> out;
#pragma unroll
  for (int k = 0; k < N; ++k) out.v[k] = f(x.v[k]...);
  return out;
}

// y[i] = f(x[i]...) for n elements of any number of inputs, 16 bytes a thread where all are aligned; y may
// be one of the inputs.
template <class T, class F, class... Inputs>
__device__ __forceinline__ void map(T* y, int n, F f, const Inputs*... x) {
  constexpr int N = 16 / sizeof(T);
  int packs = (is_aligned<N>(y) && ... && is_aligned<N>(x)) ? n / N : 0;
  FOR_EACH(i, packs) store(y + N * i, map_pack<N>(f, load<N>(x + N * i)...));
  FOR_EACH(i, n - N * packs) y[N * packs + i] = from_float<T>(f(to_float(x[N * packs + i])...));
}
