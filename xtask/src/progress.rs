//! Progress: spinners on a terminal, plain lines elsewhere. All of it goes to stderr.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use owo_colors::OwoColorize as _;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// Draws the stages of one command.
pub(crate) struct Progress {
    bars: Option<MultiProgress>,
}

impl Progress {
    /// Spinners when stdout and stderr are both terminals.
    pub(crate) fn new() -> Self {
        let terminal = std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        Self { bars: terminal.then(MultiProgress::new) }
    }

    /// Starts a stage called `name`.
    pub(crate) fn stage(&self, name: &str) -> Stage {
        let spinner = self.bars.as_ref().map(|bars| {
            let style = ProgressStyle::with_template("{spinner:.cyan} {prefix:<14} {wide_msg:.dim}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = bars.add(ProgressBar::new_spinner().with_style(style).with_prefix(name.to_owned()));
            bar.enable_steady_tick(Duration::from_millis(100));
            Spinner { bars: bars.clone(), bar }
        });
        Stage { name: name.to_owned(), spinner, start: Instant::now() }
    }

    /// Prints a line on stderr, above the spinners.
    pub(crate) fn warn(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Prints a line on stdout, above the spinners.
    pub(crate) fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| println!("{text}")),
            None => println!("{text}"),
        }
    }
}

/// A stage's line at the bottom of the terminal, gone when this is.
struct Spinner {
    bars: MultiProgress,
    bar: ProgressBar,
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        self.bars.remove(&self.bar);
    }
}

/// One stage: a name, what it does right now, and the time it took.
pub(crate) struct Stage {
    name: String,
    spinner: Option<Spinner>,
    start: Instant,
}

impl Stage {
    /// Says what the stage does right now.
    pub(crate) fn note(&self, text: &str) {
        match &self.spinner {
            Some(spinner) => spinner.bar.set_message(text.to_owned()),
            None => eprintln!("{:<14} {text} ...", self.name),
        }
    }

    /// Shows `text` behind the spinner; says nothing where there is none.
    pub(crate) fn show(&self, text: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.bar.set_message(text.to_owned());
        }
    }

    /// Ends the stage well, with its outcome.
    pub(crate) fn done(self, text: &str) {
        let line = format!("{:<14} {text} ({:.1} s)", self.name, self.start.elapsed().as_secs_f64());
        match &self.spinner {
            Some(spinner) => spinner.bars.suspend(|| eprintln!("{} {line}", "✔".green())),
            None => eprintln!("{line}"),
        }
    }

    /// Ends the stage without a trace.
    pub(crate) fn clear(self) {
        drop(self);
    }
}
