//! What applies an activation, or adds gradients up, in its own passes, against the two apart; and what a recording has beside
//! its main line. As in `kernels.rs`, on the emulated device or on the GPU; the rooms' cases compare both with the CPU, in three
//! orders and checked.

use crate::training::recipe;
use crate::under::Under;
use tilework::data::shapes;
use tilework::device::cuda::CudaOptions;
use tilework::nn::{LayerSpec, Model};
use tilework::ops::Case;
use tilework::ops::activation::{Activation, Sum, Then};
use tilework::ops::batch_norm2d::running;
use tilework::ops::case::Fill;
use tilework::ops::parity;
use tilework::ops::window::Window;
use tilework::step::Step;
use tilework::train::Trainer;
use tilework::{Ctx, DType, Device, Result, Tensor, Var};

/// The output of a case, and its gradients.
fn run(case: &Case, device: &Device, dtype: DType) -> Vec<(String, Vec<f64>)> {
    let results = parity::run(case, device, dtype, 6).unwrap();
    results.into_iter().map(|(name, t)| (name, t.to_f64().unwrap())).collect()
}

/// A product, or a sum, that applies ReLU as it stores has the same numbers in every type, and the same gradients.
#[test]
fn relu_as_it_is_stored() {
    let Some(under) = Under::new() else { return };
    let linear = |n: usize, bias: bool, fused: bool| {
        let then = fused.then_some(Activation::Relu);
        let case = Case::new("linear", move |v, cx| {
            let y = v[0].linear_then(then, &v[1], v.get(2), cx)?;
            if fused { Ok(y) } else { y.relu(cx) }
        });
        let case = case.input("x", [n, 260], Fill::Uniform).input("w", [20, 260], Fill::Uniform);
        if bias { case.param("b", [20], Fill::Uniform) } else { case }
    };
    let conv = |n: usize, bias: bool, fused: bool| {
        let then = fused.then_some(Activation::Relu);
        let case = Case::new("conv2d", move |v, cx| {
            let y = v[0].conv2d_then(then, &v[1], v.get(2), [1, 2], [1, 0], cx)?;
            if fused { Ok(y) } else { y.relu(cx) }
        });
        let case = case.input("x", [n, 7, 9, 5], Fill::Uniform).input("w", [20, 3, 2, 5], Fill::Uniform);
        if bias { case.param("b", [20], Fill::Uniform) } else { case }
    };
    // One strip of rows and several, one split and several.
    let twins = [(9, true), (700, true), (70, false)].map(|(n, bias)| [linear(n, bias, true), linear(n, bias, false)]);
    let more = [(3, true), (40, true), (3, false)].map(|(n, bias)| [conv(n, bias, true), conv(n, bias, false)]);
    let add = [true, false].map(|fused| {
        let case = Case::new("add", move |v, cx| match fused {
            true => v[0].add_then(Some(Activation::Relu), &v[1], cx),
            false => v[0].add(&v[1], cx)?.relu(cx),
        });
        case.input("a", [7, 33], Fill::Uniform).input("b", [7, 33], Fill::Uniform)
    });
    for [fused, apart] in twins.iter().chain(&more).chain([&add]) {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let device = &under.devices[0].1;
            assert_eq!(run(fused, device, dtype), run(apart, device, dtype), "{} {dtype}", fused.name);
        }
    }
}

