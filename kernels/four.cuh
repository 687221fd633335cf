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

// The four elements from p on; p is aligned to all four.
template <class E>
__device__ __forceinline__ Four<E>& four(E* p) {
  return *reinterpret_cast<Four<E>*>(p);
}
template <class E>
__device__ __forceinline__ const Four<E>& four(const E* p) {
  return *reinterpret_cast<const Four<E>*>(p);
}

// Whether p is aligned for N elements, the same for all threads. A tensor with memory of its own is; a
// view into another's need not be.
template <int N = 4, class E>
__device__ __forceinline__ bool is_aligned(const E* p) {
  return reinterpret_cast<size_t>(p) % sizeof(Pack<E, N>) == 0;
}

// y[i] = f(x[i]...) for n elements of one input or more, 16 bytes a thread where all are aligned; y may
// be one of the inputs.
template <class T, class F, class... Inputs>
__device__ __forceinline__ void map(T* y, int n, F f, const Inputs*... x) {
  constexpr int N = 16 / sizeof(T);
  auto all = [&](Pack<Inputs, N>... v) {
    Pack<T, N> out;
#pragma unroll
    for (int k = 0; k < N; ++k) out.v[k] = from_float<T>(f(to_float(v.v[k])...));
    return out;
  };
  int packs = (is_aligned<N>(y) && ... && is_aligned<N>(x)) ? n / N : 0;
  FOR_EACH(i, packs)
  *reinterpret_cast<Pack<T, N>*>(y + N * i) = all(*reinterpret_cast<const Pack<Inputs, N>*>(x + N * i)...);
  FOR_EACH(i, n - N * packs) y[N * packs + i] = from_float<T>(f(to_float(x[N * packs + i])...));
}
