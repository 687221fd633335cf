// The activations: relu.cu, silu.cu and gelu.cu apply them by themselves, batch_norm2d.cu to what it has normalised.
#pragma once
#include "four.cuh"

struct Identity {
  static __device__ __forceinline__ float of(float x) { return x; }
  static __device__ __forceinline__ float gradient(float, float gy) { return gy; }
};

struct Relu {
  static __device__ __forceinline__ float of(float x) { return x < 0.0f ? 0.0f : x; }
  // Of x or of y, which are above 0 together.
  static __device__ __forceinline__ float gradient(float x, float gy) { return x > 0.0f ? gy : 0.0f; }
};

struct Silu {
  static __device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
  static __device__ __forceinline__ float of(float x) { return x * sigmoid(x); }
  static __device__ __forceinline__ float gradient(float x, float gy) {
    const float s = sigmoid(x);
    return gy * (s * (1.0f + x * (1.0f - s)));
  }
};

struct Gelu {
  static __device__ __forceinline__ float below(float x) { return 0.5f * erfcf(-0.70710678f * x); }
  static __device__ __forceinline__ float of(float x) { return x * below(x); }
  static __device__ __forceinline__ float gradient(float x, float gy) {
    return gy * (below(x) + x * 0.39894228f * expf(-0.5f * x * x));
  }
};

// f of the activation with this number, which a kernel's sizes have (Rust: `Activation::number`).
template <class F>
__device__ __forceinline__ void with_activation(int number, F f) {
  if (number == 1) f(Relu{});
  else if (number == 2) f(Silu{});
  else if (number == 3) f(Gelu{});
  else f(Identity{});
}
