// The matrix product that linear and convolution share: C[M,N] = A[M,K]·B[K,N], row-major C.
//
// A block computes a tile of M x N of C. It walks along K in steps: a step of A and one of B go through shared memory to
// the registers of its threads. simt.cuh has the product of floats, mma.cuh that of two-byte elements on tensor cores,
// wgmma_product.cuh that on Hopper's, tma_product.cuh that with operands that TMA brings; operand.cuh has the sources that
// say where the elements lie, and the epilogue.
//
// Split-K. A product with few tiles and a long K would leave most of the GPU idle. The grid's z cuts the
// steps along K into ranges of `split_steps`; each writes its own partial result [z][M][N], and split_sum
// adds them in a fixed order. No atomics: the bits don't depend on which block ends first. What is done with a sum
// before it is stored is said once, in Epilogue, for the tile and for split_sum. From sm_90 on the blocks of a cluster can
// share a tile of some kinds (CLUSTER) and add up its sums by themselves: cluster_sum.cuh. A tile that has no registers for it
// does not mask what it stores (UNMASKED).
//
// Which tile and how many splits: the host decides from M, N, K alone, never from the GPU, so that all GPUs with the same
// tiles give the same bits (Rust: `Plan` in src/ops/product.rs). It tries each tile with one split and with 132·i/blocks of
// them, i = 1 to 16, each of a step at least; estimates their times on an H100, which has 132 multiprocessors; and takes the fastest, the larger tile
// where they are equal. For a tile S and a number of splits:
//     blocks = ceil(M/S.M)·ceil(N/S.N)·splits, or with S.TRANSPOSED ceil(N/S.M)·ceil(M/S.N)·splits
//     steps = ceil(ceil(K/S.K)/splits) + 2: the first load, the last store
//     each = ceil(blocks/132) blocks for a multiprocessor, which holds R = S.BLOCKS at once, or if that is 0, 576/S.THREADS;
//     waves = ceil(each/R)
//     time = max(waves·steps·S.LATENCY, each·steps·S.M·S.N·S.K/(225·S.SPEED/100)) ns
// A few blocks wait for their loads, many share the arithmetic. With more splits than one, partial results are added up:
// 2000 ns and 8·splits·M·N bytes at 4000 bytes a ns; they take 64 MiB at most. With 2 to 8 splits in a cluster it is
// 900 ns and 4·S.M·S.N bytes at 50 bytes a ns, which is not measured. The numbers of the tiles were found by
// trying, with whole training steps of eight networks (H100, 2026-11-26): Simt128 has 58 % of the arithmetic with
// one block on a multiprocessor, and 72 % with two. Those of Mma and Wgmma tiles are what whole products reached
// there, each tile by itself (`tilework bench --tile`). Wgmma tiles are left out where operands have no chunks of 8: see
// `Product::rows`; Tma tiles where maps cannot describe the operands (src/ops/conv2d/maps.rs), or one of them is a view that
// is not aligned to 16 bytes. LATENCY and SPEED of Wgmma and Tma tiles are of each product of four networks, by each tile.
#pragma once
#include "mma.cuh"
#include "simt.cuh"
#include "tma_product.cuh"

// A block's work: M x N of C in steps of K by THREADS threads, of which a multiprocessor shall hold BLOCKS blocks (0: as
// many as fit); a thread loads CHUNK neighbours at once. The host reads these numbers too.
//
// Simt: TM x TN of it by each thread. The 32 lanes of a warp form 4 rows x 8
// columns; a lane has groups of 4x4 outputs, 16 rows and 32 columns apart. So when a warp reads its part of A from
// shared memory, 16 bytes per lane, there are 4 different addresses, next to each other and each read by 8 lanes; for B
// there are 8. No two meet in a bank.
struct Simt128 {
  enum { M = 128, N = 128, K = 8, CHUNK = 4, TM = 8, TN = 8, THREADS = 256, BLOCKS = 2, LATENCY = 1000, SPEED = 72 };
};
struct Simt64 {
  enum { M = 64, N = 64, K = 16, CHUNK = 4, TM = 8, TN = 4, THREADS = 128, BLOCKS = 0, LATENCY = 1000, SPEED = 60 };
};
struct Simt32 {
  enum { M = 32, N = 32, K = 16, CHUNK = 4, TM = 4, TN = 4, THREADS = 64, BLOCKS = 0, LATENCY = 900, SPEED = 45 };
};

