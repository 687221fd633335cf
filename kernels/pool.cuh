// What max-pools share: which value of a window wins.
#pragma once
#include "four.cuh"

// The largest value of a window in each of V neighbouring channels, and the place that has it: the first of equal
// values, NaN over all. It begins as one value of the window, and sees them all in their order.
template <int V>
struct Largest {
  Pack<float, V> value;
  int place[V];
  __device__ __forceinline__ Largest(const Pack<float, V>& first, int at) : value(first) {
#pragma unroll
    for (int k = 0; k < V; ++k) place[k] = at;
  }
  __device__ __forceinline__ void see(const Pack<float, V>& v, int at) {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      // Neither <= nor == holds for NaN.
      if (v.v[k] <= value.v[k] || value.v[k] != value.v[k]) continue;
      value.v[k] = v.v[k];
      place[k] = at;
    }
  }
};
