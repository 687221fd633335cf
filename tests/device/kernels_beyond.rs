//! The kernels that are no op's: optimizers, batches, metrics, norms; and what ops have beside their
//! outputs. As in `kernels.rs`, on the emulated device in three orders, one checked, or on the GPU.

use crate::under::{CHECKED, Under};
use std::sync::Arc;
use tilework::data::loader::{Augment, Batch, Border, Loader, Outside, Transform};
use tilework::data::{Dataset, Views};
use tilework::device::cuda::CudaOptions;
use tilework::nn::{Model, layer};
use tilework::ops::batch_norm2d::running;
use tilework::ops::case::Fill;
use tilework::ops::parity::{self, Expected, Terms};
use tilework::ops::{Case, Draw, ROOMS, Room, STRIPS};
use tilework::optim::{Adam, Muon, MuonSpec, Optimizer, Sgd};
use tilework::params::Param;
use tilework::rng::{Stream, stream};
use tilework::step::{Rate, Step};
use tilework::{Ctx, DType, Device, Tensor, Var};

/// Pseudo-random numbers in [-1, 1).
fn numbers(n: usize, id: u32) -> Vec<f32> {
    let s = Stream { seed: 5, epoch: 0, step: 0, id };
    (0..n).map(|i| 2.0 * s.uniform(i) - 1.0).collect()
}

fn close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g == w || (g - w).abs() <= tolerance * scale, "{what}[{i}] is {g}, the CPU has {w}");
    }
}

/// Grids of two blocks where a kernel strides over its elements.
const STRIDING: CudaOptions =
    CudaOptions { explicit_conv: false, no_fuse: false, tile: None, sync_launches: false, max_blocks: Some(2) };

/// Every tile of the matrix product, and convolution with its patches in memory.
#[test]
fn products_in_every_form() {
    let tile = |name| CudaOptions { tile: Some(name), ..CudaOptions::default() };
    let explicit = CudaOptions { explicit_conv: true, ..CudaOptions::default() };
    let floats = [tile("Simt128"), tile("Simt64"), tile("Simt32"), explicit].map(|o| (o, &[DType::F32][..]));
    let halves = [tile("Mma128"), tile("Mma64"), tile("Mma32"), tile(STRIPS), explicit]
        .map(|o| (o, &[DType::F16, DType::BF16][..]));
    let forms: Option<Vec<_>> =
        floats.into_iter().chain(halves).map(|(o, types)| Some((o, Under::with(o)?, types))).collect();
    let Some(forms) = forms else { return };
    for room in ROOMS.iter().filter(|r| PRODUCTS.contains(&r.name)) {
        let random = (0..4).map(|seed| (room.random_case)(&mut Draw::new(seed)));
        for case in (room.cases)().into_iter().filter(|c| !c.bench).chain(random) {
            let terms = Terms::of(room, &case, 2).unwrap();
            let all = forms.iter().flat_map(|(o, under, types)| types.iter().map(move |d| (o, under, *d)));
            for (options, under, dtype) in all.filter(|(_, _, dtype)| case.half || *dtype == DType::F32) {
                // In bf16 the same threads do the same as in f16, but for the instruction.
                let others = if dtype == DType::BF16 { "threads forward" } else { CHECKED };
                let chosen = |name: &str| ["threads forward", "cuda", others].contains(&name);
                for (name, device) in under.devices.iter().filter(|d| chosen(d.0)) {
                    let d = terms.check(device, dtype).unwrap();
                    let ok = d.error <= 1.0;
                    assert!(ok, "{} {} {dtype} ({name}, {options:?}): {d:?}", room.name, case.name);
                }
            }
        }
    }
}