/// Where a bias alone is trained of a layer, an activation behind it passes on nothing but the sums that are its gradient.
#[test]
fn sums_of_what_an_activation_passes_on() {
    let options = CudaOptions { no_fuse: true, ..CudaOptions::default() };
    let (Some(fused), Some(apart)) = (Under::new(), Under::with(options)) else { return };
    // The last is of a pooled ReLU, which does not pass on all.
    for (activation, o, pooled) in
        [(Activation::Gelu, 12, false), (Activation::Silu, 5, false), (Activation::Gelu, 4, true)]
    {
        let case = Case::new("only a bias", move |v, cx| {
            let w: Vec<f32> = (0..3 * o).map(|i| i as f32 / 9.0 - 1.0).collect();
            let w = Tensor::from_slice(cx.device(), [o, 3], &w)?.to_dtype(v[0].value().dtype())?;
            let x = v[0].value();
            let y = match pooled {
                true => {
                    let [x, w] = [x.reshape([1, 103, 10, 3])?, w.reshape([o, 1, 1, 3])?].map(Var::constant);
                    let then = Then { activation: Some(Activation::Relu), pool: Some(Then::POOL) };
                    x.conv2d_then(then, &w, v.get(1), [1; 2], [0; 2], cx)?
                }
                false => Var::constant(x.clone()).linear(&Var::constant(w), v.get(1), cx)?,
            };
            activation.of(&y, cx)
        });
        let case = case.input("x", [1030, 3], Fill::Uniform).param("b", [o], Fill::Uniform);
        // Pixels that no window has are left out of the sums.
        for (dtype, least) in [(DType::F32, if pooled { 2e-6 } else { 0.0 }), (DType::BF16, 4e-3)] {
            let want = run(&case, apart.first(), dtype);
            for (name, device) in &fused.devices {
                let mut got = Vec::new();
                let Device::Cuda(cuda) = device else { panic!("a CUDA device") };
                let kernels = cuda.profile(|| {
                    got = run(&case, device, dtype);
                    Ok(())
                });
                let ran = |name: &str| kernels.as_ref().unwrap().iter().any(|t| t.kernel.starts_with(name));
                assert_eq!([ran("bias_activation_sums"), ran("gelu_bwd") || ran("silu_bwd")], [!pooled, pooled]);
                for ((what, got), (_, want)) in got.iter().zip(&want) {
                    let most = want.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
                    let close = |(got, want): (&f64, &f64)| (got - want).abs() <= least * most;
                    assert!(got.iter().zip(want).all(close), "{what} {activation:?} {dtype} ({name})");
                }
            }
        }
    }
}

/// Batch-norm that applies an activation as it stores has the same numbers where none lies between that is rounded.
#[test]
fn activations_in_batch_norm() {
    let Some(under) = Under::new() else { return };
    for then in [Activation::Relu, Activation::Silu, Activation::Gelu] {
        for c in [3, 8] {
            let twin = |fused: bool| {
                let case = Case::new(format!("{then:?} {c}"), move |v, cx| {
                    let [mut mean, mut var] = running(cx.device(), DType::F32, c)?;
                    let with = fused.then_some(then).into();
                    let y = v[0].batch_norm2d_then(with, &v[1], &v[2], [&mut mean, &mut var], 0.1, 1e-5, cx)?;
                    if fused { Ok(y) } else { then.of(&y, cx) }
                });
                let case = case.input("x", [4, 9, 7, c], Fill::Uniform);
                case.param("gamma", [c], Fill::NonZero).param("beta", [c], Fill::Uniform)
            };
            let device = &under.devices[0].1;
            let [fused, apart] = [true, false].map(|fused| run(&twin(fused), device, DType::F32).remove(0));
            assert_eq!(fused, apart, "{then:?} {c}");
        }
    }
}

/// So does batch-norm that adds another tensor as it stores, before or after an activation, and passes on its gradient.
#[test]
fn sums_in_batch_norm() {
    let Some(under) = Under::new() else { return };
    let relu = Some(Activation::Relu);
    for (before, after) in [(None, None), (None, relu), (relu, None), (Some(Activation::Gelu), None)] {
        // As many rows as are treated whole, and more; channels one by one and by fours.
        for (c, rows) in [(3, 63), (8, 63), (5, 2101), (8, 2101)] {
            let twin = |fused: bool| {
                let case = Case::new(format!("{before:?} plus {after:?} {c}"), move |v, cx| {
                    let [mut mean, mut var] = running(cx.device(), DType::F32, c)?;
                    let (sum, running) = (Sum { plus: &v[3], before, after }, [&mut mean, &mut var]);
                    if fused {
                        return v[0].batch_norm2d_plus(sum, &v[1], &v[2], running, 0.1, 1e-5, cx);
                    }
                    sum.of(&v[0].batch_norm2d(&v[1], &v[2], running, 0.1, 1e-5, cx)?, cx)
                });
                let case = case.input("x", [1, rows, 1, c], Fill::Uniform).param("gamma", [c], Fill::NonZero);
                case.param("beta", [c], Fill::Uniform).input("plus", [1, rows, 1, c], Fill::Uniform)
            };
            let device = &under.devices[0].1;
            let [fused, apart] = [true, false].map(|fused| run(&twin(fused), device, DType::F32));
            assert_eq!(fused, apart, "{before:?} plus {after:?} {c} {rows}");
        }
    }
}

