//! What a warp does with matrices of 8 x 8 elements of two bytes: `ldmatrix` and `mma.sync.m16n8k16`.
//!
//! The layouts are those of the PTX manual (ISA 8.0, "Matrix fragments for mma.m16n8k16", "ldmatrix"). How hardware
//! rounds the sum of sixteen products is not written there: here it is exact, and rounded once.

/// A lane's part of `ldmatrix`: `emu::Load` in `cuda.h`.
#[repr(C)]
struct Load {
    row: *const [u16; 8],
    registers: *mut [u32; 4],
    transpose: u32,
}

/// A lane's part of `mma.sync`: `emu::Multiply` in `cuda.h`.
#[repr(C)]
struct Multiply {
    d: *mut [f32; 4],
    a: *const [u32; 4],
    b: [u32; 2],
}

/// Matrix `i` has for its rows what lanes `8i..8i + 8` point to; lane l gets row l / 4, columns 2 (l % 4) and the next.
///
/// # Safety
/// The values are pointers to a [`Load`] each, of lanes that wait; each row is 16 bytes that can be read.
pub(super) unsafe fn load(lanes: &[u64; 32]) {
    let lane = |l: usize| lanes[l] as *const Load;
    for i in 0..4 {
        // SAFETY: as the caller promises; rows need not be aligned as far as this processor goes.
        let rows: [[u16; 8]; 8] = std::array::from_fn(|r| unsafe { (*lane(8 * i + r)).row.read_unaligned() });
        for l in 0..32 {
            // SAFETY: as the caller promises.
            unsafe {
                let (row, column) = (l / 4, l % 4 * 2);
                let two = match (*lane(l)).transpose {
                    0 => [rows[row][column], rows[row][column + 1]],
                    _ => [rows[column][row], rows[column + 1][row]],
                };
                (*(*lane(l)).registers)[i] = u32::from(two[0]) | u32::from(two[1]) << 16;
            }
        }
    }
}

/// d (16 x 8) += a (16 x 16) · b (16 x 8). With g = l / 4 and t = l % 4, lane l has of a the rows g and g + 8 in registers 0, 2
/// and 1, 3, columns 2t, 2t + 1 and the same + 8 in 0, 1 and 2, 3; of b column g, rows as a's columns; of d the rows g and
/// g + 8, columns 2t, 2t + 1.
///
/// # Safety
/// The values are pointers to a [`Multiply`] each, of lanes that wait.
pub(super) unsafe fn multiply(lanes: &[u64; 32], number: impl Fn(u16) -> f32) {
    let two = |r: u32| [number(r as u16), number((r >> 16) as u16)];
    let (mut a, mut b) = ([[0.0f32; 16]; 16], [[0.0f32; 16]; 8]);
    for (l, value) in lanes.iter().enumerate() {
        let (g, t) = (l / 4, l % 4 * 2);
        // SAFETY: as the caller promises.
        let (registers, columns) = unsafe {
            let m = *value as *const Multiply;
            (*(*m).a, (*m).b)
        };
        for (i, register) in registers.into_iter().enumerate() {
            a[g + i % 2 * 8][t + i / 2 * 8..][..2].copy_from_slice(&two(register));
        }
        for (i, register) in columns.into_iter().enumerate() {
            b[g][t + i * 8..][..2].copy_from_slice(&two(register));
        }
    }
    for (l, value) in lanes.iter().enumerate() {
        // SAFETY: as the caller promises; each lane has a d of its own.
        let d = unsafe { &mut *(*(*value as *const Multiply)).d };
        for (i, d) in d.iter_mut().enumerate() {
            let (row, column) = (&a[l / 4 + i / 2 * 8], &b[l % 4 * 2 + i % 2]);
            let mut sum = f64::from(*d);
            for k in 0..16 {
                sum += f64::from(row[k]) * f64::from(column[k]);
            }
            *d = sum as f32;
        }
    }
}

/// A bf16 as a float.
pub(super) fn bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// A half as a float.
#[inline]
pub(super) fn f16(bits: u16) -> f32 {
    let (sign, size) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff) << 13);
    // The exponent is too small by 127 - 15, but for infinity and NaN; the product is exact for subnormal numbers too.
    let size = if size < 31 << 23 {
        f32::from_bits(size) * f32::from_bits(239 << 23)
    } else {
        f32::from_bits(size | 0x7f80_0000)
    };
    f32::from_bits(size.to_bits() | sign)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_number_is_read_right() {
        for bits in 0..=u16::MAX {
            let same =
                |a: f32, b: f32| a == b && a.is_sign_negative() == b.is_sign_negative() || a.is_nan() && b.is_nan();
            assert!(same(super::f16(bits), half::f16::from_bits(bits).to_f32()), "{bits:#x}");
            assert!(same(super::bf16(bits), half::bf16::from_bits(bits).to_f32()), "{bits:#x}");
        }
    }
}
