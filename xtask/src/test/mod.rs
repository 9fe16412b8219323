//! `cargo xtask test`: named suites, first cargo's own, then scripts in guests.

mod c;
mod dist;
mod drivers;
mod engine;
mod header;
mod i686;
mod libtest;
mod ran;
mod suite;
mod verdict;
mod windows;
mod windows_c;
mod windows_stress;

use crate::cross::Processor;
use crate::guest::{Accel, Guest};
use crate::kernel::{Kernel, Series};
use crate::packages::{self, Need};
use crate::progress::Progress;
use crate::shell::{self, Step};
use crate::workspace::Workspace;
use crate::{module::Modules, setup};
use anyhow::{Context as _, Result, bail};
use header::Header;
use ran::Ran;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::Instant;
use suite::{Extent, Kind, Suite};
use verdict::Lines;

/// How many guests run at once when each takes one host thread.
const GUESTS_AT_ONCE: usize = 2;

/// Runs the suites for work, in guests on the newest kernel only; `--all` what has to hold before a change lands; `--only` picks some.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Runs every suite on every kernel: about an hour on two cores.
    #[arg(long)]
    all: bool,
    /// Runs the long suites too, and the others in a longer form: hours.
    #[arg(long)]
    long: bool,
    /// Runs only suites whose name is or starts with this, long ones by their whole name; may be given more than once.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Lists the suites and runs none.
    #[arg(long)]
    list: bool,
    /// How QEMU executes guests.
    #[arg(long, value_enum, default_value = "auto")]
    accel: Accel,
    /// Debian's kernel flavour.
    #[arg(long, default_value = "cloud-amd64")]
    flavour: String,
}

/// Counts what passed and shows each result.
struct Tally<'a> {
    progress: &'a Progress,
    counts: Mutex<(usize, usize)>,
}

impl Tally<'_> {
    fn add(&self, name: &str, start: Instant, result: &Result<String>) {
        let seconds = start.elapsed().as_secs_f64();
        let mut counts = match self.counts.lock() {
            Ok(counts) => counts,
            Err(poisoned) => poisoned.into_inner(),
        };
        match result {
            Ok(note) => {
                counts.0 += 1;
                self.progress.line(format!("ok     {name:<28} {seconds:6.1} s  {note}").trim_end());
            }
            Err(why) => {
                counts.1 += 1;
                self.progress.line(&format!("FAILED {name:<28} {seconds:6.1} s"));
                self.progress.line(&shell::indent(&format!("{why:#}")));
            }
        }
    }
}

