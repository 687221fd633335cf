// What max-pools share: which value of a window wins.
#pragma once
#include "four.cuh"

// In place of a winner: the window passes no gradient on.
constexpr int NOBODY = 255;

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
    for (int k = 0; k < V; ++k) see(k, v.v[k], at);
  }
  __device__ __forceinline__ void see(int k, float v, int at) {
    // Neither <= nor == holds for NaN.
    if (v <= value.v[k] || value.v[k] != value.v[k]) return;
    value.v[k] = v;
    place[k] = at;
  }
};

// Stores what won in N neighbouring channels of a window, from element `at` of y and `place` on. If the values have been through
// ReLU (`masks`), of one that is not above 0 nobody gets the gradient.
template <class T, int N>
__device__ __forceinline__ void store_winners(T* y, unsigned char* place, int at, bool masks, const Largest<N>& found) {
  Pack<unsigned char, N> won;
#pragma unroll
  for (int k = 0; k < N; ++k) won.v[k] = !masks || found.value.v[k] > 0.0f ? found.place[k] : NOBODY;
  store(y + at, found.value);
  *reinterpret_cast<Pack<unsigned char, N>*>(place + at) = won;
}
