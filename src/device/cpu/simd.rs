//! Loops compiled several times, for the vector instructions that processors have.
//!
//! A Rust program is compiled for the oldest processor of its family. [`vectorised!`] compiles a
//! function again for AVX-512 and for AVX2 with FMA, and picks at run time; the compiler turns the
//! plain loops inside into vector instructions of that width. The arithmetic stays the same: nothing
//! is reordered or fused unless the source says so.

use std::sync::atomic::{AtomicU8, Ordering};

/// The vector instructions to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Level {
    /// Those that every processor of the family has.
    Baseline = 1,
    /// 256-bit: AVX2 and FMA.
    Avx2 = 2,
    /// 512-bit: AVX-512 F, BW, DQ, VL, CD.
    Avx512 = 3,
}

/// The widest level that this processor has.
#[inline]
pub fn level() -> Level {
    // The detection itself takes a dozen loads; a step calls a hundred such functions.
    static CACHED: AtomicU8 = AtomicU8::new(0);
    match CACHED.load(Ordering::Relaxed) {
        0 => {
            let level = detect();
            CACHED.store(level as u8, Ordering::Relaxed);
            level
        }
        3 => Level::Avx512,
        2 => Level::Avx2,
        _ => Level::Baseline,
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512cd");
    match (avx2, avx512) {
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        _ => Level::Baseline,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Baseline
}

/// Whether a multiply-add is one instruction in a vectorised function.
pub fn has_fma() -> bool {
    cfg!(target_arch = "aarch64") || level() != Level::Baseline
}

/// Defines functions, generic over one [`Real`](crate::dtype::Real) type, that are compiled for every
/// [`Level`] and pick theirs when called. What they call should be `#[inline(always)]`.
macro_rules! vectorised {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident<$t:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$t: $crate::dtype::Real>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$t: $crate::dtype::Real>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma")]
                fn avx512<$t: $crate::dtype::Real>($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2<$t: $crate::dtype::Real>($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match $crate::device::cpu::level() {
                    // SAFETY: this processor has been found to have the instructions.
                    $crate::device::cpu::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::device::cpu::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::device::cpu::Level::Baseline => {}
                }
            }
            body($($arg),*)
        }
    )*};
}
pub(crate) use vectorised;
