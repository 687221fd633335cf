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
    crate::Device::emulated(crate::device::cuda::Options::default()).map(drop)
}

#[cfg(tilework_emulator)]
fn trace(args: &TraceArgs, room: &Room, case: &Case, out: &mut Out) -> Result<()> {
    use crate::Device;
    use crate::device::cuda::Options;
    use crate::device::emulator::{self, Follow, TraceOptions};
    use crate::kernels::ENTRIES;
    use crate::ops::parity;
    use std::sync::{Arc, Mutex, PoisonError};

    let of_room = || ENTRIES.iter().filter(|e| e.source.stem == room.name);
    let kernel = match &args.kernel {
        Some(name) => name.clone(),
        None => of_room().next().map_or_else(String::new, |e| e.name.to_string()),
    };
    if !ENTRIES.iter().any(|e| e.name == kernel) {
        let names = of_room().map(|e| e.name).collect::<Vec<_>>().join(", ");
        return Err(Error::config(
            "--kernel",
            format!("there is no kernel `{kernel}`"),
            format!("{} has {names}", room.name),
        ));
    }
    let events = Arc::new(Mutex::new(Vec::new()));
    let follow = Follow { block: args.block, threads: args.threads.clone() };
    let traced = TraceOptions { kernel: kernel.clone(), follow, events: events.clone() };
    let how = emulator::Options { order: args.order, trace: Some(traced), ..emulator::Options::default() };
    let device = Device::emulated_with(Options::default(), how)?;
    // A fault is worth a trace too: the events come first, then the error.
    let outcome = parity::run(case, &device, 1);
    let events = events.lock().unwrap_or_else(PoisonError::into_inner);
    let [x, y, z] = args.block;
    out.print(&format!(
        "{kernel}, case {} ({}), block ({x},{y},{z}), threads {:?}\n",
        args.case, case.name, args.threads
    ))?;
    for event in events.iter() {
        out.print(&format!("{event}\n"))?;
    }
    outcome?;
    if events.is_empty() {
        return Err(Error::config(
            "--block, --threads, --kernel",
            "the case launches no such block and threads of this kernel",
            "choose block 0 and threads 0..1, or another --case (--list shows them)",
        ));
    }
    Ok(())
}
