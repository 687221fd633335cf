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

#ifdef TILEWORK_EMULATED

__device__ __forceinline__ float exp2_approx(float x) { return exp2f(x); }
__device__ __forceinline__ float reciprocal_approx(float x) { return 1.0f / x; }

#else

// 2^x and 1 / x by one instruction each, with two or three roundings; what is smaller than 2^-126 becomes 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#endif

// Of activations that are stored in T. What is wrong with a float after its 18th bit does not show where it is rounded to two
// bytes, and with the functions that are right to the last bit the arithmetic takes longer than the memory.

// 1 / (1 + exp(-x)).
template <class T>
__device__ __forceinline__ float sigmoid(float x) {
  return reciprocal_approx(1.0f + exp2_approx(-1.44269504f * x));
}
template <>
__device__ __forceinline__ float sigmoid<float>(float x) {
  return 1.0f / (1.0f + expf(-x));
}

template <class T>
struct Silu {
  static __device__ __forceinline__ float of(float x) { return x * sigmoid<T>(x); }
  static __device__ __forceinline__ float gradient(float x, float gy) {
    const float s = sigmoid<T>(x);
    return gy * (s * (1.0f + x * (1.0f - s)));
  }
};

// exp(-x^2 / 2).
template <class T>
__device__ __forceinline__ float bell(float x) {
  return exp2_approx(-0.72134752f * x * x);
}
template <>
__device__ __forceinline__ float bell<float>(float x) {
  return expf(-0.5f * x * x);
}

// The share of a normal distribution that lies below x, given bell(x). The share that lies beyond |x| on one side is
// bell(x) * q(t) with t = 1 / (1 + p * |x|) and a polynomial q: the form of Abramowitz, Stegun, "Handbook of Mathematical
// Functions", 7.1.26, whose error is small beside 1. These numbers are by Remez's algorithm for the smallest error beside
// the share itself: 7e-7, in floats 1e-6.
template <class T>
__device__ __forceinline__ float below(float x, float bell) {
  const float q[8] = {0.12973594f, 0.12975150f, 0.11556538f,  0.09346609f,
                      0.02618536f, 0.08486012f, -0.11342966f, 0.03386559f};
  const float t = reciprocal_approx(1.0f + 0.3252f * fabsf(x));
  float sum = q[7];
#pragma unroll
  for (int k = 6; k >= 0; --k) sum = sum * t + q[k];
  const float beyond = bell * (sum * t);
  return x > 0.0f ? 1.0f - beyond : beyond;
}
template <>
__device__ __forceinline__ float below<float>(float x, float) {
  return 0.5f * erfcf(-0.70710678f * x);
}

template <class T>
struct Gelu {
  static __device__ __forceinline__ float of(float x) { return x * below<T>(x, bell<T>(x)); }
  static __device__ __forceinline__ float gradient(float x, float gy) {
    const float e = bell<T>(x);
    return gy * (below<T>(x, e) + x * 0.39894228f * e);
  }
};

// f of the activation with this number, which a kernel's sizes have (Rust: `Activation::number`), of numbers stored in T.
template <class T, class F>
__device__ __forceinline__ void with_activation(int number, F f) {
  if (number == 1) f(Relu{});
  else if (number == 2) f(Silu<T>{});
  else if (number == 3) f(Gelu<T>{});
  else f(Identity{});
}
