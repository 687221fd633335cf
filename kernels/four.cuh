// Four elements at a time: for float one access of 16 bytes, which costs as many instructions as
// one of 4.
#pragma once
#include "common.cuh"

template <class E>
struct __align__(4 * sizeof(E)) Four {
  E v[4];
};

// The four elements from p on; p is aligned to all four.
template <class E>
__device__ __forceinline__ Four<E>& four(E* p) {
  return *reinterpret_cast<Four<E>*>(p);
}
template <class E>
__device__ __forceinline__ const Four<E>& four(const E* p) {
  return *reinterpret_cast<const Four<E>*>(p);
}

// Whether p is aligned for that, the same for all threads. A tensor with memory of its own is; a
// view into another's need not be.
template <class E>
__device__ __forceinline__ bool is_aligned(const E* p) {
  return reinterpret_cast<size_t>(p) % sizeof(Four<E>) == 0;
}

// Whether rows of `length` elements from p on are all of aligned fours.
template <class E>
__device__ __forceinline__ bool rows_of_4(const E* p, int length) {
  return length % 4 == 0 && is_aligned(p);
}

// The same as values: one access.
template <class E>
__device__ __forceinline__ Four<E> load4(const E* p) {
  return four(p);
}
template <class E>
__device__ __forceinline__ void store4(E* p, const Four<E>& v) {
  four(p) = v;
}

template <class E>
__device__ __forceinline__ Four<float> to_floats(const Four<E>& v) {
  return {to_float(v.v[0]), to_float(v.v[1]), to_float(v.v[2]), to_float(v.v[3])};
}

// y[i] = f(x[i]...) for n elements of one input or more, four a thread where all are aligned; y may
// be one of the inputs.
template <class T, class F, class... Inputs>
__device__ __forceinline__ void map(T* y, int n, F f, const Inputs*... x) {
  auto all_four = [&](Four<Inputs>... v) {
    Four<T> out;
#pragma unroll
    for (int k = 0; k < 4; ++k) out.v[k] = from_float<T>(f(to_float(v.v[k])...));
    return out;
  };
  int fours = (is_aligned(y) && ... && is_aligned(x)) ? n / 4 : 0;
  FOR_EACH(i, fours) four(y + 4 * i) = all_four(four(x + 4 * i)...);
  FOR_EACH(i, n - 4 * fours) y[4 * fours + i] = from_float<T>(f(to_float(x[4 * fours + i])...));
}