/// Batch-norm of what ReLU made writes what that passes on: the gradients are those of ReLU by itself.
#[test]
fn batch_norm_behind_relu() {
    let Some(under) = Under::new() else { return };
    // As many rows as are treated whole, and more; channels one by one and by fours.
    let few = [(3, [63, 1], None), (8, [63, 1], None)];
    let many = [(5, [2101, 1], None), (8, [2101, 1], None)];
    let pooled = [(8, [1051, 2], Some(Then::POOL)), (5, [1051, 2], Some(Then::OVERLAPPING))];
    for (c, [h, w], pool) in few.into_iter().chain(many).chain(pooled) {
        let twin = |fused: bool| {
            let case = Case::new(format!("{c} {h} {w}"), move |v, cx| {
                let [mut mean, mut var] = running(cx.device(), DType::F32, c)?;
                let then = fused.then_some(Activation::Relu);
                let y = v[0].conv2d_then(then, &v[1], None, [1; 2], [0; 2], cx)?;
                let (y, then) = (if fused { y } else { y.relu(cx)? }, Then { activation: None, pool });
                y.batch_norm2d_then(then, &v[2], &v[3], [&mut mean, &mut var], 0.1, 1e-5, cx)
            });
            let case = case.input("x", [1, h, w, 4], Fill::Uniform).input("w", [c, 1, 1, 4], Fill::Uniform);
            case.param("gamma", [c], Fill::NonZero).param("beta", [c], Fill::Uniform)
        };
        let device = &under.devices[0].1;
        let [fused, apart] = [true, false].map(|fused| run(&twin(fused), device, DType::F32));
        assert_eq!(fused, apart, "{c} {h} {w} {pool:?}");
    }
}

/// A max-pool in batch-norm's passes has the numbers of one by itself, and the same pixels win: in two bytes many are equal.
#[test]
fn max_pools_in_batch_norm() {
    let Some(under) = Under::new() else { return };
    let types = [(DType::F32, 2e-6), (DType::F16, 2e-3), (DType::BF16, 1.6e-2)];
    let thens = [None, Some(Activation::Relu), Some(Activation::Silu), Some(Activation::Gelu)];
    // Channels one by one and by fours; of two shapes one has rows and columns that no window of 2x2 has, or in which it has some.
    let cases = thens.into_iter().zip([3, 4, 8, 5]).flat_map(|(then, c)| types.map(|of| (then, c, of)));
    let shapes = [
        (Then::POOL, [2, 67, 65]),
        (Then::POOL, [1, 64, 34]),
        (Then::OVERLAPPING, [2, 67, 65]),
        (Then::OVERLAPPING, [1, 64, 34]),
        (Then::OVERLAPPING, [1, 1, 2101]),
    ];
    for ((then, c, (dtype, unit)), (window, [n, h, w])) in cases.flat_map(|case| shapes.map(|shape| (case, shape))) {
        let twin = |pool: bool| {
            let case = Case::new(format!("{then:?} {c}"), move |v, cx| {
                let [mut mean, mut var] = running(cx.device(), DType::F32, c)?;
                let with = Then { activation: then, pool: pool.then_some(window) };
                let y = v[0].batch_norm2d_then(with, &v[1], &v[2], [&mut mean, &mut var], 0.1, 1e-5, cx)?;
                if pool { Ok(y) } else { y.max_pool2d(window, cx) }
            });
            let case = case.input("x", [n, h, w, c], Fill::Uniform);
            case.param("gamma", [c], Fill::NonZero).param("beta", [c], Fill::Uniform)
        };
        let apart = run(&twin(false), &under.devices[0].1, dtype);
        for (name, device) in &under.devices {
            let what = format!("{then:?} {window} {h} {w} {c} {dtype} ({name})");
            let fused = run(&twin(true), device, dtype);
            assert_eq!(fused[0], apart[0], "{what}");
            for ((name, got), (_, want)) in fused.iter().zip(&apart).skip(1) {
                let size = want.iter().fold(0f64, |most, v| most.max(v.abs()));
                // A pool by itself rounds what several windows give a pixel.
                let unit = if name == "gx" || window == Then::OVERLAPPING { unit } else { 2e-6 };
                let far = got.iter().zip(want).fold(0f64, |most, (a, b)| most.max((a - b).abs()));
                assert!(far <= unit * size, "{what}: {name} differs by {far}, its largest is {size}");
            }
        }
    }
}

