//! A run's progress: a bar on a terminal, plain lines elsewhere.

use super::note;
use crate::error::Result;
use crate::figures::sparkline;
use crate::train::{EpochReport, Event, Observer, StepReport};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often the bar is drawn, at most.
const REDRAW: Duration = Duration::from_millis(100);

/// Whether standard error is a terminal on which lines can be redrawn.
pub(super) fn is_terminal() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Prints lines above the bar, from any thread.
#[derive(Clone)]
pub(super) struct Lines(MultiProgress);

impl Lines {
    pub(super) fn print(&self, text: &str) {
        self.0.suspend(|| note(text));
    }
}

/// A curve of any length in little memory: means of stretches that grow with it.
struct Trace {
    means: Vec<f64>,
    /// Values in each mean.
    stretch: u32,
    sum: f64,
    count: u32,
}

impl Trace {
    /// Twice the letters that are shown.
    const MOST: usize = 48;

    fn new() -> Self {
        Trace { means: Vec::new(), stretch: 1, sum: 0.0, count: 0 }
    }

    fn push(&mut self, value: f64) {
        (self.sum, self.count) = (self.sum + value, self.count + 1);
        if self.count < self.stretch {
            return;
        }
        self.means.push(self.sum / f64::from(self.stretch));
        (self.sum, self.count) = (0.0, 0);
        if self.means.len() == Trace::MOST {
            self.means = self.means.chunks(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
            self.stretch = self.stretch.saturating_mul(2);
        }
    }

    fn show(&self) -> String {
        sparkline(&self.means, Trace::MOST / 2)
    }
}

/// Sums over mini-batches.
#[derive(Default)]
struct Sums {
    batches: u64,
    images: usize,
    correct: usize,
    /// Of the mini-batches' means.
    loss: f64,
    seconds: f64,
}

impl Sums {
    fn add(&mut self, s: &StepReport) {
        self.batches += 1;
        self.images += s.images;
        self.correct += s.correct;
        self.loss += s.loss;
    }

    fn show(&self) -> String {
        let mean = |sum: f64, n: f64| sum / n.max(1.0);
        let images = self.images as f64;
        format!(
            "loss {:.4}  accuracy {:>5.1} %  {} images/s",
            mean(self.loss, self.batches as f64),
            100.0 * mean(self.correct as f64, images),
            crate::data::grouped((images / self.seconds.max(1e-9)) as u64),
        )
    }
}

/// Shows a run's progress on standard error.
pub(super) struct Progress {
    lines: Lines,
    bar: Option<ProgressBar>,
    terminal: bool,
    log_every: Option<u64>,
    /// Steps of the whole run.
    total: u64,
    epochs: u32,
    best: Option<f64>,
    /// Whether the last step was its epoch's last: an epoch that a step limit cuts is never the best.
    whole: bool,
    /// Since this epoch began, or this process.
    epoch: Sums,
    /// Since the last line of `--log-every`.
    window: Sums,
    /// Since when the seconds of both sums are not up to date.
    since: Instant,
    /// Steps until the clock is read again, and how many there were last time.
    wait: u32,
    pause: u32,
    drawn: Instant,
    /// Loss by step and test accuracy by epoch, since this process began.
    losses: Trace,
    accuracies: Trace,
    /// The last epoch's report.
    pub(super) last: Option<EpochReport>,
}

impl Progress {
    /// For a run of `total` steps whose best accuracy so far was `best`.
    pub(super) fn new(total: u64, log_every: Option<u64>, best: Option<f64>) -> Self {
        let terminal = is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr_with_hz(20) } else { ProgressDrawTarget::hidden() };
        Progress {
            lines: Lines(MultiProgress::with_draw_target(target)),
            bar: None,
            terminal,
            log_every,
            total,
            epochs: 0,
            best,
            whole: false,
            epoch: Sums::default(),
            window: Sums::default(),
            since: Instant::now(),
            wait: 1,
            pause: 1,
            drawn: Instant::now(),
            losses: Trace::new(),
            accuracies: Trace::new(),
            last: None,
        }
    }

    pub(super) fn lines(&self) -> Lines {
        self.lines.clone()
    }

