//! The command line.

use crate::hex;
use crate::model::Host;
use clap::{Args, Parser, Subcommand, ValueEnum};
use kdetour_plan::{Mode, Options, Returns, Shape, Shapes, Traps};
use std::ffi::OsString;
use std::path::PathBuf;

/// How can a function be detoured? Asks kdetour's planner about functions in files and about bytes, without running or
/// changing anything.
#[derive(Debug, Parser)]
#[command(name = "kdetour", version, max_term_width = 110)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// When to write in colours: auto is on a terminal, unless NO_COLOR is set.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub(crate) color: Color,
}

/// When to write in colours.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl From<Color> for anstream::ColorChoice {
    fn from(color: Color) -> Self {
        match color {
            Color::Auto => Self::Auto,
            Color::Always => Self::Always,
            Color::Never => Self::Never,
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows the detour of one function: bytes before and after, the slot, and why this shape.
    ///
    /// Exit code 0 if the function is accepted, 2 if it is refused, 1 if there is an error.
    Inspect(Inspect),
    /// Draws the detour of one function as an SVG picture.
    ///
    /// Exit code 0 if it is drawn, 2 if the function is refused (nothing is written then), 1 if there is an error.
    Draw(Draw),
    /// Counts what is accepted and refused among all functions of files.
    ///
    /// Exit code 0 if every file was read, whatever is refused in it; else 1.
    Scan(Scan),
    /// Starts a program with libraries of yours in it, loaded before it runs, by its own loader.
    ///
    /// The libraries' constructors are the place to attach detours. The programs that it starts inherit them. Exit code: the
    /// program's; 125 if it was not started.
    Run(Run),
}

/// `kdetour run`
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// A shared object to load; more than one, in this order, if it is given again.
    #[arg(long, required = true, value_name = "LIB.so")]
    pub(crate) with: Vec<PathBuf>,
    /// The program, looked for in PATH unless it is a path; a script is run by its interpreter.
    #[arg(required = true, value_name = "PROGRAM")]
    pub(crate) program: OsString,
    /// Its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub(crate) arguments: Vec<OsString>,
}

/// `kdetour inspect`
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `kdetour draw`
#[derive(Debug, Args)]
pub(crate) struct Draw {
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// The picture to write; - is standard output.
    #[arg(short, long, value_name = "SVG")]
    pub(crate) output: PathBuf,
}

/// `kdetour scan`
#[derive(Debug, Args)]
pub(crate) struct Scan {
    /// ELF and PE files, vmlinux, vmlinuz.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Print one JSON object, {"files": [...]}.
    #[arg(long)]
    pub(crate) json: bool,
    /// Write a page with bars, in one file.
    #[arg(long, value_name = "OUT")]
    pub(crate) html: Option<PathBuf>,
    /// Write the object of `inspect --json` for every function, one a line; - is standard output.
    #[arg(long, value_name = "OUT")]
    pub(crate) plans: Option<PathBuf>,
    /// List every refused function with the reason.
    #[arg(long)]
    pub(crate) refused: bool,
    /// Look at the first N functions of each file only.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Threads; as many as there are processors, unless given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) jobs: Option<u16>,
    #[command(flatten)]
    pub(crate) reading: Reading,
    #[command(flatten)]
    pub(crate) choices: Choices,
}

/// Which function, and which detour of it.
#[derive(Debug, Args)]
pub(crate) struct Asked {
    #[command(flatten)]
    pub(crate) subject: Subject,
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(flatten)]
    pub(crate) choices: Choices,
}

/// Which function.
#[derive(Debug, Args)]
pub(crate) struct Subject {
    /// An ELF or PE file, a vmlinux or a vmlinuz.
    #[arg(required_unless_present = "bytes", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// The function's name, or its address as 0x401000.
    #[arg(required_unless_present = "bytes", value_name = "SYMBOL|0xADDRESS")]
    pub(crate) symbol: Option<String>,
    #[command(flatten)]
    pub(crate) reading: Reading,
    #[command(flatten)]
    pub(crate) raw: Raw,
}

/// How files are read.
#[derive(Debug, Args)]
pub(crate) struct Reading {
    /// The symbols of a kernel image, as /proc/kallsyms has them; else the image's own are used.
    #[arg(long, value_name = "FILE")]
    pub(crate) kallsyms: Option<PathBuf>,
    /// Where the file is taken to be loaded, if it can be loaded anywhere [default: 0x7f0000000000; 32-bit
    /// 0xf7000000]; programs and kernels that have a place of their own stay there.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(crate) base: Option<u64>,
}

