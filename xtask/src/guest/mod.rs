//! A guest: one kernel in QEMU with busybox around it, running one script.
//!
//! The kernel logs on the first serial line, into a file. The script talks on the second, which is
//! QEMU's stdout here; `/init` ends it with a line that carries the script's exit status and the
//! kernel's taint flags. A guest that never says that line has crashed or hangs.

mod accel;
mod initramfs;
pub(crate) mod log;
mod picture;
mod screen;

pub(crate) use accel::Accel;
pub(crate) use screen::{Display, FIRMWARE};

use crate::kernel::Kernel;
use crate::shell::{indent, tail};
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use initramfs::Initramfs;
use screen::Screen;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

const MARK: &str = "kdetour-guest: ";
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const BOOT_ATTEMPTS: u32 = 3;
const LOG_TAIL: usize = 40;

/// What to boot and what to run in it.
pub(crate) struct Guest<'a> {
    kernel: &'a Kernel,
    folder: PathBuf,
    /// The script, run by busybox' `sh`.
    pub(crate) script: Vec<u8>,
    /// Number of CPUs.
    pub(crate) cpus: u32,
    /// Added to the kernel's command line.
    pub(crate) append: String,
    /// How QEMU executes it; settled, see [`Accel::settle`].
    pub(crate) accel: Accel,
    /// Longest time from the start of QEMU to its end.
    pub(crate) timeout: Duration,
    /// Modules, laid flat in `/modules`.
    pub(crate) modules: Vec<PathBuf>,
    /// Files: path here, absolute path there.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// Added to QEMU's command line.
    pub(crate) qemu: Vec<String>,
    /// A screen and a keyboard, which the script may ask for.
    pub(crate) display: Option<Display>,
    /// Where the screen's pictures go.
    pub(crate) pictures: PathBuf,
}

/// How a guest ended that ran its script to the end.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Exit status of the script.
    pub(crate) exit: i32,
    /// `/proc/sys/kernel/tainted` at the end.
    pub(crate) tainted: u64,
    /// Kernel log lines and taint flags that tell of trouble.
    pub(crate) warnings: Vec<String>,
    /// From the start of QEMU to its end.
    pub(crate) seconds: f64,
    /// The kernel's log.
    pub(crate) log: PathBuf,
}

/// The error of a guest that went down while it ran its script.
#[derive(Clone, Debug)]
pub(crate) struct Crashed {
    /// What the kernel had said.
    pub(crate) log: String,
    story: String,
}

impl std::fmt::Display for Crashed {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(&self.story)
    }
}

impl std::error::Error for Crashed {}

#[cfg(test)]
impl Crashed {
    /// One whose kernel said `log`.
    pub(crate) fn for_test(log: &str) -> Self {
        Self { log: log.to_owned(), story: "crashed".to_owned() }
    }
}

/// How one attempt to boot ended.
enum Attempt {
    Finished { exit: i32, tainted: u64 },
    DiedBooting(String),
    Crashed,
}

impl<'a> Guest<'a> {
    /// A guest with two CPUs and nothing to run; `label` names its folder under `target/kdetour/guest`.
    pub(crate) fn new(workspace: &Workspace, kernel: &'a Kernel, label: &str) -> Self {
        let files = scripts(&workspace.kernel_sources().join("tests"));
        Self {
            kernel,
            folder: workspace.out.join("guest").join(label),
            script: Vec::new(),
            cpus: 2,
            append: String::new(),
            accel: Accel::Tcg,
            timeout: Duration::from_secs(600),
            modules: Vec::new(),
            files,
            qemu: Vec::new(),
            display: None,
            pictures: workspace.out.join("screens").join(label),
        }
    }

    /// One processor that executes an instruction in two nanoseconds of its own time, always the same ones: what a script
    /// counts by the time stamp counter repeats exactly. Where the processor has nothing to do, time goes on to the next
    /// timer, so that it depends on nothing outside.
    pub(crate) fn count_instructions(&mut self) {
        self.cpus = 1;
        self.accel = Accel::Tcg;
        self.append = "nosmp nokaslr".to_owned();
        self.qemu = ["-icount", "shift=1,sleep=off"].map(str::to_owned).to_vec();
    }

