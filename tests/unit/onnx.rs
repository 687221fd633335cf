//! The tests of `src/nn/onnx.rs`: a model is read back. `tools/check_onnx.py` runs models of all recipes.

use super::*;
use crate::device::Device;
use crate::formats::protobuf::tests::{Value, fields, of};
use crate::nn::{LAYERS, networks, spec::LayerSpec};

fn text(bytes: &[u8], field: u32) -> Vec<String> {
    of(bytes, field).into_iter().map(|b| String::from_utf8(b).unwrap()).collect()
}

fn ints(bytes: &[u8], field: u32) -> Vec<i64> {
    let all = fields(bytes).into_iter().filter(|(f, _)| *f == field);
    all.map(|(_, v)| if let Value::Int(i) = v { i } else { panic!("{v:?}") }).collect()
}

fn build(layers: &[&str]) -> Model {
    let specs: Vec<LayerSpec> = layers.iter().map(|&l| l.into()).collect();
    Model::build(&specs, [6, 8, 3], &Device::cpu(), 1).unwrap()
}

/// `output = Op(inputs)`, a node a line.
fn nodes(graph: &[u8]) -> Vec<String> {
    let line = |n: &Vec<u8>| format!("{} = {}({})", text(n, 2)[0], text(n, 4)[0], text(n, 1).join(", "));
    of(graph, 1).iter().map(line).collect()
}

#[test]
fn a_model_has_the_networks_nodes_and_numbers() {
    let model =
        build(&["conv 3x1, 4 channels, stride 2, pad 1x0", "batch_norm", "relu", "dropout 0.5", "flatten", "fc 10"]);
    let (mean, std) = ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]);
    let file = model.to_onnx(Some((&mean, &std)), &[("classes", "[]".into())]).unwrap();
    assert_eq!((ints(&file, 1), text(&file, 2)), (vec![8], vec!["tilework".to_string()]));
    assert_eq!(ints(&of(&file, 8)[0], 2), [17]);
    assert_eq!((text(&of(&file, 14)[0], 1), text(&of(&file, 14)[0], 2)), (vec!["classes".into()], vec!["[]".into()]));
    let graph = &of(&file, 7)[0];
    assert_eq!(
        nodes(graph),
        [
            "normalise/Sub = Sub(images, normalise/mean)",
            "normalise/Div = Div(normalise/Sub, normalise/std)",
            "0/Conv = Conv(normalise/Div, 0.weight, 0.bias)",
            "1/BatchNormalization = BatchNormalization(0/Conv, 1.weight, 1.bias, 1.running_mean, 1.running_var)",
            "2/Relu = Relu(1/BatchNormalization)",
            "4/Flatten = Flatten(2/Relu)",
            "logits = Gemm(4/Flatten, 5.weight, 5.bias)",
        ]
    );
    let conv = &of(graph, 1)[2];
    let attributes: Vec<_> = of(conv, 5).iter().map(|a| (text(a, 1)[0].clone(), ints(a, 8))).collect();
    let expected = [("kernel_shape", vec![3, 1]), ("strides", vec![2, 2]), ("pads", vec![1, 0, 1, 0])];
    assert_eq!(attributes, expected.map(|(k, v)| (k.to_string(), v)));
    let state = model.state_dict().unwrap();
    for tensor in of(graph, 5).iter().filter(|t| !text(t, 8)[0].contains('/')) {
        let array = &state[&text(tensor, 8)[0]];
        assert_eq!(ints(tensor, 1), array.shape().iter().map(|&d| d as i64).collect::<Vec<_>>());
        let floats: Vec<f32> = of(tensor, 9)[0].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!((floats, ints(tensor, 2)), (array.to_f32().unwrap(), vec![1]));
    }
    for (field, name, sizes) in [(11, "images", &[3, 6, 8][..]), (12, "logits", &[10])] {
        let port = &of(graph, field)[0];
        let dims = of(&of(&of(&of(port, 2)[0], 1)[0], 2)[0], 1);
        assert_eq!((text(port, 1)[0].as_str(), text(&dims[0], 2)[0].as_str()), (name, "N"));
        assert_eq!(dims[1..].iter().flat_map(|d| ints(d, 1)).collect::<Vec<_>>(), sizes);
    }
    let bare = nodes(&of(&model.to_onnx(None, &[]).unwrap(), 7)[0]);
    assert_eq!((bare.len(), bare[0].as_str()), (5, "0/Conv = Conv(images, 0.weight, 0.bias)"));
}

#[test]
fn every_layer_can_be_written() {
    for kind in LAYERS.iter().filter(|kind| !["residual", "layers"].contains(&kind.name)) {
        let phrase = kind.form.split('[').next().unwrap();
        let layers = if phrase.starts_with("fc") { vec!["flatten", phrase] } else { vec![phrase] };
        build(&layers).to_onnx(None, &[]).unwrap();
    }
    let blocks = networks::ModelSpec {
        name: Some(networks::Network::Resnet9),
        head: vec!["flatten".into(), "fc 10".into()],
        ..Default::default()
    };
    let model = Model::build(&blocks.layers(&[]).unwrap(), [32, 32, 3], &Device::cpu(), 0).unwrap();
    let file = model.to_onnx(None, &[]).unwrap();
    let graph = &of(&file, 7)[0];
    assert_eq!(nodes(graph).iter().filter(|n| n.contains("= Add(")).count(), 2);
}

#[test]
fn adaptive_pools_are_windows_where_they_can_be() {
    let pool = |size: &str| {
        let model = build(&[&format!("adaptive_avg_pool {size}"), "flatten"]);
        let file = model.to_onnx(None, &[])?;
        let node = of(&of(&file, 7)[0], 1)[0].clone();
        Ok((text(&node, 4)[0].clone(), of(&node, 5).iter().take(2).map(|a| ints(a, 8)).collect::<Vec<_>>()))
    };
    assert_eq!(pool("1x1").unwrap(), ("GlobalAveragePool".into(), vec![]));
    assert_eq!(pool("2x4").unwrap(), ("AveragePool".into(), vec![vec![3, 2], vec![3, 2]]));
    assert_eq!(pool("1x8").unwrap(), ("AveragePool".into(), vec![vec![6, 1], vec![1, 1]]));
    let e: Error = pool("4x4").unwrap_err();
    let e = e.to_string();
    assert!(e.contains("layer 0 (`adaptive_avg_pool 4x4`)") && e.contains("6x8 to 4x4") && e.contains("remedy"), "{e}");
}
