//! The command `kdetour`: how can a function be detoured? And a program run with detours in it.
//!
//! ```text
//!   args      the command line
//!   subject   from the arguments to the answer about one function
//!   target    the code that is asked about: bytes, or a function of a file
//!   file      the functions of a file, at the addresses where it is taken to be loaded
//!   model     what memory a detour would find: where slots may be, and the detour
//!   question  survey and plan of one target
//!   record    the answer as JSON
//!   anatomy   the answer taken apart: every byte and every instruction with its meaning
//!   listing   the answer as text
//!   advice    what a caller can do about a refusal
//!   inspect   one answer, as text or JSON
//!   draw      one answer, as a picture
//!   scan      the answers about all functions of files, counted
//!   run       a program started with a library in it
//!   asm, hex, markup   disassembly; addresses and bytes as text; text of others
//! ```

mod advice;
mod anatomy;
mod args;
mod asm;
mod draw;
mod file;
mod hex;
mod inspect;
mod listing;
mod markup;
mod model;
mod question;
mod record;
mod run;
mod scan;
mod subject;
mod target;

use anstyle::{AnsiColor, Style};
use anyhow::Result;
use args::{Cli, Command};
use clap::Parser as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

/// How a command ended, unless by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// What was asked for is done; the target is accepted.
    Accepted,
    /// The target is refused.
    Refused,
    /// Something could not be read; the rest is done.
    Partial,
    /// The program that was to be started was not.
    NotStarted,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Accepted => Self::SUCCESS,
            Outcome::Refused => Self::from(2),
            Outcome::Partial => Self::FAILURE,
            Outcome::NotStarted => Self::from(125),
        }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Clap would exit with 2, which means refused here.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    anstream::ColorChoice::from(cli.color).write_global();
    let outcome = run(&cli.command);
    match outcome {
        Ok(outcome) => outcome.into(),
        // Who reads the output has enough of it.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn complain(error: &anyhow::Error) {
    let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
    let _ = writeln!(anstream::stderr(), "{red}error:{red:#} {error:#}");
}

fn run(command: &Command) -> Result<Outcome> {
    kdetour_plan::warm_up();
    match command {
        Command::Inspect(inspect) => inspect::run(inspect),
        Command::Scan(scan) => scan::run(scan),
        Command::Draw(draw) => draw::run(draw),
        Command::Run(run) => {
            // It comes back only with an error: otherwise this is the program now.
            let Err(error) = run::run(run);
            complain(&error);
            Ok(Outcome::NotStarted)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