    /// Boots, runs the script, hands each line it prints to `line`, and judges the kernel's log.
    pub(crate) fn run(&self, line: &mut dyn FnMut(&str)) -> Result<Outcome> {
        self.run_on(line, &mut |_| ())
    }

    /// The same; hands what the guest says that it runs, its `uname -rv`, to `uname` as soon as it does.
    pub(crate) fn run_on(&self, line: &mut dyn FnMut(&str), uname: &mut dyn FnMut(&str)) -> Result<Outcome> {
        let start = Instant::now();
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot create {}", self.folder.display()))?;
        let initrd = self.folder.join("initramfs");
        fs::write(&initrd, self.initramfs()?)
            .with_context(|| format!("cannot write {}", initrd.display()))?;
        let log = self.folder.join("kernel.log");
        let attempts = if self.accel.is_emulation() { BOOT_ATTEMPTS } else { 1 };
        let mut died = String::new();
        for _ in 0..attempts {
            let attempt = self.attempt(&initrd, &log, line, uname);
            // QEMU may have removed it.
            fs::remove_file(self.socket()).ok();
            match attempt? {
                Attempt::Finished { exit, tainted } => {
                    let mut warnings = log::warnings(&read(&log));
                    warnings.extend(log::taint_warnings(tainted));
                    let seconds = start.elapsed().as_secs_f64();
                    // A leftover only takes space, and the next run overwrites it.
                    fs::remove_file(&initrd).ok();
                    return Ok(Outcome { exit, tainted, warnings, seconds, log });
                }
                Attempt::DiedBooting(why) => died = why,
                Attempt::Crashed => {
                    return Err(Crashed {
                        log: read(&log),
                        story: self
                            .failure("crashed: it went down before the script ended", &log)
                            .to_string(),
                    }
                    .into());
                }
            }
        }
        Err(self.failure(&format!("did not boot ({attempts} attempts): {died}"), &log))
    }

    /// Removes the guest's folder, when nobody will want its logs.
    pub(crate) fn forget(&self) {
        // A leftover only takes space.
        fs::remove_dir_all(&self.folder).ok();
    }

    fn initramfs(&self) -> Result<Vec<u8>> {
        let mut archive = Initramfs::with_busybox()?;
        archive.content("/run.sh", &self.script)?;
        for module in &self.modules {
            let name = module.file_name().context("a module's path has no file name")?;
            archive.file(module, &format!("/modules/{}", name.to_string_lossy()))?;
        }
        for (host, guest) in &self.files {
            archive.file(host, guest)?;
        }
        archive.finish()
    }

    fn command(&self, initrd: &Path, log: &Path) -> Command {
        let mut append = "console=ttyS0 loglevel=7 panic=-1 oops=panic no_timer_check".to_owned();
        if !self.append.is_empty() {
            append.push(' ');
            append.push_str(&self.append);
        }
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(self.accel.arguments()).args(["-m", "1024", "-smp", &self.cpus.to_string()]);
        qemu.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(initrd).args(["-append", &append]);
        qemu.args(["-no-reboot", "-nodefaults", "-display", "none", "-monitor", "none"]);
        qemu.arg("-serial").arg(format!("file:{}", log.display())).args(["-serial", "stdio"]);
        if let Some(display) = self.display {
            qemu.args(display.arguments(&self.socket()));
        }
        qemu.args(&self.qemu).env_remove("LD_LIBRARY_PATH");
        qemu
    }

    /// Where QEMU listens: its own path is longer than a socket's may be.
    fn socket(&self) -> PathBuf {
        let label = self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        std::env::temp_dir().join(format!("kdetour-{}-{label}", std::process::id()))
    }

