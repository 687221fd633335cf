// Kernels with one planted bug each, and the same kernels without it: what the emulated device must report, and what
// it must let pass. `bug` is 1 for the bug. Each name says what is wrong.
#include "common.cuh"

struct PlantedDims {
  int n;
  int bug;
};

// Sums a block's values in shared memory; the bug leaves out a barrier.
__global__ void __launch_bounds__(64) missing_barrier(const float* x, float* y, PlantedDims d) {
  SHARED(float, tile, [64]);
  int t = threadIdx.x;
  tile[t] = x[t];
  if (!d.bug) __syncthreads();
  y[t] = tile[63 - t];
}

// Copies through shared memory asynchronously; the bug leaves out the wait.
__global__ void __launch_bounds__(64) missing_wait(const float* x, float* y, PlantedDims d) {
  SHARED(float, tile, [64]);
  int t = threadIdx.x;
  emu::cp_async(&tile[t], &x[t], 4);
  emu::cp_async_commit();
  if (!d.bug) emu::cp_async_wait<0>();
  __syncthreads();
  y[t] = tile[63 - t];
}

__global__ void __launch_bounds__(64) copy_elsewhere(const float* x, float* y, PlantedDims d) {
  SHARED(float, tile, [64]);
  float* to = d.bug ? y : tile;
  emu::cp_async(&to[threadIdx.x], &x[threadIdx.x], 4);
}

__global__ void __launch_bounds__(64) crooked_copy(const float* x, float* y, PlantedDims d) {
  SHARED(float, tile, [128]);
  if (threadIdx.x == 0) emu::cp_async(&tile[d.bug * 2], x, 16);
}

// A copy begins while other threads may still read its destination.
__global__ void __launch_bounds__(64) early_copy(const float* x, float* y, PlantedDims d) {
  SHARED(float, tile, [64]);
  int t = threadIdx.x;
  tile[t] = x[t];
  __syncthreads();
  float v = tile[63 - t];
  if (!d.bug) __syncthreads();
  emu::cp_async(&tile[t], &x[t], 4);
  emu::cp_async_commit();
  emu::cp_async_wait<0>();
  __syncthreads();
  y[t] = v + tile[63 - t];
}

__global__ void __launch_bounds__(64) bound_read(const float* x, float* y, PlantedDims d) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < d.n) y[i] = x[i + d.bug];
}

__global__ void __launch_bounds__(64) bound_write(const float* x, float* y, PlantedDims d) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < d.n + d.bug) y[i] = 2.0f;
}

__global__ void __launch_bounds__(64) input_write(const float* x, float* y, PlantedDims d) {
  int i = threadIdx.x;
  float* to = d.bug ? const_cast<float*>(x) : y;
  to[i] = 1.0f;
}

__global__ void __launch_bounds__(64) plain_increment(const float* x, int* y, PlantedDims d) {
  SHARED(int, count, [1]);
  if (threadIdx.x == 0) count[0] = 0;
  __syncthreads();
  if (d.bug) {
    count[0] += 1;
  } else {
    atomicAdd(&count[0], 1);
  }
  __syncthreads();
  if (threadIdx.x == 0) y[0] = count[0];
}

__global__ void __launch_bounds__(64) conditional_barrier(const float* x, float* y, PlantedDims d) {
  int t = threadIdx.x;
  if (!d.bug || t < 40) {
    y[t] = x[t];
    __syncthreads();
  }
}

