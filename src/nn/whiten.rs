//! Whitening: the first convolution's weights from the images themselves.
//!
//! The filters are the eigenvectors of the covariance of all patches of the images, each divided by
//! `sqrt(eigenvalue + 5e-4)`, then their negatives: what they make of a patch has about the same variance in each
//! channel, and no two channels have any in common. The patches' mean is taken as 0, as the images are normalised.
//! Source: D. Page, "How to Train Your ResNet 8: Bag of Tricks", 2019; K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a
//! Single GPU", 2024.

use super::Model;
use crate::device::cpu::{map_reduce, vectorised};
use crate::error::{Error, Result};
use crate::params::Init;
use crate::tensor::Tensor;

/// Images that whitening looks at.
pub const WHITEN_IMAGES: usize = 5000;

/// Added to the eigenvalues, so that directions without variance are not blown up.
const EPS: f64 = 5e-4;

/// Columns and rows of the sums that are kept in registers.
const LANES: usize = 8;
const ROWS: usize = 4;

impl Model {
    /// Whether the first convolution's weights are yet to be made from images: it says `init whiten`.
    pub fn whitens(&self) -> bool {
        self.params.list().iter().any(|p| matches!(p.init, Init::Whiten(_)))
    }

    /// Makes them from normalised images `[n, h, w, c]` in host memory; nothing happens if no layer asks for it.
    ///
    /// # Errors
    /// [`Error::Shape`] if the images are not such that the layer's kernel fits them.
    pub fn whiten(&mut self, images: &Tensor) -> Result<()> {
        let of = |p: &crate::params::Param| matches!(p.init, Init::Whiten(_));
        let Some(param) = self.params.list().iter().find(|p| of(p)).cloned() else { return Ok(()) };
        let (Some([filters, kh, kw, c]), Some([n, h, w, channels])) = (param.shape.rank4(), images.shape().rank4())
        else {
            return Err(Error::shape("whiten", "images [n, h, w, c]", images.shape(), "give it a batch of images"));
        };
        if channels != c || h < kh || w < kw {
            let want = format!("images [n, {kh} or more, {kw} or more, {c}]");
            return Err(Error::shape("whiten", want, images.shape(), "give it the images that the network takes"));
        }
        let covariance = covariance(images.host()?, [n, h, w, c], [kh, kw]);
        let k = kh * kw * c;
        let (values, vectors) = eigen(covariance, k);
        let mut weights = vec![0.0; filters * k];
        for (i, filter) in weights.chunks_mut(k).enumerate() {
            let (at, sign) = (i % k, if i < k { 1.0 } else { -1.0 });
            let scale = sign / (values[at].max(0.0) + EPS).sqrt();
            filter.iter_mut().zip(&vectors[at * k..]).for_each(|(w, &v)| *w = (v * scale) as f32);
        }
        self.params.values_mut()?.write(param.range().start, &weights)
    }
}

/// The mean of `p·pᵀ` over all patches p (`[kh, kw, c]`, in a row) of the images.
fn covariance(images: &[f32], [n, h, w, c]: [usize; 4], [kh, kw]: [usize; 2]) -> Vec<f64> {
    let (k, row) = (kh * kw * c, kw * c);
    let places = (h - kh + 1) * (w - kw + 1);
    let mut sums = vec![0.0f64; k * k];
    map_reduce(n, places * k * k, &mut sums, |range, sums| {
        // A row of patches at a time, each with zeros up to whole vectors.
        let width = k.next_multiple_of(LANES);
        let (mut patches, mut padded) =
            (vec![0.0f64; (w - kw + 1) * width], vec![0.0f64; k.next_multiple_of(ROWS) * width]);
        for image in images[range.start * h * w * c..range.end * h * w * c].chunks(h * w * c) {
            for top in 0..=h - kh {
                for (left, patch) in patches.chunks_mut(width).enumerate() {
                    for (i, patch) in patch[..k].chunks_mut(row).enumerate() {
                        let from = &image[((top + i) * w + left) * c..];
                        patch.iter_mut().zip(from).for_each(|(p, &x)| *p = f64::from(x));
                    }
                }
                add_products(&patches, &mut padded, width);
            }
        }
        for (sums, padded) in sums.chunks_mut(k).zip(padded.chunks(width)) {
            sums.iter_mut().zip(padded).for_each(|(s, p)| *s += p);
        }
    });
    let count = (n * places) as f64;
    sums.iter_mut().for_each(|s| *s /= count);
    sums
}

vectorised! {
/// `sums[i, j] += sum over the rows p of p[i]·p[j]`, for rows of `width` elements, whole vectors.
fn add_products<T>(rows: &[T], sums: &mut [T], width: usize) {
    for (block, sums) in sums.chunks_exact_mut(ROWS * width).enumerate() {
        for first in (0..width).step_by(LANES) {
            let mut kept = [[T::zero(); LANES]; ROWS];
            for (kept, sums) in kept.iter_mut().zip(sums.chunks_exact(width)) {
                kept.copy_from_slice(&sums[first..first + LANES]);
            }
            for row in rows.chunks_exact(width) {
                let (a, b) = (&row[block * ROWS..(block + 1) * ROWS], &row[first..first + LANES]);
                for (kept, &a) in kept.iter_mut().zip(a) {
                    kept.iter_mut().zip(b).for_each(|(s, &b)| *s += a * b);
                }
            }
            for (kept, sums) in kept.iter().zip(sums.chunks_exact_mut(width)) {
                sums[first..first + LANES].copy_from_slice(kept);
            }
        }
    }
}
}

