// A kernel that exists for sm_90a alone: its launcher takes a tensor map, its launch clusters and more than 48 KiB of
// dynamic shared memory. NVRTC compiles it, nothing runs it.
// Instances: sm_90a: T = float
#include "common.cuh"

struct HopperDims {
  int bytes;  // of a tile
};

// y = the first value of the tile that the tensor memory accelerator brings to each block of a cluster.
// Registers: at most 32.
template <class T>
__global__ void __launch_bounds__(128)
    hopper_copy(const __grid_constant__ CUtensorMap map, T* __restrict__ y, HopperDims d) {
  DYN_SMEM(T, tile);
  SHARED(unsigned long long, arrived, [1]);
  const unsigned to = (unsigned)__cvta_generic_to_shared(tile), bar = (unsigned)__cvta_generic_to_shared(arrived);
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1; fence.proxy.async.shared::cta;" ::"r"(bar));
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(d.bytes));
    asm volatile(
        "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2}], [%3];" ::"r"(to),
        "l"(&map), "r"(0), "r"(bar)
        : "memory");
  }
  asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;");
  unsigned done = 0;
  while (!done)
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(bar));
  asm volatile("wgmma.fence.sync.aligned;");  // sm_90a alone
  y[blockIdx.x * 128 + threadIdx.x] = tile[0];
}