/// A channel that has NaN becomes NaN, and no other: a pool must not pass it over.
#[test]
fn max_pools_in_batch_norm_of_what_is_not_a_number() {
    let Some(under) = Under::new() else { return };
    for (name, device) in &under.devices {
        for window in [Then::POOL, Then::OVERLAPPING] {
            let of = |bad: Option<usize>| {
                let mut x: Vec<f32> = (0..48 * 45 * 3).map(|i| (i * 71 % 97) as f32).collect();
                bad.into_iter().for_each(|at| x[at] = f32::NAN);
                let x = Var::constant(Tensor::from_slice(device, [1, 48, 45, 3], &x).unwrap());
                let [gamma, beta] =
                    [1.0, 0.5].map(|v| Var::constant(Tensor::from_slice(device, [3], &[v as f32; 3]).unwrap()));
                let [mut mean, mut var] = running(device, DType::F32, 3).unwrap();
                let then = Then { activation: Some(Activation::Relu), pool: Some(window) };
                let mut cx = Ctx::train(device);
                let y = x.batch_norm2d_then(then, &gamma, &beta, [&mut mean, &mut var], 0.1, 1e-5, &mut cx).unwrap();
                y.value().to_vec::<f32>().unwrap()
            };
            let (good, bad) = (of(None), of(Some(48 * 45 + 1)));
            for (i, (good, bad)) in good.iter().zip(&bad).enumerate() {
                let same = if i % 3 == 1 { bad.is_nan() } else { good == bad };
                assert!(same, "{window}, element {i}: {bad}, {good} without NaN ({name})");
            }
        }
    }
}

/// Layers that are computed together in training of large images; of few images the max-pool is not.
#[test]
fn blocks_with_a_max_pool() {
    let Some(under) = Under::new() else { return };
    let Device::Cuda(cuda) = under.first() else { panic!("a CUDA device") };
    let layers = r#"layers=["conv 3x3, 8 channels, pad 1", "batch_norm", "silu", "max_pool 2x2",
        "conv 3x3, 8 channels, pad 1", "batch_norm", "max_pool 2x2",
        "conv 3x3, 8 channels, pad 2", "batch_norm", "relu", "max_pool 3x3, stride 2, pad 1",
        "conv 1x1, 4 channels", "batch_norm", "relu", "max_pool 3x3", "flatten", "fc 10"]"#;
    let recipe = recipe("quickstart", &["batch_size=30", layers]);
    let mut trainer = Trainer::new(recipe, shapes::generate(0, 80, 10), under.first()).unwrap();
    let kernels = cuda.profile(|| trainer.bench_steps(1)).unwrap();
    let count = |name: &str| kernels.iter().filter(|t| t.kernel.starts_with(name)).count();
    let pools = ["batch_norm2d_pool", "batch_norm2d_overlap", "max_pool2d"];
    let both = pools.map(|name| [count(&format!("{name}_fwd")), count(&format!("{name}_bwd"))]);
    // The fourth is of few rows, and its max-pool of another size.
    assert_eq!((both, count("silu")), ([[2; 2], [1; 2], [1; 2]], 0));
}