/// Runs the command.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let mut suites = suite::all(workspace, arguments.long)?;
    let extent = match arguments {
        Arguments { long: true, .. } => Extent::Long,
        Arguments { all, only, .. } if *all || !only.is_empty() => Extent::All,
        Arguments { .. } => Extent::Short,
    };
    // A full name means that suite, even where it begins another one's.
    let full: Vec<String> = suites.iter().map(|suite| suite.name.clone()).collect();
    let only = &arguments.only;
    suites.retain(|Suite { name, extent: wanted, .. }| {
        let begins = only.iter().any(|only| !full.contains(only) && name.starts_with(only.as_str()));
        only.contains(name) || *wanted <= extent && (only.is_empty() || begins)
    });
    if suites.is_empty() {
        bail!("no suite is called {}: see `cargo xtask test --list`", arguments.only.join(" or "));
    }
    if arguments.list {
        suites.iter().for_each(|suite| println!("{}", suite.name));
        return Ok(ExitCode::SUCCESS);
    }
    let progress = Progress::new();
    let tally = Tally { progress: &progress, counts: Mutex::new((0, 0)) };
    let mut guests = Vec::new();
    let mut built = Vec::new();
    for suite in suites {
        match suite.kind {
            Kind::Cargo { ref calls, environment, needs } => {
                let start = Instant::now();
                let stage = progress.stage(&suite.name);
                let needs: Vec<Need> =
                    needs.iter().map(|&(package, file)| Need::new(package, file)).collect();
                let result = packages::ensure(workspace, &stage, &needs)
                    .and_then(|()| cargo(workspace, &suite.name, calls, environment));
                stage.clear();
                tally.add(&suite.name, start, &result.map(|()| String::new()));
            }
            Kind::Engine(proof) => {
                let start = Instant::now();
                let kernels = || setup::kernels(workspace, &progress, &Series::ORDINARY, &arguments.flavour);
                let result = proof.run(workspace, &progress, arguments.long, kernels);
                tally.add(&suite.name, start, &result);
            }
            Kind::C => {
                let start = Instant::now();
                tally.add(&suite.name, start, &c::check(workspace, &progress, Processor::X86_64));
            }
            Kind::I686 => {
                let start = Instant::now();
                tally.add(&suite.name, start, &i686::check(workspace, &progress, arguments.long));
            }
            Kind::Windows(target, part) => {
                let start = Instant::now();
                tally.add(&suite.name, start, &windows::check(workspace, &progress, target, part));
            }
            Kind::WindowsStress(target) => {
                let start = Instant::now();
                let result = windows_stress::check(workspace, &progress, target, arguments.long);
                tally.add(&suite.name, start, &result);
            }
            Kind::WindowsC(target) => {
                let start = Instant::now();
                tally.add(&suite.name, start, &windows_c::check(workspace, &progress, target));
            }
            Kind::WindowsDrivers => {
                let start = Instant::now();
                tally.add(&suite.name, start, &drivers::check(workspace, &progress));
            }
            Kind::Dist => {
                let start = Instant::now();
                let result = setup::kernels(workspace, &progress, &Series::ORDINARY, &arguments.flavour)
                    .and_then(|kernels| dist::check(workspace, &progress, &kernels));
                tally.add(&suite.name, start, &result.map(|modules| built = modules).map(|()| String::new()));
            }
            Kind::Guest { series, script, header } => {
                guests.push(GuestSuite { name: suite.name, series, script, header })
            }
        }
    }
    // The longest first, so that none of them runs alone at the end.
    guests.sort_by_key(|suite| std::cmp::Reverse(suite.header.timeout));
    if !guests.is_empty() {
        let ran = run_guests(workspace, arguments, &tally, guests, built);
        let list = ran::list(&ran);
        list.lines().for_each(|line| progress.line(line));
        shell::write_if_changed(&workspace.out.join("kernels.txt"), list.as_bytes())?;
    }
    let (passed, failed) = match tally.counts.into_inner() {
        Ok(counts) => counts,
        Err(poisoned) => poisoned.into_inner(),
    };
    progress.line(&format!("{passed} passed, {failed} failed"));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cargo(
    workspace: &Workspace,
    name: &str,
    calls: &[Vec<&'static str>],
    environment: Option<(&str, &str)>,
) -> Result<()> {
    for (number, call) in calls.iter().enumerate() {
        let mut cargo = Command::new("cargo");
        shell::leave_cargo_run(&mut cargo);
        cargo.current_dir(&workspace.root).args(call).envs(environment);
        Step {
            what: &format!("pass the suite {name}"),
            log: workspace.log(&format!("suite-{name}-{number}")),
            advice: &format!("run `cargo {}` in the repository", call.join(" ")),
        }
        .run(&mut cargo)?;
    }
    Ok(())
}

/// A script and the guest that it wants.
struct GuestSuite {
    name: String,
    series: Series,
    script: std::path::PathBuf,
    header: Header,
}

/// A kernel with its modules, for the suites of one series.
struct Ready {
    series: Series,
    kernel: Kernel,
    modules: Modules,
    /// Those built from the archive, for the suites that want them, or why there are none.
    dist: Option<Result<Vec<PathBuf>, String>>,
    accel: Accel,
}

fn run_guests(
    workspace: &Workspace,
    arguments: &Arguments,
    tally: &Tally<'_>,
    guests: Vec<GuestSuite>,
    built: Vec<dist::Built>,
) -> Vec<Ran> {
    let progress = tally.progress;
    let start = Instant::now();
    let ready = match prepare(workspace, arguments, progress, &guests, &built) {
        Ok(ready) => ready,
        Err(why) => {
            tally.add("kernel-setup", start, &Err(why));
            guests.iter().for_each(|suite| {
                tally.add(&suite.name, Instant::now(), &Err(anyhow::anyhow!("kernel-setup failed")));
            });
            return Vec::new();
        }
    };
    let single = ready.iter().all(|ready| ready.accel == Accel::Tcg);
    let queue = Mutex::new(guests.into_iter());
    let ran = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..if single { GUESTS_AT_ONCE } else { 1 } {
            scope.spawn(|| {
                while let Some(suite) = queue.lock().ok().and_then(|mut queue| queue.next()) {
                    let start = Instant::now();
                    let Some(ready) = ready.iter().find(|ready| ready.series == suite.series) else {
                        tally.add(&suite.name, start, &Err(anyhow::anyhow!("its kernel was not prepared")));
                        continue;
                    };
                    let mut uname = None;
                    let result = guest(workspace, arguments, progress, ready, &suite, &mut uname);
                    let passed = result.as_ref().ok().copied();
                    tally.add(&suite.name, start, &result.map(|passed| format!("{passed} checks")));
                    let one = Ran {
                        release: ready.kernel.release.clone(),
                        uname,
                        append: suite.header.append.clone(),
                        accel: accel(workspace, ready, &suite.header).name(),
                        seconds: start.elapsed().as_secs_f64(),
                        passed,
                        suite: suite.name,
                    };
                    if let Ok(mut ran) = ran.lock() {
                        ran.push(one);
                    }
                }
            });
        }
    });
    ran.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn prepare(
    workspace: &Workspace,
    arguments: &Arguments,
    progress: &Progress,
    guests: &[GuestSuite],
    built: &[dist::Built],
) -> Result<Vec<Ready>> {
    let wanted: Vec<Series> =
        Series::ALL.into_iter().filter(|series| guests.iter().any(|suite| suite.series == *series)).collect();
    let kernels = setup::kernels(workspace, progress, &wanted, &arguments.flavour)?;
    let rust = setup::rust(workspace, progress)?;
    let ready = |(kernel, series): (Kernel, Series)| {
        let modules = setup::modules(workspace, progress, &kernel, &rust)?;
        let wanted = guests.iter().any(|suite| suite.series == series && suite.header.dist);
        let dist = wanted.then(|| from_archive(workspace, progress, &kernel, built));
        let accel = arguments.accel.settle(workspace, &kernel);
        Ok(Ready { series, kernel, modules, dist, accel })
    };
    kernels.into_iter().zip(wanted).map(ready).collect()
}

