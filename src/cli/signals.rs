//! Ctrl-C and its relatives: the first finishes the step and saves, the second ends the program.

use super::progress::Lines;
use crate::error::{Error, Result};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The signal that came first: Ctrl-C's unless another is noted.
static SIGNAL: AtomicU8 = AtomicU8::new(2);

/// The exit code of a run that was asked to stop, as shells have it: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
pub(super) fn exit_code() -> u8 {
    128 + SIGNAL.load(Ordering::Relaxed)
}

/// The flag that these signals set. The second time they end the program at once. All runs of a process share it; the
/// latest one's `lines` are where it is said.
pub(super) fn stop_flag(lines: Lines) -> Result<Arc<AtomicBool>> {
    static SHARED: Mutex<Option<(Arc<AtomicBool>, Lines)>> = Mutex::new(None);
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((stop, latest)) = shared.as_mut() {
        *latest = lines;
        return Ok(stop.clone());
    }
    let stop = Arc::new(AtomicBool::new(false));
    *shared = Some((stop.clone(), lines));
    let flag = stop.clone();
    let handler = move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(exit_code()));
        }
        if let Some((_, lines)) = SHARED.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            lines.print("stopping: the step, or evaluation, is ended and all is saved; once more quits at once");
        }
    };
    take_over(|| ctrlc::set_handler(handler).map_err(|e| Error::Internal(format!("signal handler: {e}"))))?;
    Ok(stop)
}

/// Runs `install`, which takes over SIGTERM and SIGHUP too, and has these noted. SIGHUP stays ignored if it was: `nohup`
/// means that the run outlives its terminal.
#[cfg(unix)]
fn take_over(install: impl FnOnce() -> Result<()>) -> Result<()> {
    use nix::sys::signal::{SigHandler, Signal, raise, signal};

    /// Notes the signal, and goes on as after Ctrl-C, whose handler `install` has made.
    extern "C" fn note(number: std::ffi::c_int) {
        SIGNAL.store(number as u8, Ordering::Relaxed);
        // There is no one to tell that it failed.
        let _ = raise(Signal::SIGINT);
    }
    // SAFETY: no handler function is involved, only the dispositions "ignore" and "default".
    let before = unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) };
    install()?;
    let ignored = matches!(before, Ok(SigHandler::SigIgn));
    let hangup = if ignored { SigHandler::SigIgn } else { SigHandler::Handler(note) };
    for (number, handler) in [(Signal::SIGTERM, SigHandler::Handler(note)), (Signal::SIGHUP, hangup)] {
        // SAFETY: `note` does nothing but store to an atomic and raise a signal, which a signal handler may do.
        let _ = unsafe { signal(number, handler) };
    }
    Ok(())
}

#[cfg(not(unix))]
fn take_over(install: impl FnOnce() -> Result<()>) -> Result<()> {
    install()
}