    /// One start of QEMU, until it ends, is silent for too long at boot, or runs out of time.
    fn attempt(
        &self,
        initrd: &Path,
        log: &Path,
        line: &mut dyn FnMut(&str),
        uname: &mut dyn FnMut(&str),
    ) -> Result<Attempt> {
        let errors = self.folder.join("qemu.log");
        let stderr =
            fs::File::create(&errors).with_context(|| format!("cannot write {}", errors.display()))?;
        fs::write(log, "").with_context(|| format!("cannot write {}", log.display()))?;
        let mut qemu = self.command(initrd, log);
        let stdin = if self.display.is_some() { Stdio::piped() } else { Stdio::null() };
        let child = qemu.stdin(stdin).stdout(Stdio::piped()).stderr(stderr).spawn();
        let mut running =
            Running(child.context("qemu-system-x86_64 did not start: install qemu-system-x86")?);
        let output = running.0.stdout.take().context("QEMU has no stdout")?;
        let mut input = running.0.stdin.take();
        let mut screen = self.display.map(|_| Screen::new(self.socket(), self.pictures.clone()));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for bytes in BufReader::new(output).split(b'\n').map_while(|line| line.ok()) {
                let text = String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned();
                if sender.send(text).is_err() {
                    break;
                }
            }
        });

        let start = Instant::now();
        let (mut started, mut finished) = (false, None);
        loop {
            let limit = if started { self.timeout } else { self.timeout.min(BOOT_LIMIT) };
            match lines.recv_timeout(limit.saturating_sub(start.elapsed())) {
                Ok(text) => match text.strip_prefix(MARK) {
                    Some(said) => match said.strip_prefix("started on ") {
                        Some(name) => {
                            started = true;
                            uname(name);
                        }
                        None => finished = parse(said),
                    },
                    None if started => match screen.as_mut().and_then(|screen| screen.take(&text)) {
                        None => line(&text),
                        Some(None) => {}
                        Some(Some(answer)) => {
                            if let Some(input) = &mut input {
                                // A guest that has gone meanwhile says so by its end.
                                writeln!(input, "{answer}").ok();
                            }
                        }
                    },
                    None => {}
                },
                Err(RecvTimeoutError::Disconnected) => break,
                // The verdict is in; a guest that cannot power off is no failure of its script.
                Err(RecvTimeoutError::Timeout) if finished.is_some() => break,
                Err(RecvTimeoutError::Timeout) if !started => {
                    return Ok(Attempt::DiedBooting(format!("no /init after {} s", limit.as_secs())));
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.failure(&format!("was not done after {} s", limit.as_secs()), log));
                }
            }
        }
        if let Some((exit, tainted)) = finished {
            return Ok(Attempt::Finished { exit, tainted });
        }
        let status = running.0.wait().context("QEMU cannot be waited for")?;
        if !status.success() {
            bail!("QEMU ended with {status}:\n{}", indent(&tail(&read(&errors), LOG_TAIL)));
        }
        if started {
            return Ok(Attempt::Crashed);
        }
        Ok(Attempt::DiedBooting("it went down before /init ran".to_owned()))
    }

    fn failure(&self, what: &str, log: &Path) -> anyhow::Error {
        let text = read(log);
        let mut message = format!("the guest ({}, {} CPUs) {what}", self.kernel.release, self.cpus);
        for warning in log::warnings(&text).iter().take(5) {
            message.push_str(&format!("\n  {warning}"));
        }
        message.push_str(&format!(
            "\nthe end of its kernel log:\n{}\n  whole log: {}",
            indent(&tail(&text, LOG_TAIL)),
            log.display()
        ));
        anyhow::anyhow!(message)
    }
}

/// What a script may use in a guest: `lib.sh` as `/lib/kdetour.sh`, and the other scripts as `/lib/tests/NAME.sh`.
fn scripts(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for file in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == "lib.sh" {
            files.push((file, "/lib/kdetour.sh".to_owned()));
        } else if name.ends_with(".sh") {
            files.push((file, format!("/lib/tests/{name}")));
        }
    }
    files.sort();
    files
}

/// A started QEMU, which does not outlive this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// `exit=0 tainted=12288` as its two numbers.
fn parse(verdict: &str) -> Option<(i32, u64)> {
    let (exit, tainted) = verdict.strip_prefix("exit=")?.split_once(" tainted=")?;
    Some((exit.parse().ok()?, tainted.trim().parse().ok()?))
}

fn read(log: &Path) -> String {
    fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_carry_two_numbers() {
        assert_eq!(parse("exit=3 tainted=12288"), Some((3, 12288)));
        assert_eq!(parse("exit=3"), None);
    }
}