/// The modules that the suite `dist` built, or new ones where it did not run.
fn from_archive(
    workspace: &Workspace,
    progress: &Progress,
    kernel: &Kernel,
    built: &[dist::Built],
) -> Result<Vec<PathBuf>, String> {
    if let Some(built) = built.iter().find(|built| built.release == kernel.release) {
        return Ok(built.modules.clone());
    }
    dist::build(workspace, progress, kernel).map(|built| built.modules).map_err(|why| format!("{why:#}"))
}

/// What the guest of a suite has in `/modules`.
fn modules(ready: &Ready, header: &Header) -> Result<Vec<PathBuf>> {
    let staged = &ready.modules.files;
    if !header.dist {
        return Ok(staged.clone());
    }
    let dist = ready.dist.as_ref().context("nothing was built from the archive")?;
    let mut modules = dist.clone().map_err(anyhow::Error::msg)?;
    // What compares the kernel's text is in no archive, and knows nothing of kdetour.
    modules.extend(staged.iter().filter(|file| file.ends_with("textsum.ko")).cloned());
    Ok(modules)
}

/// How QEMU executes a suite: as its script insists, or as all.
fn accel(workspace: &Workspace, ready: &Ready, header: &Header) -> Accel {
    header.accel.map_or(ready.accel, |accel| accel.settle(workspace, &ready.kernel))
}

/// Runs one script in its guest: how many checks passed. `uname` gets what the guest says that it runs.
fn guest(
    workspace: &Workspace,
    arguments: &Arguments,
    progress: &Progress,
    ready: &Ready,
    suite: &GuestSuite,
    uname: &mut Option<String>,
) -> Result<usize> {
    let header = &suite.header;
    setup::display(workspace, progress, header.display)?;
    let stage = progress.stage(&suite.name);
    let mut guest = Guest::new(workspace, &ready.kernel, &suite.name);
    guest.script = read(&suite.script)?;
    guest.cpus = header.cpus;
    guest.append.clone_from(&header.append);
    guest.accel = accel(workspace, ready, header);
    if header.counts {
        guest.count_instructions();
    }
    if arguments.long {
        // What the kernel does not know is in the environment of its first process.
        guest.append.push_str(" kdetour_long=1");
    }
    guest.timeout = header.timeout;
    guest.modules = modules(ready, header)?;
    guest.modules.extend(ready.kernel.drivers(workspace, &header.drivers)?);
    guest.display = header.display;
    guest.qemu.extend(header.qemu.iter().cloned());
    guest.files.extend(ready.modules.programs.iter().cloned());
    let mut lines = Lines::default();
    let outcome = guest.run_on(
        &mut |line| {
            lines.take(line);
            stage.show(line);
        },
        &mut |name| *uname = Some(name.to_owned()),
    );
    let log = workspace.log(&format!("suite-{}", suite.name));
    shell::write_if_changed(&log, lines.text().as_bytes())?;
    stage.clear();
    if let Some(wanted) = &header.dies {
        return lines.judge_death(wanted, outcome).map_err(anyhow::Error::msg);
    }
    let outcome = outcome.with_context(|| format!("the script's output is in {}", log.display()))?;
    lines.judge(&outcome).map_err(anyhow::Error::msg)
}

fn read(script: &Path) -> Result<Vec<u8>> {
    std::fs::read(script).with_context(|| format!("cannot read {}", script.display()))
}