__global__ void __launch_bounds__(64) two_barriers(const float* x, float* y, PlantedDims d) {
  int t = threadIdx.x;
  if (d.bug && t < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[t] = x[t];
}

__global__ void __launch_bounds__(64) uninitialised(const float* x, float* y, PlantedDims d) {
  SHARED(float, tile, [64]);
  int t = threadIdx.x;
  if (!d.bug || t != 7) tile[t] = x[t];
  __syncthreads();
  y[t] = tile[t];
}

__global__ void __launch_bounds__(64) misaligned(const float* x, float* y, PlantedDims d) {
  int t = threadIdx.x;
  if (t < 8) {
    float4 v = *(const float4*)&x[t * 4 + d.bug];
    y[t] = v.x + v.y + v.z + v.w;
  }
}

__global__ void __launch_bounds__(64) outside_array(const float* x, float* y, PlantedDims d) {
  int t = threadIdx.x;
  float four[4] = {};
  for (int k = 0; k < 4 + d.bug; ++k) four[k] = x[t];
  y[t] = four[0] + four[3];
}

struct Four {
  float v[4];
};

__global__ void __launch_bounds__(64) outside_struct(const float* x, float* y, PlantedDims d) {
  int t = threadIdx.x;
  Four four = {};
  for (int k = 0; k < 4 + d.bug; ++k) four.v[k] = x[t];
  y[t] = four.v[0] + four.v[3];
}

__global__ void __launch_bounds__(64) divergent_shuffle(const float* x, float* y, PlantedDims d) {
  int t = threadIdx.x;
  float v = x[t];
  if (!d.bug || t < 16) v += __shfl_xor_sync(0xffffffffu, v, 1);
  __syncthreads();
  y[t] = v;
}

__global__ void __launch_bounds__(64) exited_lane(const float* x, float* y, PlantedDims d) {
  int t = threadIdx.x;
  if (d.bug && t % 32 == 3) return;
  __syncwarp();
  y[t] = x[t];
}

__global__ void __launch_bounds__(64) two_collectives(const float* x, float* y, PlantedDims d) {
  int t = threadIdx.x;
  float v = x[t];
  if (d.bug && t % 32 < 8) {
    v = __shfl_sync(0xffffffffu, v, 0);
  } else {
    v = __shfl_xor_sync(0xffffffffu, v, 0);
  }
  y[t] = v;
}

// Every block writes the same element.
__global__ void __launch_bounds__(64) blocks_race(const float* x, float* y, PlantedDims d) {
  if (threadIdx.x == 0) y[d.bug ? 0 : blockIdx.x] = (float)blockIdx.x;
}

// A block reads what another one writes.
__global__ void __launch_bounds__(64) blocks_read(const float* x, float* y, PlantedDims d) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  float v = d.bug ? y[(i + 64) % d.n] : x[i];
  y[i] = v;
}

// Lanes hand a value on through shared memory; a shuffle does not order memory, __syncwarp does.
__global__ void __launch_bounds__(64) missing_syncwarp(const float* x, float* y, PlantedDims d) {
  SHARED(float, tile, [64]);
  int t = threadIdx.x;
  tile[t] = x[t];
  if (d.bug) {
    __shfl_xor_sync(0xffffffffu, 0, 1);
  } else {
    __syncwarp();
  }
  y[t] = tile[t ^ 1];
}

// As above among half a warp; the bug takes the wrong half.
__global__ void __launch_bounds__(64) wrong_syncwarp(const float* x, float* y, PlantedDims d) {
  SHARED(float, tile, [64]);
  int t = threadIdx.x, lane = t & 31;
  unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u, comb = lane & 1 ? 0xaaaaaaaau : 0x55555555u;
  tile[t] = x[t];
  __syncwarp(d.bug ? comb : half);
  float v = tile[t ^ 1];
  __syncwarp(d.bug ? comb : half);
  tile[t] = v + 1.0f;
  __syncwarp();
  y[t] = tile[t ^ 16];
}

// Writes past its static shared memory, or into its guard; the checker's own find, or the canary's.
__global__ void __launch_bounds__(64) shared_overrun(const float* x, float* y, PlantedDims d) {
  SHARED(float, tile, [64]);
  int t = threadIdx.x;
  float* at = tile;  // an array the compiler does not see the end of
  at[t + d.bug] = x[t];
  __syncthreads();
  y[t] = tile[t];
}

__global__ void __launch_bounds__(64) dynamic_overrun(const float* x, float* y, PlantedDims d) {
  DYN_SMEM(float, part);
  int t = threadIdx.x;
  part[t + d.bug] = x[t];
  __syncthreads();
  y[t] = part[t];
}

// Half a warp each with masks of their own, which overlap from round to round.
__global__ void __launch_bounds__(1024) masks(const int* x, int* y, PlantedDims d) {
  int t = threadIdx.x, lane = t & 31, v = t;
  for (int round = 0; round < 4; ++round) {
    bool low = round & 1 ? (lane & 1) == 0 : lane < 16;
    unsigned mask = round & 1 ? (low ? 0x55555555u : 0xaaaaaaaau) : (low ? 0x0000ffffu : 0xffff0000u);
    int flip = round & 1 ? 2 : 1;
    if (low) {
      v += __shfl_xor_sync(mask, v, flip);
    } else {
      v += 3 * __shfl_xor_sync(mask, v, flip);
    }
  }
  v += (int)(__ballot_sync(0xffffffffu, lane & 1) & 0xff) + __any_sync(0xffffffffu, t == 5);
  y[t] = v + __all_sync(0xffffffffu, lane < 32);
}

