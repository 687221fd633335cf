//! Training: the loop, what it reports, what it leaves on disk.
//!
//! [`Trainer`] runs the loop and tells [`Observer`]s what happens: the CSV files are one observer,
//! the progress bar another. [`checkpoint`] saves and loads, [`run`] is the folder of a run.

pub mod checkpoint;
mod csv_log;
mod diagnose;
mod evaluate;
mod events;
mod metrics;
pub mod run;
mod saver;
mod trainer;

pub use checkpoint::Position;
pub use csv_log::CsvLog;
pub use evaluate::{Evaluation, evaluate};
pub use events::{EpochReport, Event, Observer, StepReport};
pub use run::RunDir;
pub use trainer::{Limits, Outcome, Trainer};
