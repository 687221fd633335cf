//! Training: the steps, the run of a recipe, what it reports, what it leaves on disk.
//!
//! [`Engine`] takes steps. [`Trainer`] has it take those of a recipe's run, saves, and tells [`Observer`]s what happens:
//! the CSV files are one observer, the figures and the progress bar others. [`checkpoint`] saves and loads, [`run`] is the folder of
//! a run.

mod apart;
mod average;
pub mod checkpoint;
mod csv_log;
mod diagnose;
mod drawn;
pub mod engine;
mod evaluate;
mod events;
mod history;
pub mod lr_find;
mod measures;
mod metrics;
mod plots;
mod recording;
pub mod run;
mod saver;
mod state;
mod tensorboard;
mod trainer;
mod watch;

pub use checkpoint::Position;
pub use csv_log::CsvLog;
pub use drawn::drawn;
pub use engine::Engine;
pub use evaluate::{Evaluation, Judged, Objective, evaluate, evaluate_views};
pub use events::{EpochReport, Event, Limits, Observer, Outcome, Spent, StepReport};
pub use history::{EpochRow, History, StepRow};
pub use plots::{Plots, Summary, Tested};
pub use run::RunDir;
pub use tensorboard::TensorBoard;
pub use trainer::Trainer;