// Mma: WM x WN of it by each warp, with STAGES steps in shared memory.
struct Mma128 {
  enum {
    M = 128,
    N = 128,
    K = 32,
    CHUNK = 8,
    WM = 64,
    WN = 32,
    STAGES = 3,
    UNMASKED = 1,
    THREADS = 256,
    BLOCKS = 2,
    LATENCY = 650,
    SPEED = 430
  };
};
struct Mma64 {
  enum {
    M = 64,
    N = 64,
    K = 32,
    CHUNK = 8,
    WM = 32,
    WN = 32,
    STAGES = 4,
    THREADS = 128,
    BLOCKS = 4,
    LATENCY = 420,
    SPEED = 280
  };
};
struct Mma32 {
  enum {
    M = 32,
    N = 32,
    K = 32,
    CHUNK = 8,
    WM = 16,
    WN = 16,
    STAGES = 4,
    CLUSTER = 1,
    THREADS = 128,
    BLOCKS = 0,
    LATENCY = 280,
    SPEED = 170
  };
};

// Wgmma: on sm_90a alone, with STAGES steps in SHARED bytes of dynamic shared memory.
struct Wgmma128 {
  enum {
    M = 128,
    N = 128,
    K = 64,
    CHUNK = 8,
    STAGES = 3,
    SHARED = 98304,
    THREADS = 256,
    BLOCKS = 2,
    LATENCY = 750,
    SPEED = 550
  };
};
struct Wgmma64 {
  enum {
    M = 128,
    N = 64,
    K = 64,
    CHUNK = 8,
    STAGES = 3,
    SHARED = 73728,
    THREADS = 256,
    BLOCKS = 3,
    LATENCY = 750,
    SPEED = 400
  };
};

// Tma: the same, with operands that TMA brings by tensor maps (MAPS), for those convolutions that they can describe. Blocks walk
// over tiles; there are as many as run at once. (Tiles of 128x128 were slower than one or the other of these in nearly all
// products.)
struct Tma256 {
  enum {
    M = 256,
    N = 128,
    K = 64,
    STAGES = 4,
    SHARED = 196672,
    THREADS = 256,
    MAPS = 1,
    TRANSPOSED = 0,
    BLOCKS = 1,
    LATENCY = 850,
    SPEED = 1130
  };
};
struct Tma64 {
  enum {
    M = 128,
    N = 64,
    K = 64,
    STAGES = 4,
    SHARED = 98368,
    CLUSTER = 1,
    THREADS = 256,
    MAPS = 1,
    TRANSPOSED = 0,
    BLOCKS = 2,
    LATENCY = 600,
    SPEED = 740
  };
};

// Tma64 cut from the transpose of C, for a C of few rows: N of them and M columns. LATENCY and SPEED are those of Tma64, not
// measured by themselves.
struct Tma64Transposed {
  enum {
    M = 128,
    N = 64,
    K = 64,
    STAGES = 4,
    SHARED = 98368,
    CLUSTER = 1,
    THREADS = 256,
    MAPS = 1,
    TRANSPOSED = 1,
    BLOCKS = 2,
    LATENCY = 600,
    SPEED = 740
  };
};

// One block's tile of C. Grid: x = ceil(m/M)·ceil(n/N) tiles, those of one row of tiles next to each other
// (they share A in the L2 cache), and blocks behind the last have nothing to do; z = splits.
template <class Tile, class A, class B, class Then>
__device__ __forceinline__ void product(const A& a, const B& b, const Cut& cut, const Then& epilogue) {
  // Rows of 128 bytes are what wgmma reads.
  if constexpr (Tile::K == 64) product_wgmma<Tile>(a, b, cut, epilogue);
  else if constexpr (Tile::CHUNK == 8) product_mma<Tile>(a, b, cut, epilogue);
  else product_simt<Tile>(a, b, cut, epilogue);
}