/// A gradient that is added to an earlier one: weights used twice, for every tile and with splits.
#[test]
fn gradients_accumulate() {
    let twice = |name: &str, wide: usize, c: usize| {
        Case::new(name.to_string(), move |v, cx| {
            let a = v[0].conv2d(&v[1], Some(&v[2]), [1, 1], [1, 1], cx)?;
            a.conv2d(&v[1], Some(&v[2]), [1, 1], [1, 1], cx)
        })
        .input("x", [3, wide, 9, c], Fill::Uniform)
        .input("w", [c, 3, 3, c], Fill::Uniform)
        .input("b", [c], Fill::Uniform)
    };
    let fc = |n: usize, size: usize| {
        Case::new("fc", |v, cx| v[0].linear(&v[1], Some(&v[2]), cx)?.linear(&v[1], Some(&v[2]), cx))
            .input("x", [n, size], Fill::Uniform)
            .input("w", [size, size], Fill::Uniform)
            .input("b", [size], Fill::Uniform)
    };
    let cases = [twice("small", 7, 5), twice("splits", 40, 5), twice("fours", 7, 4), fc(70, 33), fc(10, 36)];
    check_accumulated(&cases, &[None, Some("Simt128"), Some("Simt64"), Some("Simt32")], DType::F32);
    // Of two bytes, without a number between that is rounded.
    let side_by_side = |n: usize, inputs: usize, outputs: usize| {
        Case::new("side by side", |v, cx| v[0].linear(&v[2], None, cx)?.add(&v[1].linear(&v[2], None, cx)?, cx))
            .input("x", [n, inputs], Fill::Uniform)
            .input("z", [n, inputs], Fill::Uniform)
            .input("w", [outputs, inputs], Fill::Uniform)
    };
    let cases = [side_by_side(70, 33, 9), side_by_side(10, 36, 8), side_by_side(3000, 16, 16)];
    check_accumulated(&cases, &[None, Some("Mma128"), Some("Mma64"), Some("Mma32")], DType::F16);
}