/// Code given as bytes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Bytes instead of a file")]
pub(crate) struct Raw {
    /// The function's code, from the entry on: "55 48 89 e5" or 554889e5.
    #[arg(long, value_name = "HEX", conflicts_with_all = ["file", "symbol"])]
    pub(crate) bytes: Option<String>,
    /// 32 or 64-bit code [default: 64].
    #[arg(long, value_name = "32|64", value_parser = mode)]
    pub(crate) mode: Option<Mode>,
    /// Where the entry is [default: 0x401000].
    #[arg(long, value_name = "A", value_parser = address)]
    pub(crate) address: Option<u64>,
    /// How long the function is. Unless given it is not known: what follows it is then not proven to be padding.
    #[arg(long, value_name = "N", value_parser = length)]
    pub(crate) length: Option<usize>,
    /// Where the next symbol starts: from the function's end to there may be padding.
    #[arg(long, value_name = "A", value_parser = address)]
    pub(crate) next: Option<u64>,
    /// The function's own ftrace site: the window is put behind it.
    #[arg(long, value_name = "A", value_parser = address)]
    pub(crate) fentry: Option<u64>,
    /// The bytes from the end of the function before up to the entry: a cave may be there.
    #[arg(long, value_name = "HEX")]
    pub(crate) before: Option<String>,
    /// Nothing runs through the bytes of --before: they are there to be patched.
    #[arg(long)]
    pub(crate) dead: bool,
}

/// Where slot and detour are.
#[derive(Debug, Args)]
#[command(next_help_heading = "Slot and detour")]
pub(crate) struct Place {
    /// The slot: the plan takes the best shape that this very address allows. Unless given, a model of the host's
    /// allocator finds one for the best shape.
    #[arg(long, value_name = "S", value_parser = address)]
    pub(crate) slot: Option<u64>,
    /// The detour [default: the model's: process 0x555555550000, 32-bit 0x56555000; kernel: a module's text].
    #[arg(long, value_name = "D", value_parser = address)]
    pub(crate) detour: Option<u64>,
}

/// What a plan may do.
#[derive(Debug, Args)]
#[command(next_help_heading = "Choices")]
pub(crate) struct Choices {
    /// Take only these shapes: WholeInstruction, Jump5Kept, Jump5Trapped, ShortJump, Jump5, Jump14, Breakpoint.
    #[arg(long, value_name = "NAME", num_args = 1, value_delimiter = ',', value_parser = shape)]
    pub(crate) shape: Vec<Shape>,
    /// Whose memory the target is in [default: kernel for kernel images and addresses, else process].
    #[arg(long, value_enum)]
    pub(crate) host: Option<Host>,
    /// What the callee of a displaced call sees as its return address.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) returns: ReturnsArg,
    /// Which bytes trap in a Jump5Trapped: int3 alone, or also opcodes that are invalid in 64-bit code.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) traps: TrapsArg,
    /// Accept functions that branch back to their own start, though each such branch enters the detour again.
    #[arg(long)]
    pub(crate) reentry: bool,
    /// Prefer a patch that changes one byte, as detours of a process do.
    #[arg(long)]
    pub(crate) one_byte: bool,
    /// Begin trampolines with ENDBR.
    #[arg(long)]
    pub(crate) landing_pad: bool,
}

/// `--returns`
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum ReturnsArg {
    /// The original one.
    #[default]
    Original,
    /// An address in the slot.
    Slot,
}

/// `--traps`
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum TrapsArg {
    /// `int3`.
    #[default]
    Int3,
    /// Also invalid opcodes.
    Invalid,
}

impl Raw {
    /// The first option that makes sense with bytes only and is given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let options = [
            ("--mode", self.mode.is_some()),
            ("--address", self.address.is_some()),
            ("--length", self.length.is_some()),
            ("--next", self.next.is_some()),
            ("--fentry", self.fentry.is_some()),
            ("--before", self.before.is_some()),
            ("--dead", self.dead),
        ];
        options.into_iter().find(|option| option.1).map(|option| option.0)
    }
}

impl Choices {
    /// The options, where the host commits these shapes.
    pub(crate) fn options(&self, host: Host) -> Options {
        let asked = self.shape.iter().fold(Shapes::NONE, |shapes, &shape| shapes.with(shape));
        Options {
            landing_pad: self.landing_pad,
            // Who names shapes wants to know about them, whatever the host.
            shapes: if self.shape.is_empty() { host.shapes() } else { asked },
            returns: match self.returns {
                ReturnsArg::Original => Returns::Original,
                ReturnsArg::Slot => Returns::Slot,
            },
            traps: match self.traps {
                TrapsArg::Int3 => Traps::Int3,
                TrapsArg::Invalid => Traps::Invalid,
            },
            reentry: self.reentry,
            one_byte: self.one_byte,
            roomy: false,
        }
    }
}

fn address(text: &str) -> Result<u64, String> {
    hex::address(text).map_err(|error| error.to_string())
}

fn length(text: &str) -> Result<usize, String> {
    let number = hex::address(text).ok().and_then(|length| usize::try_from(length).ok());
    number.ok_or_else(|| format!("{text:?} is no number of bytes: write 32 or 0x20"))
}

fn mode(text: &str) -> Result<Mode, String> {
    match text {
        "64" => Ok(Mode::Bits64),
        "32" => Ok(Mode::Bits32),
        _ => Err("there are the modes 32 and 64".to_owned()),
    }
}

fn shape(text: &str) -> Result<Shape, String> {
    let found = Shape::ALL.into_iter().find(|shape| shape.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| {
        let names = Shape::ALL.map(Shape::name).join(", ");
        format!("there is no such shape; there are {names}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn shapes_are_read_whatever_their_case() {
        for known in Shape::ALL {
            assert_eq!(shape(known.name()), Ok(known));
            assert_eq!(shape(&known.name().to_lowercase()), Ok(known));
        }
        assert!(shape("Jump6").is_err());
    }
}
