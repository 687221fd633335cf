//! ResNet-18, with the keys of torchvision's `resnet18`, so that its weights fit unchanged.
//!
//! Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1; torchvision for the names,
//! for the stride's place and for the start: the convolutions' weights are normal, with the variance 2 / fan_out.

use crate::nn::spec::LayerSpec;
use serde::{Deserialize, Serialize};

/// How the network begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stem {
    /// A 7x7 convolution and a max-pool, each of stride 2: for images of 224x224.
    #[default]
    Imagenet,
    /// A 3x3 convolution of stride 1: for images of 32x32.
    Cifar,
}

/// Eighteen layers with weights: the stem, four stages of two blocks, the head. `head` takes the 512 features
/// of an image. Its one layer is `fc`; of several, the first is `fc.0`.
pub fn resnet18(stem: Stem, head: &[LayerSpec]) -> Vec<LayerSpec> {
    let mut net = match stem {
        Stem::Imagenet => vec![
            conv("7x7", 64, ", stride 2, pad 3").named("conv1"),
            "bn1: batch_norm".into(),
            "relu: relu".into(),
            "maxpool: max_pool 3x3, stride 2, pad 1".into(),
        ],
        Stem::Cifar => {
            vec![conv("3x3", 64, ", pad 1").named("conv1"), "bn1: batch_norm".into(), "relu: relu".into()]
        }
    };
    for (stage, channels) in [64, 128, 256, 512].into_iter().enumerate() {
        let blocks = vec![block(channels, stage > 0), block(channels, false)];
        net.push(LayerSpec::list(&format!("layer{}", stage + 1), blocks));
    }
    net.extend(["avgpool: adaptive_avg_pool 1x1".into(), "flatten".into()]);
    net.push(match head {
        [one @ LayerSpec::Phrase(_)] => one.clone().named("fc"),
        several => LayerSpec::list("fc", several.to_vec()),
    });
    net
}

/// A basic block. One that begins a stage halves height and width, and fits its input by a 1x1 convolution.
fn block(channels: usize, halves: bool) -> LayerSpec {
    let stride = if halves { ", stride 2" } else { "" };
    let main = vec![
        conv("3x3", channels, &format!("{stride}, pad 1")).named("conv1"),
        "bn1: batch_norm".into(),
        "relu".into(),
        conv("3x3", channels, ", pad 1").named("conv2"),
        "bn2: batch_norm".into(),
    ];
    let fit = || LayerSpec::list("downsample", vec![conv("1x1", channels, stride), "batch_norm".into()]);
    LayerSpec::residual(main, halves.then(fit).into_iter().collect(), vec!["relu".into()])
}

fn conv(size: &str, channels: usize, more: &str) -> LayerSpec {
    format!("conv {size}, {channels} channels{more}, no bias, init kaiming_normal").as_str().into()
}

#[test]
fn the_keys_and_their_number_are_torchvision_s() {
    use crate::{Device, nn::Model};
    let build = |stem, head: &[LayerSpec]| Model::build(&resnet18(stem, head), [32, 32, 3], &Device::cpu(), 0).unwrap();
    let model = build(Stem::Imagenet, &["fc 10".into()]);
    assert_eq!((model.params.count(), model.params.list().len()), (11_181_642, 62));
    assert_eq!(model.params.list().last().unwrap().key, "fc.bias");
    let state = model.state_dict().unwrap();
    for key in ["conv1.weight", "bn1.running_mean", "layer1.1.bn2.bias", "layer3.0.downsample.1.num_batches_tracked"] {
        assert!(state.contains_key(key), "{key}");
    }
    assert_eq!(state.len(), 122);
    // The second stage's first convolution: variance 2 / (9 · 128).
    let weights = state["layer2.0.conv1.weight"].to_f32().unwrap();
    let variance = weights.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / weights.len() as f64;
    assert!((variance * 9.0 * 128.0 / 2.0 - 1.0).abs() < 0.02, "{variance}");
    let model = build(Stem::Cifar, &["fc 256".into(), "relu".into(), "dropout 0.2".into(), "fc 10".into()]);
    assert_eq!(model.params.list().last().unwrap().key, "fc.3.bias");
    assert_eq!(model.layers.iter().find(|l| l.key == "layer4").unwrap().output.dims(), [4, 4, 512]);
}
