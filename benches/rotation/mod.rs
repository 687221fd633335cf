//! An op of which every pass has other numbers to read, so that they come from memory.

use std::time::Duration;
use tilework::device::cuda::{Captured, Cuda, Timing};
use tilework::ops::Case;
use tilework::ops::ceiling::Ceiling;
use tilework::{Ctx, DType, Device, Error, Result, Tensor, Var};

/// Runs `f` on a thread of rayon's pool, where the program's own work runs.
pub(crate) fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::join(f, || ()).0
}

pub(crate) fn forward(case: &Case, inputs: &[Tensor], device: &Device) -> Result<Var> {
    let mut cx = Case::ctx(device);
    let vars: Vec<Var> = inputs.iter().map(|t| Var::constant(t.clone())).collect();
    (case.apply)(&vars, &mut cx)
}

pub(crate) fn rate(per_iteration: f64, what: &str, seconds: f64) -> String {
    format!("{:.1} {what}", per_iteration / seconds / 1e9)
}

/// Bytes that the forward pass must move.
pub(crate) fn bytes(inputs: &[Tensor], y: &Tensor) -> usize {
    inputs.iter().chain([y]).map(|t| t.len() * t.dtype().size()).sum()
}

/// An op on a CUDA device, with as many copies of its inputs as it takes to leave the L2 behind.
pub(crate) struct Rotation<'c> {
    case: &'c Case,
    device: Device,
    cuda: Cuda,
    sets: Vec<Vec<Tensor>>,
    tracked: Vec<bool>,
    gy: Tensor,
    pub(crate) bytes: usize,
    /// The forward passes of all sets, and those with the backward passes; `None` for an op that
    /// gets something from the host within the pass and so cannot be recorded.
    recorded: Option<[Captured; 2]>,
}

/// Copies that are made at most: those of the smallest cases stay in the L2, and are bound by their
/// launches anyway.
const MOST_SETS: usize = 512;

impl<'c> Rotation<'c> {
    /// `tracked` says of which inputs, by their numbers, the backward pass finds the gradient.
    pub(crate) fn new(case: &'c Case, dtype: DType, cuda: &Cuda, tracked: impl Fn(usize) -> bool) -> Result<Self> {
        let device = Device::Cuda(cuda.clone());
        let first = case.tensors(&device, dtype, 1)?;
        // Also the warm-up: kernels are compiled, and blocks get into the pool.
        let y = forward(case, &first, &device)?.value().clone();
        let gy = Tensor::from_slice(&device, y.shape(), &vec![0.5f32; y.len()])?.to_dtype(y.dtype())?;
        let bytes = bytes(&first, &y);
        let count = (2 * cuda.info().l2_bytes).div_ceil(bytes).clamp(2, MOST_SETS);
        let copy = |t: &Tensor| -> Result<Tensor> {
            let mut copy = Tensor::empty(&device, t.dtype(), t.shape())?;
            copy.copy_from(t)?;
            Ok(copy)
        };
        let mut sets = vec![first];
        while sets.len() < count {
            sets.push(sets[0].iter().map(copy).collect::<Result<_>>()?);
        }
        let tracked = (0..sets[0].len()).map(tracked).collect();
        let mut rotation = Rotation { case, device, cuda: cuda.clone(), sets, tracked, gy, bytes, recorded: None };
        let mut cx = Case::ctx(&rotation.device);
        let y = (case.apply)(&rotation.vars(&rotation.sets[0], &mut cx), &mut cx)?;
        if rotation.tracked.contains(&true) {
            drop(cx.backward(&y, rotation.gy.clone(), None)?);
        }
        let backward = rotation.tracked.contains(&true);
        if let (Ok(forward), Ok(both)) = (rotation.record(false), rotation.record(backward)) {
            rotation.recorded = Some([forward, both]);
        }
        cuda.sync()?;
        Ok(rotation)
    }

