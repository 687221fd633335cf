//! Saving beside training.
//!
//! What is saved is copied to host memory, which is all that a step waits for; a thread turns the copy into files and
//! writes them. So a second copy of the parameters and of the optimizer's state lies in host memory once a run has
//! saved, and the files' contents while it saves. One save is under way at a time: the next one waits for it.

use super::checkpoint::{Contents, MODEL, OPTIMIZER, Position, TRAINED, replace};
use super::state::Numbers;
use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::nn::state::{Array, StateDict};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a checkpoint is made of, as it was at one moment, in host memory.
pub(super) struct State {
    pub(super) numbers: Numbers,
    pub(super) position: Position,
}

/// Where a state is saved: the folder, and whether it is the best network so far, whose checkpoint is for evaluation
/// and has no optimizer state.
pub(super) type Place = (PathBuf, bool);

/// Writes checkpoints on a thread of its own.
pub(super) struct Saver {
    /// Whose pool hands the copy's memory out again for the next copy.
    pub(super) host: Device,
    writing: Option<(JoinHandle<Result<()>>, Vec<Place>)>,
}

impl Saver {
    pub(super) fn new() -> Self {
        Saver { host: Device::cpu(), writing: None }
    }

    /// Begins to save. The save before must have been waited for.
    pub(super) fn start(&mut self, state: State, places: Vec<Place>) -> Result<()> {
        let to = places.clone();
        let thread = std::thread::Builder::new()
            .name("saver".into())
            .spawn(move || write(state, &to))
            .map_err(Error::io("start a thread", "saver".as_ref()))?;
        self.writing = Some((thread, places));
        Ok(())
    }

    /// The places where a state has been saved since the last call: whole and on the disk. With `wait`, what is under
    /// way is waited for, which is added to `waited`.
    pub(super) fn saved(&mut self, wait: bool, waited: &mut Duration) -> Result<Vec<Place>> {
        let Some((thread, places)) = self.writing.take_if(|(thread, _)| wait || thread.is_finished()) else {
            return Ok(Vec::new());
        };
        let start = Instant::now();
        let written = thread.join();
        *waited += start.elapsed();
        match written {
            Ok(written) => written.map(|()| places),
            Err(_) => Err(Error::Internal("the thread that saves panicked".into())),
        }
    }
}

/// Saves a state in each place, in order; what is made of it is made once.
fn write(state: State, places: &[Place]) -> Result<()> {
    let State { numbers: Numbers { model, trained, optimizer }, position } = state;
    let model = Contents::new(MODEL, &model.state_dict()?)?;
    let trained = trained.map(|t| Contents::new(TRAINED, &t.state_dict()?)).transpose()?;
    let array = |(name, b): &(&str, Buffer)| Ok((name.to_string(), Array::f32(&[b.len()], b.host::<f32>()?)));
    let optimizer = Contents::new(OPTIMIZER, &optimizer.iter().map(array).collect::<Result<StateDict>>()?)?;
    let all: Vec<&Contents> = [&model, &optimizer].into_iter().chain(&trained).collect();
    places.iter().try_for_each(|(dir, best)| replace(dir, if *best { &all[..1] } else { &all }, &position))
}
