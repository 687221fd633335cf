//! Event files in a run's folder, for `tensorboard --logdir runs`.

use super::events::{Event, Observer};
use super::run::RunDir;
use crate::error::{Error, Result};
use crate::formats::tensorboard;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

const NAME: &str = "events.out.tfevents.";
/// A step of so many is written, the first among them.
const STRIDE: u64 = 50;

/// Writes an event file as a run goes on: `loss/batch` and `lr` of steps 1, 51, 101 and so on, and after each epoch, at
/// its last step, `loss/train`, `accuracy/train`, the same of `val` or else `test`, and `images_per_second`. Accuracies
/// are shares. A record is written as soon as it is made.
#[derive(Debug)]
pub struct TensorBoard {
    path: PathBuf,
    file: File,
    step: u64,
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// The times in the names of a run's event files.
fn times(run: &RunDir) -> Result<Vec<u64>> {
    let entries = std::fs::read_dir(run.path()).map_err(Error::io("read the folder", run.path()))?;
    let time =
        |entry: std::fs::DirEntry| entry.file_name().to_str()?.strip_prefix(NAME)?.split('.').next()?.parse().ok();
    Ok(entries.flatten().filter_map(time).collect())
}

impl TensorBoard {
    /// Whether a run has event files.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn is_kept(run: &RunDir) -> Result<bool> {
        times(run).map(|times| !times.is_empty())
    }

    /// A new event file for a run that has done `steps` steps. What older ones say of later steps is void: the run takes
    /// them again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(run: &RunDir, steps: u64) -> Result<Self> {
        let time = now();
        // TensorBoard reads the files in the order of their names.
        let seconds = times(run)?.into_iter().map(|t| t.saturating_add(1)).fold(time as u64, u64::max);
        let path = run.path().join(format!("{NAME}{seconds:010}.tilework"));
        let file = OpenOptions::new().append(true).create_new(true).open(&path).map_err(Error::io("create", &path))?;
        let mut log = TensorBoard { path, file, step: steps };
        log.write(&tensorboard::start(time, steps + 1))?;
        Ok(log)
    }

    fn write(&mut self, record: &[u8]) -> Result<()> {
        self.file.write_all(record).map_err(Error::io("write", &self.path))
    }
}

impl Observer for TensorBoard {
    fn notice(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Step(s) => {
                self.step = s.step;
                if s.step % STRIDE == 1 {
                    self.write(&tensorboard::scalars(now(), s.step, &[("loss/batch", s.loss), ("lr", s.lr)]))?;
                }
            }
            Event::EpochEnded(e) => {
                let name = e.split.column();
                let values = [
                    ("loss/train", e.train_loss),
                    ("accuracy/train", e.train_accuracy),
                    (&format!("loss/{name}"), e.held_out.loss),
                    (&format!("accuracy/{name}"), e.held_out.accuracy),
                    ("images_per_second", e.images_per_second),
                ];
                self.write(&tensorboard::scalars(now(), self.step, &values))?;
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::tensorboard::tests::events;
    use crate::train::events::StepReport;

    #[test]
    fn a_run_that_goes_on_voids_what_it_does_again() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(dir.path(), "a").unwrap();
        assert!(!TensorBoard::is_kept(&run).unwrap());
        for (done, steps) in [(0, 120), (60, 120)] {
            let mut log = TensorBoard::open(&run, done).unwrap();
            for step in done + 1..=steps {
                let (lr, loss) = (0.5, 1.0 / step as f64);
                let report = StepReport { step, epoch: 1, batch: 1, batches: 500, images: 4, lr, loss, correct: 0 };
                log.notice(&Event::Step(report)).unwrap();
            }
        }
        let mut names: Vec<_> = std::fs::read_dir(run.path()).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        let [first, second] = [0, 1].map(|i| events(&std::fs::read(&names[i]).unwrap()));
        assert_eq!(first.iter().map(|e| e.0).collect::<Vec<_>>(), [0, 1, 1, 51, 101]);
        assert_eq!(second.iter().map(|e| (e.0, e.2)).collect::<Vec<_>>(), [(0, false), (61, true), (101, false)]);
        assert_eq!(second[2].1, [("loss/batch".to_string(), 1.0 / 101.0), ("lr".to_string(), 0.5)]);
        assert!(TensorBoard::is_kept(&run).unwrap());
    }
}