/// A product adds the gradient of its input to one that is there: f32 has the bits of their sum, two bytes round it once.
#[test]
fn gradients_are_added_as_they_are_stored() {
    let Some(under) = Under::new() else { return };
    // `parts`: which of the two products of x there are; and x itself, whose gradient is that of the result.
    let linear = |n: usize, inputs: usize, parts: [bool; 3]| {
        let case = Case::new(format!("linear {n}"), move |v, cx| {
            sum(parts, cx, |i, cx| if i == 2 { Ok(v[0].clone()) } else { v[0].linear(&v[1 + i], None, cx) })
        });
        let w = [inputs, inputs];
        case.input("x", [n, inputs], Fill::Uniform).input("w", w, Fill::Uniform).input("v", w, Fill::Uniform)
    };
    let conv = |x: [usize; 4], k: usize, parts: [bool; 3]| {
        let case = Case::new(format!("conv2d {x:?} {k}"), move |v, cx| {
            sum(parts, cx, |i, cx| match i {
                2 => Ok(v[0].clone()),
                _ => v[0].conv2d(&v[1 + i], None, [1; 2], [k / 2; 2], cx),
            })
        });
        let w = [x[3], k, k, x[3]];
        case.input("x", x, Fill::Uniform).input("w", w, Fill::Uniform).input("v", w, Fill::Uniform)
    };
    let gx = |case: Case, device: &Device, dtype| -> Vec<f32> {
        let (_, gx) = run(&case, device, dtype).swap_remove(1);
        gx.into_iter().map(|g| g as f32).collect()
    };
    // One split and several; the last window is one whose patches are laid out.
    let cases: [&dyn Fn([bool; 3]) -> Case; 4] = [
        &|parts| linear(5, 24, parts),
        &|parts| linear(9, 360, parts),
        &|parts| conv([3, 5, 4, 9], 3, parts),
        &|parts| conv([1, 4, 3, 2], 17, parts),
    ];
    for (case, (name, device)) in cases.iter().flat_map(|case| under.devices.iter().map(move |d| (case, d))) {
        for (dtype, unit) in [(DType::F32, 0.0), (DType::F16, 2f32.powi(-10)), (DType::BF16, 2f32.powi(-7))] {
            let alone = [0, 1].map(|i| gx(case([i == 0, i == 1, false]), device, dtype));
            let gy = gx(case([false, false, true]), device, dtype);
            let close = |what: &str, got: Vec<f32>, terms: [&[f32]; 2]| {
                let want: Vec<f32> = terms[0].iter().zip(terms[1]).map(|(a, b)| a + b).collect();
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let size = terms.iter().map(|t| t[i].abs()).fold(want.abs(), f32::max);
                    let may = unit * size;
                    assert!((got - want).abs() <= may, "{what} {dtype} ({name}), {i}: {got}, not {want}");
                }
            };
            let [both, kept] = [[true, true, false], [true, false, true]].map(case);
            let (both_name, kept_name) = (both.name.clone(), kept.name.clone() + " and x");
            close(&both_name, gx(both, device, dtype), [&alone[0], &alone[1]]);
            close(&kept_name, gx(kept, device, dtype), [&alone[0], &gy]);
        }
    }
}

/// A shortcut of stride 2 adds to a quarter of its input's gradient, which ReLU has masked already or not: the rest stays as it is
/// to be.
#[test]
fn a_shortcut_adds_to_some_of_a_gradient() {
    let Some(under) = Under::new() else { return };
    let window = Window { kernel: [3; 2], stride: [2; 2], pad: [1; 2] };
    let block = |fused: bool, [first, pool]: [usize; 2]| {
        let case = Case::new(format!("conv2d {first} {pool}"), move |v, cx| {
            let relu = fused.then_some(Activation::Relu);
            let y = v[0].conv2d_then(relu, &v[1], None, [1; 2], [1; 2], cx)?;
            let y = if fused { y } else { y.relu(cx)? };
            // The one that comes last adds to the gradient of the other.
            sum([true, true, false], cx, |i, cx| match i == first {
                true => y.conv2d(&v[2], None, window.stride, [0; 2], cx),
                false if pool == 1 => y.avg_pool2d(window, true, cx),
                false => y.conv2d(&v[3], None, window.stride, window.pad, cx),
            })
        });
        let case = case.input("x", [2, 7, 6, 8], Fill::Uniform).input("u", [16, 3, 3, 8], Fill::Uniform);
        case.input("v", [16, 1, 1, 16], Fill::Uniform).input("w", [16, 3, 3, 16], Fill::Uniform)
    };
    let orders = [[0, 0], [1, 0], [0, 1]];
    for (order, (name, device)) in orders.into_iter().flat_map(|o| under.devices.iter().map(move |d| (o, d))) {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let [fused, apart] = [true, false].map(|fused| run(&block(fused, order), device, dtype));
            assert_eq!(fused, apart, "{order:?} {dtype} ({name})");
        }
    }
}