/// Eigenvalues in rising order, and the eigenvectors as rows, each with its largest component positive, of a symmetric
/// `k` by `k` matrix, by Jacobi's rotations (Golub, Van Loan, "Matrix Computations", section 8.5).
fn eigen(mut a: Vec<f64>, k: usize) -> (Vec<f64>, Vec<f64>) {
    let mut v = vec![0.0; k * k];
    (0..k).for_each(|i| v[i * k + i] = 1.0);
    let total: f64 = a.iter().map(|x| x * x).sum();
    // It converges quadratically: some eight sweeps do for any matrix of that size.
    for _ in 0..64 {
        let off: f64 = (0..k * k).filter(|i| i / k != i % k).map(|i| a[i] * a[i]).sum();
        if off <= 1e-30 * total {
            break;
        }
        for (p, q) in (0..k).flat_map(|p| (p + 1..k).map(move |q| (p, q))) {
            if a[p * k + q] == 0.0 {
                continue;
            }
            let theta = (a[q * k + q] - a[p * k + p]) / (2.0 * a[p * k + q]);
            let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
            let cos = 1.0 / t.hypot(1.0);
            let sin = t * cos;
            let turn = |m: &mut [f64], i: usize, j: usize| {
                (m[i], m[j]) = (cos * m[i] - sin * m[j], sin * m[i] + cos * m[j]);
            };
            for i in 0..k {
                turn(&mut a, i * k + p, i * k + q);
            }
            for i in 0..k {
                turn(&mut a, p * k + i, q * k + i);
                turn(&mut v, p * k + i, q * k + i);
            }
        }
    }
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|&i, &j| a[i * k + i].total_cmp(&a[j * k + j]));
    let mut vectors = Vec::with_capacity(k * k);
    for &i in &order {
        let row = &v[i * k..(i + 1) * k];
        let largest = row.iter().fold(0.0f64, |m, &x| if x.abs() > m.abs() { x } else { m });
        vectors.extend(row.iter().map(|x| x * largest.signum()));
    }
    (order.iter().map(|&i| a[i * k + i]).collect(), vectors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::rng::Stream;

    fn drawn(n: usize) -> Vec<f32> {
        let s = Stream { seed: 4, epoch: 0, step: 0, id: 1 };
        (0..n).map(|i| 2.0 * s.uniform(i) - 1.0).collect()
    }

    #[test]
    fn eigenvectors_are_orthonormal_and_rebuild_the_matrix() {
        for k in [1, 2, 5, 12, 27] {
            let x = drawn(k * k);
            let a: Vec<f64> = (0..k * k).map(|i| f64::from(x[i] + x[i % k * k + i / k])).collect();
            let (values, vectors) = eigen(a.clone(), k);
            assert!(values.is_sorted());
            for (i, j) in (0..k).flat_map(|i| (0..k).map(move |j| (i, j))) {
                let dot: f64 = (0..k).map(|n| vectors[i * k + n] * vectors[j * k + n]).sum();
                assert!((dot - if i == j { 1.0 } else { 0.0 }).abs() < 1e-12, "{k} {i} {j}: {dot}");
                let sum: f64 = (0..k).map(|n| values[n] * vectors[n * k + i] * vectors[n * k + j]).sum();
                assert!((sum - a[i * k + j]).abs() < 1e-12 * k as f64, "{k} {i} {j}: {sum}");
            }
        }
        assert_eq!(eigen(vec![0.0; 4], 2), (vec![0.0; 2], vec![1.0, 0.0, 0.0, 1.0]));
    }

    #[test]
    fn whitened_patches_have_no_covariance() {
        let device = Device::cpu();
        let mut model = Model::build(&["conv 2x2, 24 channels, init whiten".into()], [6, 5, 3], &device, 0).unwrap();
        // Neighbours that resemble each other.
        let mut x = drawn(40 * 90);
        (3..x.len()).for_each(|i| x[i] = 0.7 * x[i - 3] + 0.5 * x[i]);
        let images = Tensor::from_slice(&device, [40, 6, 5, 3], &x).unwrap();
        assert!(model.whitens() && !model.params.list()[0].trainable && model.params.list()[1].trainable);
        model.whiten(&images).unwrap();
        let w = model.params.values().read::<f32>(0..288).unwrap();
        assert!(w[..144].iter().zip(&w[144..]).all(|(a, b)| *a == -b));
        let c = covariance(&x, [40, 6, 5, 3], [2, 2]);
        let of = |i: usize, j: usize| -> f64 {
            let all = (0..144).map(|n| f64::from(w[i * 12 + n / 12]) * c[n] * f64::from(w[j * 12 + n % 12]));
            all.sum()
        };
        for (i, j) in (0..12).flat_map(|i| (0..12).map(move |j| (i, j))) {
            let (got, want) = (of(i, j), if i == j { 1.0 } else { 0.0 });
            assert!((got - want).abs() < if i == j { 0.02 } else { 1e-4 }, "{i} {j}: {got}");
        }
        let wrong = Tensor::from_slice(&device, [1, 1, 5, 3], &x[..15]).unwrap();
        assert!(model.whiten(&wrong).unwrap_err().to_string().contains("2 or more"));
    }
}