    /// Takes the bar off the screen.
    pub(super) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            self.lines.0.remove(&bar);
        }
    }

    fn start_bar(&mut self, prefix: String, done: usize, batches: usize) {
        self.clear();
        if !self.terminal {
            return;
        }
        // Narrow, for the numbers to fit beside it.
        let template = if colours() { "{prefix}  {bar:12.cyan}  {msg}" } else { "{prefix}  {bar:12}  {msg}" };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self.lines.0.add(ProgressBar::new(batches as u64).with_style(style.progress_chars("━╸─")));
        bar.set_prefix(prefix);
        bar.set_position(done as u64);
        self.bar = Some(bar);
    }

    /// Brings the seconds of both sums up to date.
    fn tick(&mut self) -> Instant {
        let now = Instant::now();
        let passed = now.duration_since(self.since).as_secs_f64();
        self.since = now;
        self.epoch.seconds += passed;
        self.window.seconds += passed;
        now
    }

    fn step(&mut self, s: &StepReport) {
        self.epoch.add(s);
        if self.terminal {
            self.losses.push(s.loss);
        }
        if let Some(every) = self.log_every {
            self.window.add(s);
            if s.step.is_multiple_of(every) {
                self.tick();
                let text = format!("step {:>7}  epoch {}/{}  {}", s.step, s.epoch, self.epochs, self.window.show());
                self.lines.print(&text);
                self.window = Sums::default();
            }
        }
        if s.batch == s.batches {
            // What follows is evaluation and saving: not training time.
            self.tick();
        }
        self.wait -= 1;
        if self.wait == 0 {
            self.draw(s);
        }
    }

    fn draw(&mut self, s: &StepReport) {
        let before = self.since;
        let now = self.tick();
        // Reading the clock some twenty times a second is enough, however long a step takes.
        let slow = now.duration_since(before) > REDRAW / 2;
        self.pause = if slow { self.pause.div_ceil(2) } else { (self.pause * 2).min(256) };
        self.wait = self.pause;
        let Some(bar) = &self.bar else { return };
        if now.duration_since(self.drawn) < REDRAW {
            return;
        }
        self.drawn = now;
        let each = self.epoch.seconds / self.epoch.batches.max(1) as f64;
        let left = each * self.total.saturating_sub(s.step) as f64;
        bar.set_position(s.batch as u64);
        bar.set_message(format!(
            "{}/{}  {}  {} left\n{}",
            s.batch,
            s.batches,
            self.epoch.show(),
            clock(left),
            self.curves()
        ));
    }

    /// A line with the curves so far.
    fn curves(&self) -> String {
        let accuracy = match &self.last {
            Some(e) => {
                format!("   {} accuracy {} {:.1} %", e.split, self.accuracies.show(), e.held_out.accuracy * 100.0)
            }
            None => String::new(),
        };
        format!("loss {}{accuracy}", self.losses.show())
    }

    fn ended(&mut self, e: &EpochReport) {
        self.clear();
        let best = self.whole && self.best.is_none_or(|b| e.held_out.accuracy > b);
        if best {
            self.best = Some(e.held_out.accuracy);
        }
        self.lines.print(&format!(
            "epoch {:>2}/{}  train loss {:.4}, accuracy {:.2} %  {} loss {:.4}, accuracy {:.2} %  {}, {} images/s{}",
            e.epoch,
            self.epochs,
            e.train_loss,
            e.train_accuracy * 100.0,
            e.split,
            e.held_out.loss,
            e.held_out.accuracy * 100.0,
            seconds(e.seconds),
            crate::data::grouped(e.images_per_second as u64),
            if best { "  best" } else { "" },
        ));
        self.accuracies.push(e.held_out.accuracy);
        self.last = Some(e.clone());
    }
}

/// Seconds, to a hundredth where they are few.
pub(super) fn seconds(seconds: f64) -> String {
    let digits = if seconds < 10.0 { 2 } else { 1 };
    format!("{seconds:.digits$} s")
}

/// Hours, minutes, seconds.
pub(super) fn clock(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        h => format!("{h}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}

impl Observer for Progress {
    fn notice(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Step(s) => {
                self.whole = s.batch == s.batches;
                self.step(s);
            }
            Event::EpochStarted { epoch, epochs, done, batches } => {
                self.epochs = *epochs;
                self.epoch = Sums::default();
                self.since = Instant::now();
                self.start_bar(format!("epoch {epoch:>2}/{epochs}"), *done, *batches);
            }
            Event::Evaluating { done, total } => {
                if let Some(bar) = &self.bar
                    && self.drawn.elapsed() > REDRAW
                {
                    self.drawn = Instant::now();
                    bar.set_message(format!("evaluating: {done} of {total} images\n{}", self.curves()));
                }
            }
            Event::EpochEnded(e) => self.ended(e),
            Event::Saving { .. } | Event::Saved { .. } => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        assert_eq!([0.4, 59.6, 754.0, 3661.0].map(clock), ["0:00", "1:00", "12:34", "1:01:01"]);
    }

    #[test]
    fn curves_of_any_length_stay_short() {
        let mut t = Trace::new();
        (0..100_000).for_each(|i| t.push(f64::from(i)));
        let shown = t.show();
        assert!(t.means.len() < Trace::MOST && t.means.is_sorted(), "{:?}", t.means);
        assert!(shown.starts_with('▁') && shown.ends_with('█') && shown.chars().count() <= 24, "{shown}");
    }

    #[test]
    fn the_clock_is_read_rarely_when_steps_are_fast() {
        let mut p = Progress::new(10_000, None, None);
        let s = StepReport { step: 1, epoch: 1, batch: 1, batches: 10_000, images: 4, lr: 0.1, loss: 1.0, correct: 1 };
        for batch in 1..=5000 {
            p.step(&StepReport { batch, step: batch as u64, ..s });
        }
        assert_eq!((p.pause, p.epoch.batches, p.epoch.images), (256, 5000, 20_000));
    }
}