    fn vars(&self, set: &[Tensor], cx: &mut Ctx<'_>) -> Vec<Var> {
        let var = |(t, &tracked): (&Tensor, &bool)| if tracked { cx.leaf(t.clone()) } else { Var::constant(t.clone()) };
        set.iter().zip(&self.tracked).map(var).collect()
    }

    /// Records the forward passes of all sets, tracked as in training, and the backward passes if asked.
    fn record(&self, backward: bool) -> Result<Captured> {
        self.cuda.capture(|| {
            // What is saved and what results is kept to the end, so that each set has its own.
            let (mut kept, mut grads) = (Vec::new(), Vec::new());
            for set in &self.sets {
                let mut cx = Case::ctx(&self.device);
                let y = (self.case.apply)(&self.vars(set, &mut cx), &mut cx)?;
                match backward {
                    true => {
                        grads.push(cx.backward(&y, self.gy.clone(), None)?);
                        kept.push((y, None));
                    }
                    false => kept.push((y, Some(cx))),
                }
            }
            Ok(())
        })
    }

    /// Whether the pass has anything to time: some ops hand their gradient on as it is.
    pub(crate) fn launches(&self, pass: &str) -> bool {
        let Some([forward, both]) = &self.recorded else { return true };
        if pass == "fwd" { forward.launches() > 0 } else { both.launches() > forward.launches() }
    }

    /// The device's time for that many passes.
    pub(crate) fn time(&mut self, pass: &str, iterations: u64) -> Result<Duration> {
        let Some([forward, both]) = &self.recorded else { return self.one_by_one(pass, iterations) };
        let rounds = iterations.div_ceil(self.sets.len() as u64);
        let replays = |graph: &Captured| self.cuda.time(&mut || (0..rounds).try_for_each(|_| graph.replay()));
        let time = match pass {
            "fwd" => replays(forward)?,
            // Backward needs what forward saved: both are run, and forward's time is taken off.
            _ => replays(both)?.saturating_sub(replays(forward)?).max(Duration::from_nanos(iterations)),
        };
        Ok(time.mul_f64(iterations as f64 / (rounds * self.sets.len() as u64) as f64))
    }

    /// The same as the sum of what each kernel takes by itself.
    fn one_by_one(&self, pass: &str, iterations: u64) -> Result<Duration> {
        let sum = |timings: Vec<Timing>| timings.iter().map(|t| t.time).sum::<Duration>();
        let mut cx = Case::ctx(&self.device);
        let vars = self.vars(&self.sets[0], &mut cx);
        let mut y = None;
        let forward = self.cuda.profile(|| {
            y = Some((self.case.apply)(&vars, &mut cx)?);
            Ok(())
        })?;
        let y = y.ok_or_else(|| Error::Internal("a forward pass without a result".into()))?;
        let time = sum(match pass {
            "fwd" => forward,
            _ => self.cuda.profile(|| cx.backward(&y, self.gy.clone(), None).map(drop))?,
        });
        Ok(time.mul_f64(iterations as f64))
    }

    pub(crate) fn numbers(&self, work: f64, seconds: f64, ceiling: Ceiling) -> Vec<String> {
        let with_share = |per_iteration: f64, unit: &str, most: f64| {
            let share = 100.0 * per_iteration / seconds / most;
            format!("{} ({share:.0} % of the ceiling)", rate(per_iteration, unit, seconds))
        };
        let mut numbers = vec![with_share(self.bytes as f64 * work, "GB/s", ceiling.bandwidth)];
        if self.case.flops > 0.0 {
            // In two bytes what has much arithmetic is a product, on tensor cores.
            let most = if self.gy.dtype() == DType::F32 { ceiling.flops } else { ceiling.tensor };
            numbers.push(with_share(self.case.flops * work, "GFLOP/s", most));
        }
        if self.sets.len() * self.bytes < 2 * self.cuda.info().l2_bytes {
            numbers.push("in the L2".into());
        }
        if self.recorded.is_none() {
            numbers.push("each kernel timed by itself".into());
        }
        numbers
    }
}
