//! `tilework trace`: what the threads of a block do, step by step, on the emulated device.

use super::TraceArgs;
use super::output::Out;
use crate::error::{Error, Result};
use crate::ops::{Case, ROOMS, Room};

pub(super) fn run(args: &TraceArgs, out: &mut Out) -> Result<()> {
    let room = ROOMS.iter().find(|r| r.name == args.op).ok_or_else(|| {
        let names = ROOMS.iter().map(|r| r.name).collect::<Vec<_>>().join(", ");
        Error::config(format!("op `{}`", args.op), "there is no op of that name", format!("the ops are {names}"))
    })?;
    let mut cases = (room.cases)();
    if args.list {
        let lines = cases.iter().enumerate().map(|(i, c)| format!("{i:>3}  {}\n", c.name));
        return out.print(&lines.collect::<String>());
    }
    if args.case >= cases.len() {
        return Err(Error::config(
            "--case",
            format!("{} has {} cases", room.name, cases.len()),
            format!("`tilework trace {} --list` shows them", room.name),
        ));
    }
    trace(args, room, &cases.swap_remove(args.case), out)
}

#[cfg(not(tilework_emulator))]
fn trace(_: &TraceArgs, _: &Room, _: &Case, _: &mut Out) -> Result<()> {
    crate::Device::emulated(crate::device::cuda::CudaOptions::default()).map(drop)
}

#[cfg(tilework_emulator)]
fn trace(args: &TraceArgs, room: &Room, case: &Case, out: &mut Out) -> Result<()> {
    use crate::Device;
    use crate::device::cuda::CudaOptions;
    use crate::device::emulator::{self, Follow, TraceOptions, Traced};
    use crate::dtype::DType;
    use crate::kernels;
    use crate::ops::parity;
    use std::sync::{Arc, Mutex, PoisonError};

    // The family's name, or how a kernel's begins: `conv2d_fwd` finds the tile that is launched.
    let kernel = args.kernel.clone().unwrap_or_else(|| room.name.to_string());
    if !kernels::all().any(|k| k.name.starts_with(&kernel)) {
        let names = kernels::all().filter(|k| k.source.stem == room.name).map(|k| k.name).collect::<Vec<_>>();
        let remedy = format!("{} has {}", room.name, names.join(", "));
        return Err(Error::config("--kernel", format!("there is no kernel `{kernel}`"), remedy));
    }
    let traced = Arc::new(Mutex::new(Traced::default()));
    let follow = Follow { block: args.block, threads: args.threads.clone() };
    let how = TraceOptions { kernel: kernel.clone(), follow, traced: traced.clone() };
    let how = emulator::EmulatorOptions { order: args.order, trace: Some(how), ..emulator::EmulatorOptions::default() };
    let device = Device::emulated_with(CudaOptions::default(), how)?;
    let outcome = parity::run(case, &device, DType::F32, 1);
    let traced = traced.lock().unwrap_or_else(PoisonError::into_inner);
    if traced.kernel.is_empty() {
        // A fault before it is worth more than its absence.
        outcome?;
        let problem = format!("case {} ({}) launches no kernel `{kernel}…`", args.case, case.name);
        return Err(Error::config("--kernel", problem, "choose another --case (--list shows them) or another kernel"));
    }
    let [x, y, z] = args.block;
    out.print(&format!("{}, case {} ({}), block ({x},{y},{z})\n", traced.kernel, args.case, case.name))?;
    for event in &traced.events {
        out.print(&format!("{event}\n"))?;
    }
    outcome?;
    if traced.events.is_empty() {
        let problem = format!("the launch of {} has no such block or threads", traced.kernel);
        return Err(Error::config("--block, --threads", problem, "choose a lower block or lower threads"));
    }
    Ok(())
}
