//! ResNet-9: a small residual network for images of 32x32.
//!
//! Source: D. Page, "How to Train Your ResNet", 2018, in the form that is taught with PyTorch, whose keys it has.

use crate::nn::spec::LayerSpec;

/// Eight convolutions, each batch-normalised with a ReLU, in two residual pairs, and the head, whose first two layers
/// pool and flatten: `head` takes the 512 features of an image and begins at `classifier.2`.
pub fn resnet9(head: &[LayerSpec]) -> Vec<LayerSpec> {
    let conv = |channels: usize, pools: bool| {
        let mut list: Vec<LayerSpec> =
            vec![format!("conv 3x3, {channels} channels, pad 1").as_str().into(), "batch_norm".into(), "relu".into()];
        list.extend(pools.then(|| "max_pool 2x2".into()));
        list
    };
    let pair = |name: &str, channels| {
        let [a, b] = [conv(channels, false), conv(channels, false)].map(LayerSpec::unnamed);
        LayerSpec::residual(vec![a, b], vec![], vec![]).named(name)
    };
    let mut classifier: Vec<LayerSpec> = vec!["max_pool 4x4".into(), "flatten".into()];
    classifier.extend_from_slice(head);
    vec![
        LayerSpec::list("conv1", conv(64, false)),
        LayerSpec::list("conv2", conv(128, true)),
        pair("res1", 128),
        LayerSpec::list("conv3", conv(256, true)),
        LayerSpec::list("conv4", conv(512, true)),
        pair("res2", 512),
        LayerSpec::list("classifier", classifier),
    ]
}

#[test]
fn the_keys_and_their_number_are_pytorch_s() {
    use crate::{Device, nn::Model};
    let model = Model::build(&resnet9(&["fc 20".into()]), [32, 32, 3], &Device::cpu(), 0).unwrap();
    assert_eq!(model.params.count(), 6_580_500);
    let keys: Vec<&str> = model.params.list().iter().map(|p| p.key.as_str()).collect();
    for key in ["conv1.0.weight", "conv2.1.bias", "res1.0.0.weight", "res2.1.1.weight", "classifier.2.bias"] {
        assert!(keys.contains(&key), "{key}");
    }
}