/// The sum of those of three parts that are there.
fn sum(parts: [bool; 3], cx: &mut Ctx<'_>, part: impl Fn(usize, &mut Ctx<'_>) -> Result<Var>) -> Result<Var> {
    let mut sum: Option<Var> = None;
    for i in (0..3).filter(|&i| parts[i]) {
        let next = part(i, cx)?;
        sum = Some(match sum {
            Some(sum) => sum.add(&next, cx)?,
            None => next,
        });
    }
    Ok(sum.unwrap())
}

/// In a network of residual blocks no gradients are added up by a pass of their own.
#[test]
fn residual_blocks_add_no_pass() {
    let Some(under) = Under::new() else { return };
    let Device::Cuda(cuda) = under.first() else { panic!("a CUDA device") };
    let layers = r#"layers=["conv 3x3, 8 channels, stride 4, no bias",
        { residual = ["conv 3x3, 8 channels, pad 1, no bias", "batch_norm", "relu", "conv 3x3, 8 channels, pad 1, no bias",
            "batch_norm"], after = ["relu"] },
        { residual = ["conv 3x3, 16 channels, stride 2, pad 1", "batch_norm"], shortcut = ["conv 1x1, 16 channels, stride 2"] },
        "relu", "flatten", { residual = ["fc 256", "relu"] }, "fc 10"]"#;
    for precision in ["precision=f32", "precision=bf16"] {
        let recipe = recipe("quickstart", &["batch_size=2", layers, precision]);
        let mut trainer = Trainer::new(recipe, shapes::generate(0, 6, 10), under.first()).unwrap();
        let kernels = cuda.profile(|| trainer.bench_steps(1)).unwrap();
        let count = |name: &str| kernels.iter().filter(|t| t.kernel.starts_with(name)).count();
        assert_eq!((count("conv2d_bwd_w"), count("conv2d_bwd_x")), (5, 4), "{precision}");
        assert_eq!(count("tensor_accumulate"), 0, "{precision}");
        // The sum of two, and the ReLU of one, are batch-norm's.
        assert_eq!((count("add_fwd"), count("relu_bwd"), count("relu_fwd")), (1, 1, 1), "{precision}");
    }
}

/// The gradient of a bias in front of a batch-norm is zero, and takes no pass; not so where the batch-norm is frozen, another
/// op takes the same, an activation lies between, or nothing is to be fused.
#[test]
fn biases_before_batch_norm() {
    let (fused, no_fuse) = (CudaOptions::default(), CudaOptions { no_fuse: true, ..CudaOptions::default() });
    let (Some(fused), Some(apart)) = (Under::with(fused), Under::with(no_fuse)) else { return };
    let block = |layers: &[&str]| LayerSpec::residual(layers.iter().map(|&l| l.into()).collect(), vec![], vec![]);
    for (layers, sums) in [
        (vec!["batch_norm".into(), "relu".into()], 0),
        (vec!["batch_norm, frozen".into(), "relu".into()], 1),
        (vec![block(&["batch_norm"])], 1),
        (vec!["relu".into(), "batch_norm".into()], 1),
    ] {
        let mut net: Vec<LayerSpec> = vec!["conv 3x3, 4 channels, pad 1".into()];
        net.extend(layers);
        // The gradients of two passes: what the first one wrote must not be left.
        let pass = |device: &Device, sums: usize| {
            let model = Model::build(&net, [5, 5, 3], device, 0).unwrap();
            let (mut grads, Device::Cuda(cuda)) = (model.params.grads().unwrap(), device) else {
                panic!("a CUDA device")
            };
            let numbers = |c: usize, by: usize| (0..50 * c).map(|i| (i * by % 13) as f32 - 6.0).collect::<Vec<_>>();
            let tensor = |c, by| Tensor::from_slice(device, [2, 5, 5, c], &numbers(c, by)).unwrap();
            for _ in 0..2 {
                let kernels = cuda.profile(|| {
                    let mut cx = model.train(Step::default());
                    let y = model.forward(&Var::constant(tensor(3, 7)), &mut cx)?;
                    cx.backward(&y, tensor(4, 5), Some(&mut grads)).map(|_| ())
                });
                let count = kernels.unwrap().iter().filter(|t| t.kernel.ends_with("_sums<float>")).count();
                assert_eq!(count, sums, "{net:?}");
            }
            grads.of(1).unwrap()
        };
        let apart = pass(apart.first(), 1);
        for (_, device) in &fused.devices {
            let got = pass(device, sums);
            assert_eq!(got.iter().all(|&g| g == 0.0), sums == 0, "{net:?}: {got:?}");
            for (got, want) in got.iter().zip(&apart) {
                assert!((got - want).abs() <= 1e-4, "{net:?}: {got}, apart {want}");
            }
        }
    }
}