fn check_accumulated(cases: &[Case], tiles: &[Option<&'static str>], dtype: DType) {
    let all: Option<Vec<_>> =
        tiles.iter().map(|&tile| Under::with(CudaOptions { tile, ..CudaOptions::default() })).collect();
    let Some(all) = all else { return };
    for case in cases {
        let want = Expected::of(&ROOMS[3], case, dtype, 4).unwrap();
        for (tile, under) in tiles.iter().zip(&all) {
            for (name, device) in under.devices.iter().filter(|d| ["threads forward", "cuda", CHECKED].contains(&d.0)) {
                let d = want.compare(&parity::run(case, device, dtype, 4).unwrap()).unwrap();
                assert!(d.error <= 1.0, "{} {dtype} {tile:?} ({name}): {d:?}", case.name);
            }
        }
    }
}

const PRODUCTS: [&str; 2] = ["conv2d", "linear"];

/// The cases of an op that are not timed, and are not of many elements, which `kernels.rs` has: each with a type of each size
/// that it fits. Places and sizes are the same in bf16 as in f16.
fn small_cases(room: &Room) -> impl Iterator<Item = (Case, &'static [DType])> {
    let types = |c: &Case| if c.half { &[DType::F32, DType::F16][..] } else { &[DType::F32] };
    let small = |c: &Case| c.inputs.iter().all(|input| input.shape.len() <= 1 << 17);
    (room.cases)().into_iter().filter(move |c| !c.bench && small(c)).map(move |c| {
        let types = types(&c);
        (c, types)
    })
}

/// Tensors that start within another's memory, where loads of several elements are not possible: each
/// input alone, and the output's gradient. On the device that checks alignment, where there is one.
#[test]
fn views_that_are_not_aligned() {
    let Some(under) = Under::new() else { return };
    let (name, device) = under.devices.last().unwrap();
    for room in ROOMS {
        for (case, types) in small_cases(room) {
            let terms = Terms::of(room, &case, 3).unwrap();
            let wanted: Vec<_> = types.iter().map(|&dtype| (dtype, terms.expected(dtype).unwrap())).collect();
            for (which, (dtype, want)) in (0..=case.inputs.len()).flat_map(|i| wanted.iter().map(move |d| (i, d))) {
                let got = parity::run_with(&case, device, *dtype, 3, &|i, tensor| {
                    if i != which {
                        return Ok(tensor);
                    }
                    let values: Vec<f32> = tensor.to_f64()?.into_iter().map(|v| v as f32).collect();
                    let values = [vec![f32::NAN], values].concat();
                    Tensor::from_slice(device, [values.len()], &values)?
                        .to_dtype(tensor.dtype())?
                        .narrow(1, tensor.len())?
                        .reshape(tensor.shape())
                });
                let what = format!("{} {} {dtype} ({name}, {which})", room.name, case.name);
                let d = want.compare(&got.unwrap_or_else(|e| panic!("{what}: {e}"))).unwrap();
                assert!(d.error <= 1.0, "{what}: {d:?}");
            }
        }
    }
}

/// Kernels that stride over their elements, with a grid too small for them.
#[test]
fn grids_stride() {
    let Some(under) = Under::with(STRIDING) else { return };
    for room in ROOMS.iter().filter(|r| !PRODUCTS.contains(&r.name)) {
        for (case, types) in small_cases(room) {
            let terms = Terms::of(room, &case, 6).unwrap();
            for (dtype, (name, device)) in types.iter().flat_map(|d| under.devices.iter().map(move |u| (*d, u))) {
                let what = format!("{} {} {dtype} ({name})", room.name, case.name);
                let d = terms.check(device, dtype).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(d.error <= 1.0, "{what}: {d:?}");
            }
        }
    }
}

/// A model with parameters of awkward sizes.
fn model(device: &Device) -> Model {
    let net = ["conv 3x3, 5 channels", "relu", "flatten", "fc 70"].map(|l| layer(l).unwrap());
    Model::new(Vec::from(net), [6, 5, 3], device, 1).unwrap()
}

/// Some steps with made-up gradients; the parameters after them.
fn optimise(
    device: &Device,
    make: &dyn Fn(&Model) -> Box<dyn Optimizer>,
    rate: Rate,
    change: &dyn Fn(&mut Param),
) -> Vec<f32> {
    optimise_of(model(device), make, rate, change)
}

fn optimise_of(
    mut model: Model,
    make: &dyn Fn(&Model) -> Box<dyn Optimizer>,
    rate: Rate,
    change: &dyn Fn(&mut Param),
) -> Vec<f32> {
    let device = &model.params.values().device().clone();
    model.params.configure(change).unwrap();
    let mut optimizer = make(&model);
    for step in 0..5 {
        // Other numbers each step, and other rates for the second group.
        let lr = 0.05 / (step + 1) as f64;
        let mut state = Step { step, loss_scale: 1.0 + step as f32, clip: 0.9 - 0.2 * step as f32, ..Step::default() };
        state.rates[0] = Rate { lr, ..rate };
        state.rates[1] = Rate { lr: 0.3 * lr, momentum: 0.5 * rate.momentum, decay: rate.decay + 0.01 };
        let mut grads = model.params.grads().unwrap();
        let mut cx = model.train(state);
        let x = Tensor::from_slice(device, [2, 6, 5, 3], &numbers(180, step as u32)).unwrap();
        let y = model.forward(&Var::constant(x), &mut cx).unwrap();
        let gy = Tensor::from_slice(device, y.shape(), &numbers(y.value().len(), 100 + step as u32)).unwrap();
        cx.backward(&y, gy, Some(&mut grads)).unwrap();
        drop(y);
        optimizer.step(&mut model.params, &grads).unwrap();
    }
    let values = model.params.values();
    values.read(0..values.len()).unwrap()
}

#[test]
fn optimizers() {
    let Some(under) = Under::with(STRIDING) else { return };
    type Make = Box<dyn Fn(&Model) -> Box<dyn Optimizer>>;
    let sgd = |momentum: f64, nesterov, decay| -> (Make, Rate) {
        let make =
            move |m: &Model| -> Box<dyn Optimizer> { Box::new(Sgd::new(&m.params, momentum > 0.0, nesterov).unwrap()) };
        (Box::new(make), Rate { lr: 0.0, momentum, decay })
    };
    let adam = |betas: [f64; 2], eps, decay, decoupled| -> (Make, Rate) {
        let make = move |m: &Model| -> Box<dyn Optimizer> {
            Box::new(Adam::new(&m.params, betas[1], eps, decoupled).unwrap())
        };
        (Box::new(make), Rate { lr: 0.0, momentum: betas[0], decay })
    };
    let all = [
        ("sgd", sgd(0.0, false, 0.0)),
        ("sgd with decay", sgd(0.0, false, 0.1)),
        ("momentum", sgd(0.9, false, 0.1)),
        ("nesterov", sgd(0.8, true, 0.1)),
        ("adam", adam([0.9, 0.999], 1e-8, 0.0, false)),
        ("adam with decay", adam([0.7, 0.95], 1e-2, 0.1, false)),
        ("adamw", adam([0.9, 0.99], 1e-3, 0.2, true)),
    ];
    let one_group = |_: &mut Param| {};
    let groups = |p: &mut Param| {
        p.group = u8::from(p.shape.rank() == 1);
        p.trainable = p.key != "3.bias";
    };
    for (what, (make, rate)) in &all {
        for (kind, change) in [("one group", &one_group as &dyn Fn(&mut Param)), ("groups", &groups)] {
            let want = optimise(&Device::cpu(), make, *rate, change);
            for (name, device) in &under.devices {
                close(&optimise(device, make, *rate, change), &want, 3e-5, &format!("{what}, {kind} ({name})"));
            }
        }
    }
}

/// Weights that move as matrices, wide and tall, and biases that another optimizer moves.
#[test]
fn muon() {
    let Some(under) = Under::with(STRIDING) else { return };
    for (spec, momentum) in [(MuonSpec { steps: 3, normalise: true }, 0.6), (MuonSpec::default(), 0.0)] {
        let make = |m: &Model| -> Box<dyn Optimizer> {
            let others = Box::new(Sgd::new(&m.params, true, true).unwrap());
            Box::new(Muon::new(&m.params, others, &[MuonSpec::default(), spec]).unwrap())
        };
        let matrices = |p: &mut Param| {
            p.by_matrix = p.shape.rank() > 1;
            p.group = u8::from(p.by_matrix);
        };
        let rate = Rate { lr: 0.0, momentum, decay: 0.1 };
        let want = optimise(&Device::cpu(), &make, rate, &matrices);
        for (name, device) in &under.devices {
            close(&optimise(device, &make, rate, &matrices), &want, 1e-4, &format!("{spec:?} ({name})"));
        }
    }
    // More blocks that sum squares than a block has threads.
    let (Some(under), rate) = (Under::new(), Rate { lr: 0.0, momentum: 0.6, decay: 0.0 }) else { return };
    let large = |device: &Device| {
        let net = ["flatten", "fc 800, no bias"].map(|l| layer(l).unwrap());
        let make = |m: &Model| -> Box<dyn Optimizer> {
            let spec = MuonSpec { steps: 1, normalise: true };
            Box::new(Muon::new(&m.params, Box::new(Sgd::new(&m.params, true, true).unwrap()), &[spec]).unwrap())
        };
        let model = Model::new(Vec::from(net), [6, 5, 3], device, 1).unwrap();
        optimise_of(model, &make, rate, &|p| p.by_matrix = true)
    };
    let want = large(&Device::cpu());
    for (name, device) in &under.devices {
        close(&large(device), &want, 1e-4, &format!("800x90 ({name})"));
    }
}

#[test]
fn views_of_images() {
    let Some(under) = Under::with(STRIDING) else { return };
    for shape in [[3, 2, 2, 1], [2, 5, 7, 3], [5, 17, 20, 2]] {
        let of = |device: &Device, views: Views| {
            let x = Tensor::from_slice(device, shape, &numbers(shape.iter().product(), 4)).unwrap();
            views.mean(&x, &mut Ctx::eval(device), |x, _| Ok(x.clone())).unwrap().value().to_vec::<f32>().unwrap()
        };
        for views in [Views::One, Views::Mirror, Views::MirrorShift] {
            let want = of(&Device::cpu(), views);
            for (name, device) in &under.devices {
                close(&of(device, views), &want, 1e-6, &format!("{views:?} of {shape:?} ({name})"));
            }
        }
    }
}

/// A frozen parameter keeps its bits, has no gradient, and a group moves at its own rate.
#[test]
fn groups_and_frozen_parameters() {
    let Some(under) = Under::new() else { return };
    for device in under.devices.iter().map(|(_, d)| d).chain([&Device::cpu()]) {
        let make: &dyn Fn(&Model) -> Box<dyn Optimizer> = &|m| Box::new(Sgd::new(&m.params, true, false).unwrap());
        let rate = Rate { lr: 0.0, momentum: 0.9, decay: 0.1 };
        let start = model(device);
        let before = start.params.values().read::<f32>(0..start.params.values().len()).unwrap();
        let freeze = |p: &mut Param| p.trainable = !p.key.starts_with("0.");
        let after = optimise(device, make, rate, &freeze);
        let fc = start.params.list().iter().position(|p| p.key == "3.weight").unwrap();
        let edge = start.params.list()[fc].range().start;
        assert_eq!(before[..edge], after[..edge]);
        assert_ne!(before[edge..], after[edge..]);
    }
    let e = model(under.first()).params.configure(|p| p.group = 8).unwrap_err().to_string();
    assert!(e.contains("group 8") && e.contains("remedy"), "{e}");
}

#[test]
fn running_statistics() {
    let Some(under) = Under::new() else { return };
    for (shape, momentum) in [([3, 5, 4, 7], 0.1), ([40, 9, 23, 33], 0.3), ([1, 1, 2, 1], 1.0), ([2, 40, 40, 70], 0.1)]
    {
        let c = shape[3];
        let run = |device: &Device| {
            let [mut mean, mut var] = running(device, DType::F32, c).unwrap();
            for step in 0..2 {
                let x: Vec<f32> = numbers(shape.iter().product(), step).iter().map(|v| v + 100.0).collect();
                let of = |v: &[f32]| Var::constant(Tensor::from_slice(device, [c], v).unwrap());
                let x = Var::constant(Tensor::from_slice(device, shape, &x).unwrap());
                let mut cx = Ctx::train(device);
                let (gamma, beta) = (of(&numbers(c, 8)), of(&numbers(c, 9)));
                x.batch_norm2d(&gamma, &beta, [&mut mean, &mut var], momentum, 1e-5, &mut cx).unwrap();
            }
            (mean.to_vec::<f32>().unwrap(), var.to_vec::<f32>().unwrap())
        };
        let want = run(&Device::cpu());
        for (name, device) in &under.devices {
            let got = run(device);
            close(&got.0, &want.0, 2e-6, &format!("running mean of {shape:?} ({name})"));
            close(&got.1, &want.1, 2e-5, &format!("running variance of {shape:?} ({name})"));
        }
    }
}

/// A large mean and a small deviation, which a sum of squares in f32 would lose.
#[test]
fn batch_norm_keeps_the_variance_of_a_large_mean() {
    let Some(under) = Under::new() else { return };
    // Of few rows and of many.
    for (images, (name, device)) in [3, 9].into_iter().flat_map(|images| under.devices.iter().map(move |d| (images, d)))
    {
        let values: Vec<f32> = (0..images * 1000).map(|i| 10_000.0 + if i % 2 == 0 { 0.5 } else { -0.5 }).collect();
        let of = |v| Var::constant(Tensor::from_slice(device, [1], &[v]).unwrap());
        let x = Var::constant(Tensor::from_slice(device, [images, 100, 10, 1], &values).unwrap());
        let [mut mean, mut var] = running(device, DType::F32, 1).unwrap();
        let y = x.batch_norm2d(&of(1f32), &of(0f32), [&mut mean, &mut var], 1.0, 0.0, &mut Ctx::train(device)).unwrap();
        close(&y.value().to_vec::<f32>().unwrap()[..2], &[1.0, -1.0], 1e-5, name);
        close(&mean.to_vec::<f32>().unwrap(), &[10_000.0], 1e-7, name);
    }
}

/// A data set whose every byte tells where it is from.
fn data(n: usize, h: usize, w: usize, c: usize) -> Arc<Dataset> {
    Arc::new(Dataset {
        name: "test".into(),
        classes: (0..7).map(|i| i.to_string()).collect(),
        height: h,
        width: w,
        channels: c,
        images: (0..n * h * w * c).map(|i| (i * 7919 % 251) as u8).collect(),
        labels: (0..n).map(|i| (i * 3 % 7) as i32).collect(),
    })
}

/// All batches of an epoch: images and labels.
fn epoch(
    device: &Device,
    data: &Arc<Dataset>,
    batch: usize,
    size: Option<usize>,
    augment: Augment,
) -> Vec<(Vec<f32>, Vec<i32>)> {
    let c = data.channels;
    let (mean, std) = (vec![0.1, 0.5, 0.3][..c].to_vec(), [0.2, 0.25, 0.3][..c].to_vec());
    let transform = Transform { mean, std, size, augment };
    let loader = Loader::transformed(data.clone(), batch, &transform, device).unwrap();
    let state = Step { seed: 77, epoch: 3, step: 11, ..Step::default() };
    let mut feed = loader.feed(true);
    let mut made = |at: usize| feed.batch(&Step { batch_offset: (at * batch) as u32, ..state }).unwrap();
    let vectors = |b: Batch| (b.images.to_vec().unwrap(), b.labels.to_vec().unwrap());
    (0..loader.batches()).map(|at| vectors(made(at))).collect()
}

#[test]
fn batches_have_the_cpu_s_bits() {
    let Some(under) = Under::new() else { return };
    // An image is mirrored whose number is below the probability, and not at it.
    let numbers = Stream { seed: 77, epoch: 3, step: 0, id: stream::AUGMENT };
    let edge = f64::from(numbers.word(4) >> 8) / f64::from(1 << 24);
    let of = |flip, pad, border| Augment { flip, pad, border, ..Augment::default() };
    let mixed = Augment { vertical_flip: 0.5, rotation: 180.0, fill: Outside::Mean, ..of(0.5, 3, Border::Reflect) };
    let augments = [
        Augment::default(),
        of(edge, 0, Border::Black),
        of(0.5, 2, Border::Black),
        of(0.3, 3, Border::Reflect),
        of(1.0, 2, Border::Edge),
        Augment { vertical_flip: 0.5, cutout: 2, ..of(0.5, 1, Border::Black) },
        Augment { alternate: true, ..of(0.5, 2, Border::Symmetric) },
        Augment { alternate: true, rotation: 9.0, ..of(0.3, 1, Border::Reflect) },
        Augment { rotation: 30.0, ..of(0.4, 0, Border::Black) },
        Augment { cutout: 3, ..mixed },
        mixed,
    ];
    for (data, batch) in [(data(23, 5, 7, 3), 8), (data(9, 20, 19, 1), 4), (data(5, 4, 4, 2), 5)] {
        for (augment, size) in augments.iter().flat_map(|a| [(*a, None), (Augment { pad: 0, ..*a }, Some(29))]) {
            let want = epoch(&Device::cpu(), &data, batch, size, augment);
            for (name, device) in &under.devices {
                let got = epoch(device, &data, batch, size, augment);
                assert!(got == want, "batches of {batch} with {augment:?} of size {size:?} ({name})");
            }
        }
    }
}

#[test]
fn the_norm_of_the_gradients() {
    let Some(under) = Under::new() else { return };
    let norm = |device: &Device, features: usize| {
        let net = vec![layer("flatten").unwrap(), layer(&format!("fc {features}")).unwrap()];
        let model = Model::new(net, [5, 5, 11], device, 0).unwrap();
        let mut grads = model.params.grads().unwrap();
        let mut cx = model.train(Step::default());
        let x = Tensor::from_slice(device, [3, 5, 5, 11], &numbers(825, 1)).unwrap();
        let y = model.forward(&Var::constant(x), &mut cx).unwrap();
        let gy = Tensor::from_slice(device, y.shape(), &numbers(3 * features, 2)).unwrap();
        cx.backward(&y, gy, Some(&mut grads)).unwrap();
        grads.norm().unwrap()
    };
    // Within a block, some blocks, and more than the grid has.
    for features in [1, 20, 600] {
        let want = norm(&Device::cpu(), features);
        for (name, device) in &under.devices {
            let got = norm(device, features);
            assert!((got - want).abs() <= 1e-6 * want, "{features} ({name}): {got}, the CPU has {want}");
        }
    }
}

#[test]
fn a_label_that_is_no_class_makes_the_loss_not_a_number() {
    let Some(under) = Under::new() else { return };
    for (name, device) in &under.devices {
        for bad in [-1, 4, i32::MAX, i32::MIN] {
            let labels = Tensor::from_slice(device, [3], &[0, bad, 3]).unwrap();
            let x = Tensor::from_slice(device, [3, 4], &numbers(12, 0)).unwrap();
            for fused in [true, false] {
                let mut cx = Ctx::train(device);
                let x = cx.leaf(x.clone());
                let loss = if fused { x.cross_entropy(&labels, 0.1, &mut cx) } else { x.nll(&labels, &mut cx) };
                let loss = loss.unwrap();
                assert!(loss.value().item().unwrap().is_nan(), "{name} {bad}");
                // The gradient tells which row it was.
                let grads = cx.backward_loss(&loss, None).unwrap();
                let gx = grads.of(&x).unwrap().to_vec::<f32>().unwrap();
                assert!(gx.iter().enumerate().all(|(i, g)| g.is_nan() == (i / 4 == 1)), "{name} {bad}: {gx:?}");
            }
        }
    }
}

#[test]
fn fills_and_copies() {
    let Some(under) = Under::with(STRIDING) else { return };
    for (name, device) in &under.devices {
        for n in [1, 255, 257, 5000] {
            let mut t = Tensor::zeros(device, DType::F32, [n]).unwrap();
            assert_eq!(t.to_vec::<f32>().unwrap(), vec![0.0; n], "{name}");
            t.fill(-2.5).unwrap();
            assert_eq!(t.to_vec::<f32>().unwrap(), vec![-2.5; n], "{name}");
            let values = numbers(n, 3);
            let source = Tensor::from_slice(device, [n], &values).unwrap();
            t.copy_from(&source).unwrap();
            assert_eq!(t.to_vec::<f32>().unwrap(), values, "{name}");
            assert_eq!(t.to_device(&Device::cpu()).unwrap().to_vec::<f32>().unwrap(), values, "{name}");
        }
    }
}

#[test]
fn the_ceilings_are_measured() {
    let Some(under) = Under::new() else { return };
    let Device::Cuda(cuda) = under.first() else { panic!("a CUDA device") };
    let ceiling = cuda.ceiling(1).unwrap();
    assert!(ceiling.bandwidth > 1e6 && ceiling.flops > 1e6 && ceiling.tensor > 1e6, "{ceiling:?}");
}
