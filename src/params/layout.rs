//! Channels behind an image's rows and columns, as they lie in memory here, and before them, as in PyTorch.

/// N, H, W, C to N, C, H, W; what is none stays as it is.
pub(crate) fn channels_first(images: Option<[usize; 4]>, values: &[f32]) -> Vec<f32> {
    let Some([_, h, w, c]) = images else { return values.to_vec() };
    let pixels = h * w;
    let item = |v: &[f32]| (0..c * pixels).map(|at| v[at % pixels * c + at / pixels]).collect::<Vec<_>>();
    values.chunks(c * pixels).flat_map(item).collect()
}

/// N, C, H, W to N, H, W, C; what is none stays as it is.
pub(crate) fn channels_last(images: Option<[usize; 4]>, values: &[f32]) -> Vec<f32> {
    let Some([_, h, w, c]) = images else { return values.to_vec() };
    let pixels = h * w;
    let item = |v: &[f32]| (0..c * pixels).map(|at| v[at % c * pixels + at / c]).collect::<Vec<_>>();
    values.chunks(c * pixels).flat_map(item).collect()
}

#[test]
fn layouts_are_permuted() {
    let ours = [0., 1., 2., 3., 4., 5.];
    let images = Some([1, 2, 1, 3]);
    assert_eq!(channels_first(images, &ours), [0., 3., 1., 4., 2., 5.]);
    assert_eq!(channels_last(images, &channels_first(images, &ours)), ours);
    assert_eq!((channels_first(None, &ours), channels_last(None, &ours)), (ours.to_vec(), ours.to_vec()));
}
