// What every kernel needs: the element type, shared memory, the step's state.
//
// The same sources are compiled by NVRTC for a GPU and by the host's C++ compiler for the emulated
// device (TILEWORK_EMULATED); what differs between the two hides here. README.md explains.
#pragma once

#ifdef TILEWORK_EMULATED
#include "cuda.h"
#else
// A shared array `name` of `dims` elements, for 16-byte accesses: SHARED(float, tile, [8][132]).
#define SHARED(Type, name, dims) __shared__ __align__(16) Type name dims
// The dynamic shared memory of the launch, as an array.
#define DYN_SMEM(Type, name)                                       \
  extern __shared__ __align__(16) unsigned char dynamic_memory[]; \
  Type* name = reinterpret_cast<Type*>(dynamic_memory)
#endif

// T is the type that activations and weights are stored in; sums are in float. It comes from the
// compiler's command line: -DT=float.

// Marks a pointer parameter that may be null.
#define OPTIONAL

// What changes from step to step: in memory, so that a recorded step can be replayed.
struct StepState {
  unsigned long long seed;
  unsigned epoch, step;
  float lr;
  unsigned batch_offset;
};

__device__ __forceinline__ float to_float(float v) { return v; }

template <class To>
__device__ __forceinline__ To from_float(float v) {
  return v;
}

// The loop over elements of a kernel that treats each alike: neighbouring threads take neighbouring
// elements, and the grid strides over what one wave does not cover.
#define FOR_EACH(i, n) \
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += gridDim.x * blockDim.x)
