// Random numbers: Philox4x32-10, bit for bit the one of src/rng.rs.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC'11.
#pragma once
#include "common.cuh"

// Numbers 4 * block to 4 * block + 3 of the stream `id` at the step of `s`.
__device__ __forceinline__ void philox(unsigned block, unsigned id, const Step* s, unsigned words[4]) {
  unsigned c0 = block, c1 = id, c2 = (unsigned)s->step, c3 = s->epoch;
  unsigned k0 = (unsigned)s->seed, k1 = (unsigned)(s->seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    unsigned long long p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
    c0 = (unsigned)(p1 >> 32) ^ c1 ^ k0;
    c1 = (unsigned)p1;
    c2 = (unsigned)(p0 >> 32) ^ c3 ^ k1;
    c3 = (unsigned)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}
