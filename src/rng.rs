//! Counter-based randomness: Philox4x32-10.
//!
//! A random number is a pure function of (seed, epoch, step, stream, index), so there is no
//! generator state to save: a resumed run, a second thread and a GPU kernel all draw the same bits.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC'11.
//!
//! ```
//! use tilework::rng::{Stream, stream};
//! let s = Stream { seed: 7, epoch: 0, step: 3, id: stream::DROPOUT };
//! assert_eq!(s.uniform(5), s.uniform(5));
//! assert!((0.0..1.0).contains(&s.uniform(5)));
//! ```

/// Stream ids: the third word of the counter. What draws random numbers has an id of its own, so
/// that no two users ever share a draw. The low bits are left for an ordinal (layer, parameter).
pub mod stream {
    /// Dropout masks; plus the ordinal of the dropout layer in the forward pass.
    pub const DROPOUT: u32 = 0;
    /// The embedded `shapes` data set; plus the split.
    pub const SHAPES: u32 = 0x1000_0000;
    /// Data augmentation.
    pub const AUGMENT: u32 = 0x2000_0000;
    /// Which images are held out for validation.
    pub const SPLIT: u32 = 0x3000_0000;
    /// The order of the images in an epoch.
    pub const SHUFFLE: u32 = 0x4000_0000;
    /// Initial weights; plus the index of the parameter.
    pub const INIT: u32 = 0x8000_0000;
}

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// Philox4x32 with 10 rounds: 128 random bits from a 128-bit counter and a 64-bit key.
#[inline]
pub fn philox4x32_10(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(W0), k[1].wrapping_add(W1)];
        }
        let p0 = u64::from(M0) * u64::from(c[0]);
        let p1 = u64::from(M1) * u64::from(c[2]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
    }
    c
}

/// One sequence of random numbers, addressed by index.
///
/// Counter = (index / 4, id, step, epoch); key = the seed's low and high words; the number is word
/// `index % 4` of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The run's seed.
    pub seed: u64,
    /// The epoch.
    pub epoch: u32,
    /// The step, counted over the whole run.
    pub step: u32,
    /// Who draws; see [`stream`].
    pub id: u32,
}

impl Stream {
    /// The four words of a block: numbers `4 * block` to `4 * block + 3`.
    #[inline]
    pub fn block(&self, block: u32) -> [u32; 4] {
        philox4x32_10([block, self.id, self.step, self.epoch], [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// Random numbers `4 * block` and on, as many as `words` holds: the same as from [`Stream::word`],
    /// several blocks side by side in vector registers.
    #[inline(always)]
    pub fn fill(&self, block: u32, words: &mut [u32]) {
        const LANES: usize = 16;
        for (i, words) in words.chunks_mut(4 * LANES).enumerate() {
            let first = block.wrapping_add((i * LANES) as u32);
            let mut c0: [u32; LANES] = std::array::from_fn(|l| first.wrapping_add(l as u32));
            let (mut c1, mut c2, mut c3) = ([self.id; LANES], [self.step; LANES], [self.epoch; LANES]);
            let (mut k0, mut k1) = (self.seed as u32, (self.seed >> 32) as u32);
            for _ in 0..10 {
                for l in 0..LANES {
                    let p0 = u64::from(M0) * u64::from(c0[l]);
                    let p1 = u64::from(M1) * u64::from(c2[l]);
                    c0[l] = (p1 >> 32) as u32 ^ c1[l] ^ k0;
                    c2[l] = (p0 >> 32) as u32 ^ c3[l] ^ k1;
                    c1[l] = p1 as u32;
                    c3[l] = p0 as u32;
                }
                k0 = k0.wrapping_add(W0);
                k1 = k1.wrapping_add(W1);
            }
            for (l, words) in words.chunks_mut(4).enumerate() {
                words.copy_from_slice(&[c0[l], c1[l], c2[l], c3[l]][..words.len()]);
            }
        }
    }

    /// Random number `index`, uniform over all of `u32`. At most 2^34 numbers.
    #[inline]
    pub fn word(&self, index: usize) -> u32 {
        self.block((index / 4) as u32)[index % 4]
    }

    /// Random number `index`, uniform in [0, 1): 24 bits, exact in `f32`.
    #[inline]
    pub fn uniform(&self, index: usize) -> f32 {
        to_unit(self.word(index))
    }

    /// Random number `index`, uniform in 0..`n`, by multiply-shift (bias below n / 2^32).
    #[inline]
    pub fn below(&self, index: usize, n: u32) -> u32 {
        ((u64::from(self.word(index)) * u64::from(n)) >> 32) as u32
    }

    /// A permutation of 0..n: Fisher–Yates, one draw per position.
    pub fn permutation(&self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i, i as u32 + 1) as usize);
        }
        order
    }
}

/// The top 24 bits of a word as a number in [0, 1).
#[inline]
pub fn to_unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Two normal numbers of mean 0 and variance 1 out of two random words (Box, Muller, "A Note on the Generation of
/// Random Normal Deviates", 1958).
pub fn normals([a, b]: [u32; 2]) -> [f64; 2] {
    // In (0, 1], so that the logarithm is finite.
    let uniform = (f64::from(a) + 1.0) / 2f64.powi(32);
    let (radius, angle) = ((-2.0 * uniform.ln()).sqrt(), f64::from(b) / 2f64.powi(32) * std::f64::consts::TAU);
    [radius * angle.cos(), radius * angle.sin()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that Random123 publishes for philox4x32 with 10 rounds.
    #[test]
    fn random123_known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, want) in cases {
            assert_eq!(philox4x32_10(counter, key), want);
        }
    }

    #[test]
    fn uniform_is_uniform() {
        let s = Stream { seed: 1, epoch: 2, step: 3, id: stream::AUGMENT };
        let n = 100_000;
        let mut bins = [0u32; 10];
        for i in 0..n {
            bins[(s.uniform(i) * 10.0) as usize] += 1;
        }
        // Chi-square with 9 degrees of freedom: below 27.9 with probability 0.999.
        let e = n as f64 / 10.0;
        let chi2: f64 = bins.iter().map(|&b| (f64::from(b) - e).powi(2) / e).sum();
        assert!(chi2 < 27.9, "chi2 = {chi2}");
    }

    #[test]
    fn filling_is_the_same_as_asking_one_by_one() {
        let s = Stream { seed: 0x1234_5678_9abc, epoch: 5, step: 6, id: 7 };
        for (block, n) in [(0, 1), (3, 64), (9, 131), (u32::MAX - 3, 40)] {
            let mut words = vec![0; n];
            s.fill(block, &mut words);
            let want = |i: usize| s.block(block.wrapping_add((i / 4) as u32))[i % 4];
            assert!(words.iter().enumerate().all(|(i, &w)| w == want(i)));
        }
    }

    #[test]
    fn permutation_holds_every_index_once() {
        let s = Stream { seed: 9, epoch: 1, step: 0, id: stream::SHUFFLE };
        let mut p = s.permutation(1000);
        assert_ne!(p[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        p.sort_unstable();
        assert!(p.iter().enumerate().all(|(i, &v)| i as u32 == v));
    }

    #[test]
    fn streams_differ_in_every_coordinate() {
        let base = Stream { seed: 1, epoch: 1, step: 1, id: 1 };
        for other in [
            Stream { seed: 1 << 32, ..base },
            Stream { epoch: 2, ..base },
            Stream { step: 2, ..base },
            Stream { id: 2, ..base },
        ] {
            assert_ne!(base.block(0), other.block(0));
        }
    }
}