// Sum over a block of any size: shuffles where whole warps exist, shared memory between warps.
__global__ void __launch_bounds__(1024) block_sum(const int* x, int* y, PlantedDims d) {
  SHARED(int, part, [32]);
  int t = threadIdx.x, lane = t & 31, warp = t >> 5, warps = (blockDim.x + 31) / 32;
  int left = blockDim.x - warp * 32, v = x[blockIdx.x * blockDim.x + t];
  for (int by = 16; by > 0; by /= 2) {
    int from = __shfl_down_sync(0xffffffffu, v, by);
    if (lane + by < left && lane + by < 32) v += from;
  }
  if (lane == 0) part[warp] = v;
  __syncthreads();
  if (t == 0) {
    int sum = 0;
    for (int i = 0; i < warps; ++i) sum += part[i];
    y[blockIdx.x] = sum;
  }
}

// The order in which threads run: each takes a ticket.
__global__ void __launch_bounds__(64) tickets(const float* x, int* y, PlantedDims d) {
  SHARED(int, next, [1]);
  if (threadIdx.x == 0) next[0] = 0;
  __syncthreads();
  y[threadIdx.x] = atomicAdd(&next[0], 1);
}

// The line of an access through a function of the shim is the kernel's.
__global__ void __launch_bounds__(64) inlined_read(const float* x, float* y, PlantedDims d) {
  int i = threadIdx.x;
  float v = __ldg(&x[i + d.bug]);
  y[i] = v;
}

__global__ void __launch_bounds__(64) long_memset(const float* x, float* y, PlantedDims d) {
  if (threadIdx.x == 0) memset(y, 0, (d.n + d.bug) * 4);
}

// An atomic and a plain access to one place.
__global__ void __launch_bounds__(64) half_atomic(const float* x, int* y, PlantedDims d) {
  SHARED(int, most, [1]);
  if (threadIdx.x == 0) most[0] = 0;
  __syncthreads();
  atomicMax(&most[0], (int)threadIdx.x);
  if (!d.bug) __syncthreads();
  if (threadIdx.x == 0) y[0] = most[0];
}

// A pointer that may be null, used without asking.
__global__ void __launch_bounds__(64) null_read(const float* x, float* y, PlantedDims d) {
  const float* from = d.bug ? nullptr : x;
  y[threadIdx.x] = from[threadIdx.x];
}

template <class V, int n>
__device__ V turned(V v) {
  SHARED(V, tile, [n]);
  int t = threadIdx.x;
  tile[t] = v;
  __syncthreads();
  v = tile[n - 1 - t];
  __syncthreads();
  return v;
}

__constant__ float WEIGHTS[4] = {1.0f, 2.0f, 3.0f, 4.0f};

// Nothing wrong: a local array, constants, bytes of one word written by four threads, shared memory in a template.
__global__ void __launch_bounds__(64) innocent(const float* x, float* y, PlantedDims d) {
  SHARED(unsigned char, bytes, [64]);
  int t = threadIdx.x;
  float part[4];
  for (int i = 0; i < 4; ++i) part[(i + t) & 3] = x[(t + i) % d.n] * WEIGHTS[(t + i) & 3];
  bytes[t] = (unsigned char)(t * 3);
  __syncthreads();
  float v = turned<float, 64>(part[t & 3]) + (float)turned<int, 64>(t);
  y[t] = v + bytes[63 - t];
}

// Copies of four floats of which the last are cut off: zeros take their place.
__global__ void __launch_bounds__(16) cut_copy(const float* x, float* y, PlantedDims d) {
  SHARED(float, tile, [2][64]);
  int t = threadIdx.x;
  for (int stage = 0; stage < 2; ++stage) {
    int valid = min(16, max(0, (d.n - t * 4) * 4));
    emu::cp_async(&tile[stage][t * 4], &x[t * 4], 16, valid);
    emu::cp_async_commit();
  }
  emu::cp_async_wait<1>();
  __syncthreads();
  for (int i = t; i < 64; i += 16) y[i] = tile[d.bug][i];
}

__global__ void __launch_bounds__(64) atomics(const float* x, int* y, PlantedDims d) {
  int t = threadIdx.x;
  atomicAdd(&y[0], t);
  atomicMax(&y[1], t);
  atomicMin(&y[2], -t);
  atomicAdd((unsigned*)&y[3], 1u);
  atomicCAS(&y[4], 0, 7);
  int old = atomicExch(&y[5], t + 1);
  atomicAdd(&y[6], old);
  atomicAdd((float*)&y[7], 0.5f);
  atomicOr((unsigned*)&y[8], 1u << (t & 31));
  atomicSub(&y[9], 2);
}
