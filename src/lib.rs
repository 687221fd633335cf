//! Tilework trains convolutional networks: tensors, reverse-mode differentiation, hand-written
//! operations, optimizers, and a program that trains from recipes. The README says how to use the
//! program; this page follows one training step from call to kernel, and names the types and files
//! in the order in which to read them.
//!
//! # A few steps of a small network
//!
//! ```
//! use tilework::data::{loader::Loader, shapes};
//! use tilework::step::{Rate, Step};
//! use tilework::nn::{Model, layer};
//! use tilework::optim::{Optimizer, Sgd};
//! use tilework::{Ctx, Device, Var};
//!
//! let device = Device::cpu();
//! let net = ["max_pool 4", "conv 3x3, 8 channels", "relu", "flatten", "fc 10"].map(layer);
//! let net = net.into_iter().collect::<Result<Vec<_>, _>>()?;
//! let mut model = Model::new(net, [32, 32, 3], &device, 0)?;
//! let mut grads = model.params.grads()?;
//! let mut optimizer = Sgd::new(&model.params, true, false)?;
//!
//! let images = shapes::generate(0, 64, 1).train;
//! let loader = Loader::new(images.into(), 64, &[0.5; 3], &[0.25; 3], &device)?;
//! let batch = loader.feed(false).batch(&Step::default())?;
//!
//! let mut losses = Vec::new();
//! for step in 0..20 {
//!     let now = Step { step, ..Step::default() }.rate(Rate { lr: 0.05, momentum: 0.9, decay: 0.0 });
//!     let mut cx = model.train(now);
//!     let x = Var::constant(batch.images.clone());
//!     let scores = model.forward(&x, &mut cx)?;
//!     let loss = scores.cross_entropy(&batch.labels, 0.0, &mut cx)?;
//!     losses.push(loss.value().item()?);
//!     cx.backward_loss(&loss, Some(&mut grads))?;
//!     optimizer.step(&mut model.params, &grads)?;
//! }
//! assert!(losses[19] < losses[0]);
//! # Ok::<(), tilework::Error>(())
//! ```
//!
//! # Before the step: a network from text
//!
//! A [`recipes::Recipe`] lists layers as phrases (`src/nn/spec.rs`). The table [`nn::LAYERS`] says
//! which [`Layer`](nn::Layer) reads a phrase; each has a room in `src/nn/layers/`. A
//! [`Builder`](nn::Builder) (`src/nn/builder.rs`) walks through them with the image's size in hand,
//! lets each infer the next size, and reports the first layer that does not fit with a table of all
//! before it. The [`Model`](nn::Model) that comes out has the layers, their
//! [`Params`](params::Params) (all trainable numbers in one flat arena, drawn from the seed) and
//! their [`Buffers`](params::Buffers), the running statistics.
//!
//! # 1. The loop asks for a step
//!
//! [`train::Trainer`] (`src/train/trainer.rs`) knows where a run stands. For each batch it fills a
//! [`Step`](step::Step): seed, epoch, step, learning rate, place of the batch. That is all that differs
//! from step to step. [`train::Engine`] (`src/train/engine.rs`), which holds the model, the arena of
//! gradients, the optimizer and a [`Feed`](data::loader::Feed) of batches, takes the step; the feed's
//! thread normalises the next images meanwhile. The trainer itself prints and writes nothing but
//! checkpoints: it tells [`Observer`](train::Observer)s what happened, and the progress bar and
//! [`train::CsvLog`] are two.
//!
//! # 2. Forward: from layers to operations
//!
//! The trainer makes a [`Ctx`] (`src/autograd.rs`): a tape, training mode, the parameters, the step.
//! There are no globals. A layer fetches its parameters as [`Var`]s with [`Ctx::param`] and calls one
//! method, as in `x.conv2d(&w, b, stride, pad, cx)`.
//!
//! # 3. From an operation to its kernel
//!
//! That method is at the top of the operation's *room*, one file of [`ops`] (`src/ops/relu.rs` is the
//! shortest, `src/ops/max_pool2d.rs` a typical one, `src/ops/conv2d/` the longest). It checks the
//! shapes and calls `forward`, which asks the [`Device`] for an output, matches on the device, turns
//! the [`DType`] into a Rust type and calls the kernel in the room's module `cpu`: plain slices in,
//! plain slices out. Four hops: layer, method, forward, kernel.
//!
//! The kernels share a few loops of [`device::cpu`]:
//! [`for_rows`](device::cpu::for_rows), [`for_pieces`](device::cpu::for_pieces) and
//! [`map_reduce`](device::cpu::map_reduce) (`parallel.rs`) cut work by the problem's sizes and never
//! by the number of threads, so the bits do not depend on it; the macro `vectorised!` (`simd.rs`)
//! compiles a loop again for the vector instructions that are found at run time;
//! [`gemm`](device::cpu::gemm) (`gemm.rs`) is the matrix product.
//!
//! On a CUDA device the same match leads to the room's module `cuda` and from there to a kernel of
//! the file with the room's name in `kernels/`, through a function of [`kernels`] that `build.rs` made
//! from the kernel's signature: [`In`](device::cuda::In) for what it reads,
//! [`Out`](device::cuda::Out) for what it writes, a struct for its sizes. [`device::cuda::Cuda`]
//! (`src/device/cuda/mod.rs`) hands the launch to a [`Driver`](device::cuda::Driver): a GPU
//! (`gpu.rs`, with kernels compiled by `nvrtc.rs`), or the emulated device (`src/device/emulator/`),
//! which runs the same kernel on the processor.
//!
//! # 4. What is remembered
//!
//! The method ends in `Ctx::record`. If an input is tracked, a node goes onto the tape: a struct that
//! implements [`Backward`](autograd::Backward) and holds exactly what the gradient needs (ReLU its
//! output, max-pool the places of the maxima, dropout only the position in the random stream).
//! Otherwise nothing is made and nothing is saved: inference is the same code.
//!
//! # 5. Backward
//!
//! [`Ctx::backward_loss`] goes over the tape once, from its end: nodes were appended in the order of
//! computation, so that order is topological. Each node turns the gradient of its output into those
//! of its inputs. [`Grads::slot`](autograd::Grads::slot) hands it the place where a parameter's
//! gradient belongs, inside the arena, and says whether to overwrite or to add; no gradient is
//! zeroed beforehand or copied afterwards. Nodes, and with them the saved tensors, are dropped as the
//! loop passes them.
//!
//! # 6. The update
//!
//! An [`Optimizer`](optim::Optimizer) (`src/optim/`) walks over two or three arenas in step: values,
//! gradients, its own state. It may write the values because the pass is over: a [`Tensor`] is shared
//! memory ([`Arc`](std::sync::Arc)), and only an owner without company may write. On a GPU a recorded
//! step does it in parts: those of the last layers, half a million parameters or more, go back in the
//! recording to the point where the backward pass has left their layers.
//!
//! # 7. The memory goes back
//!
//! Dropping a tensor returns its [`Buffer`](device::Buffer) to the device's pool
//! (`src/device/mod.rs`, `src/device/cpu/mod.rs`), which serves requests of exactly that size. A step
//! asks for the same sizes each time, so nothing is allocated after the second one. In debug builds
//! a buffer comes filled with NaN, so that an element that an operation forgets shows.
//!
//! # The whole step at once
//!
//! On a CUDA device the loop does not go through all this every time. Nothing in a step depends on
//! the step but the [`Step`](step::Step), and kernels read that from the device's
//! memory; the data set is there too, and one kernel makes the batch. So after two steps the engine
//! lets [`Cuda::capture`](device::cuda::Cuda::capture) record one, and from then on replays it: one
//! call instead of a hundred launches. Loss and accuracy stay in a ring on the device
//! (`src/train/metrics.rs`) until 64 steps of them are fetched at once.
//!
//! # Around the step
//!
//! - Randomness ([`rng`]): Philox, a function of (seed, epoch, step, stream, index). Dropout
//!   recomputes its mask in the backward pass; a resumed run draws what it would have drawn.
//! - Checkpoints ([`train::checkpoint`]) hold the state dict ([`nn::state`]) by PyTorch's names and
//!   in PyTorch's layouts, the optimizer's arenas, and the [`Position`](train::Position). A thread
//!   writes them while training goes on.
//! - Data sets ([`data`]): CIFAR in its official forms, and `shapes`, which is generated.
//! - The program ([`cli`]): one file per subcommand. It is a feature of that name, which a library's
//!   user turns off with `default-features = false`.
//! - Errors ([`Error`]): what was wrong, where, and what to do about it.

pub mod autograd;
#[cfg(feature = "cli")]
pub mod cli;
pub mod data;
pub mod device;
pub mod dtype;
pub mod error;
pub mod figures;
mod formats;
pub mod kernels;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod params;
pub mod recipes;
pub mod rng;
pub mod shape;
pub mod step;
pub mod tensor;
pub mod train;

pub use autograd::{Ctx, Var};
pub use device::Device;
pub use dtype::DType;
pub use error::{Error, Result};
pub use shape::Shape;
pub use tensor::Tensor;
