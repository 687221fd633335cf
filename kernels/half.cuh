// Storage types of two bytes: half (IEEE binary16) and bf16 (the upper half of a float). Kernels read them with
// to_float and write them with from_float<T>, which rounds to nearest even; numbers that are too large become
// infinite, and every NaN the same one.
#pragma once

struct half {
  unsigned short bits;
};
struct bf16 {
  unsigned short bits;
};

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bf16 v) { return __uint_as_float((unsigned)v.bits << 16); }

template <class To>
__device__ __forceinline__ To from_float(float v);

template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}

template <>
__device__ __forceinline__ bf16 from_float<bf16>(float v) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800
  unsigned bits = __float_as_uint(v);
  if (v != v) return {0x7fff};
  return {(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#else
  bf16 out;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
  return out;
#endif
}

#ifdef TILEWORK_EMULATED

__device__ __forceinline__ float to_float(half v) {
  unsigned bits = (v.bits & 0x7fffu) << 13;
  // The exponent is too small by 127 - 15, but for infinity and NaN.
  float size = bits < 31u << 23 ? __uint_as_float(bits) * 0x1p112f : __uint_as_float(bits | 0x7f800000);
  return __uint_as_float(__float_as_uint(size) | (v.bits & 0x8000u) << 16);
}

template <>
__device__ __forceinline__ half from_float<half>(float v) {
  unsigned bits = __float_as_uint(v) & 0x7fffffff, sign = __float_as_uint(v) >> 16 & 0x8000;
  if (v != v) return {0x7fff};
  if (bits >= 0x477ff000) return {(unsigned short)(sign | 0x7c00)};  // 65520 is halfway to 2^16
  // Below 2^-14 the steps are 2^-24, as those of floats from 0.5 on: this addition rounds to them.
  if (bits < 0x38800000) bits = __float_as_uint(__uint_as_float(bits) + 0.5f) - 0x3f000000;
  else bits = (bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
  return {(unsigned short)(sign | bits)};
}

#else

__device__ __forceinline__ float to_float(half v) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(v.bits));
  return out;
}

template <>
__device__ __forceinline__ half from_float<half>(float v) {
  half out;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
  return out;
}

#endif
