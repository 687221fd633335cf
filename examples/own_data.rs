//! Trains a network on images of one's own:
//!
//!     cargo run --release --example own_data

use tilework::data::{Dataset, loader::Loader};
use tilework::nn::{LayerSpec, Model};
use tilework::{Device, Result, optim::Sgd, step::Rate, train::Engine};

/// Grey images of 8 x 8 pixels, brighter in their left half (class 0) or in their right half (class 1).
fn images(count: usize) -> Dataset {
    let pixel = |i: usize, x: usize| (i * 37 % 100 + if x / 4 == i % 2 { 90 } else { 30 }) as u8;
    Dataset {
        name: "halves".into(),
        classes: vec!["left".into(), "right".into()],
        height: 8,
        width: 8,
        channels: 1,
        images: (0..count * 64).map(|p| pixel(p / 64, p % 8)).collect(),
        labels: (0..count).map(|i| (i % 2) as i32).collect(),
    }
}

fn main() -> Result<()> {
    let device = Device::cpu();
    let data = Loader::new(images(256).into(), 32, &[0.4], &[0.2], &device)?;
    let net = ["conv 3x3, 4 channels", "relu", "max_pool 2", "flatten", "fc 2"].map(LayerSpec::from);
    let model = Model::build(&net, [8, 8, 1], &device, 0)?;
    let optimizer = Sgd::new(&model.params, true, false)?;
    let mut engine = Engine::new(model, Box::new(optimizer), data.feed(true), |scores, labels, cx| {
        scores.cross_entropy(labels, 0.0, cx)
    })?;
    for number in 0..40 {
        let lr = 0.1 * (1.0 - number as f64 / 40.0);
        engine.step(&data.step(number).rate(Rate { lr, momentum: 0.9, decay: 0.0 }))?;
    }
    let test = engine.evaluate(&Loader::new(images(100).into(), 50, &[0.4], &[0.2], &device)?)?;
    println!("loss {:.3}, accuracy {:.0} %", test.loss, 100.0 * test.accuracy);
    assert!(test.accuracy > 0.95);
    Ok(())
}