/// The gradient of weights that an op has made is read in the same pass: it is not written beside it.
#[test]
fn weights_that_an_op_has_made() {
    let Some(under) = Under::new() else { return };
    let numbers = |len: usize| (0..len).map(|i| (i * 7 % 13) as f32 - 6.0).collect::<Vec<_>>();
    let step = |[x, w, gy]: &[Tensor; 3], gw: &mut Tensor| {
        let mut cx = Ctx::train(x.device());
        let (x, w) = (cx.leaf(x.clone()), cx.leaf(w.clone()));
        let y = x.conv2d(&w.scale(2.0, &mut cx)?, None, [1; 2], [0; 2], &mut cx)?;
        gw.copy_from(cx.backward(&y, gy.clone(), None)?.of(&w).unwrap())
    };
    let tensors = |device: &Device| {
        let of = |shape: [usize; 4]| Tensor::from_slice(device, shape, &numbers(shape.iter().product())).unwrap();
        ([of([2, 5, 5, 3]), of([4, 3, 3, 3]), of([2, 3, 3, 4])], of([4, 3, 3, 3]))
    };
    let (inputs, mut want) = tensors(&Device::cpu());
    step(&inputs, &mut want).unwrap();
    for (name, device) in &under.devices {
        let Device::Cuda(cuda) = device else { panic!("a CUDA device") };
        let (inputs, mut gw) = tensors(device);
        // Nothing has run before, whose results could lie where those of the recording are to come.
        cuda.capture(|| step(&inputs, &mut gw)).unwrap().replay().unwrap();
        assert_eq!(gw.to_vec::<f32>().unwrap(), want.to_vec::<f32>().unwrap(), "{name}");
    }
}

/// So is that of a bias, which the activation behind the layer computes where nothing else of it is trained.
#[test]
fn a_bias_that_an_op_has_made() {
    let Some(under) = Under::new() else { return };
    let numbers = |len: usize| (0..len).map(|i| (i * 7 % 13) as f32 / 8.0 - 0.7).collect::<Vec<_>>();
    let step = |[x, w, b, gy]: &[Tensor; 4], gb: &mut Tensor| {
        let mut cx = Ctx::train(x.device());
        let ([x, w], b) = ([x, w].map(|v| Var::constant(v.clone())), cx.leaf(b.clone()));
        let y = x.linear(&w, Some(&b.scale(2.0, &mut cx)?), &mut cx)?.silu(&mut cx)?;
        gb.copy_from(cx.backward(&y, gy.clone(), None)?.of(&b).unwrap())
    };
    let tensors = |device: &Device| {
        let of = |shape: [usize; 2]| Tensor::from_slice(device, shape, &numbers(shape[0] * shape[1])).unwrap();
        let row = |n: usize| Tensor::from_slice(device, [n], &numbers(n)).unwrap();
        ([of([7, 3]), of([4, 3]), row(4), of([7, 4])], row(4))
    };
    let (inputs, mut want) = tensors(&Device::cpu());
    step(&inputs, &mut want).unwrap();
    for (name, device) in &under.devices {
        let Device::Cuda(cuda) = device else { panic!("a CUDA device") };
        let (inputs, mut gb) = tensors(device);
        cuda.capture(|| step(&inputs, &mut gb)).unwrap().replay().unwrap();
        for (got, want) in gb.to_vec::<f32>().unwrap().iter().zip(want.to_vec::<f32>().unwrap()) {
            assert!((got - want).abs() <= 1e-5, "{got} and {want} ({name})");
        }
    }
}
