"""Tilework's random numbers (src/rng.rs) in numpy: Philox4x32 with 10 rounds.

A number is a function of (seed, epoch, step, id, index). Importing this module checks it against
the known answers that Random123 publishes.
"""

import numpy as np

SHAPES, INIT = 0x1000_0000, 0x8000_0000
MASK = np.uint64(0xFFFF_FFFF)


def philox4x32_10(counter, key):
    """Four words (uint64 arrays holding 32 bits each) of the block at `counter` under `key`."""
    c = [np.asarray(word, np.uint64) for word in counter]
    k = [np.uint64(word) for word in key]
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ k[0], p1 & MASK, (p0 >> np.uint64(32)) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + np.uint64(0x9E3779B9)) & MASK, (k[1] + np.uint64(0xBB67AE85)) & MASK]
    return c


def words(n, *, seed, epoch=0, step=0, id=0):
    """Random numbers 0..n of a stream, as uint32."""
    out = np.empty((-(-n // 4), 4), np.uint32)
    chunk = 1 << 18  # blocks at a time, so that the intermediate arrays stay in the cache
    for start in range(0, len(out), chunk):
        block = np.arange(start, min(start + chunk, len(out)), dtype=np.uint64)
        four = philox4x32_10([block, id, step, epoch], [seed & 0xFFFF_FFFF, seed >> 32])
        for lane, word in enumerate(four):
            out[start : start + len(block), lane] = word
    return out.reshape(-1)[:n]


def uniform(n, **stream):
    """Uniform in [0, 1): the top 24 bits, exact in float32."""
    return (words(n, **stream) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def below(n, bound, **stream):
    """Uniform in 0..bound, by multiply-shift."""
    return ((words(n, **stream).astype(np.uint64) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


ONES, PI = 0xFFFF_FFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
for counter, key, want in [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([ONES] * 4, [ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (PI[:4], PI[4:], [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
]:
    got = [int(word) for word in philox4x32_10(counter, key)]
    assert got == want, f"Philox gave {got}, published: {want}"
