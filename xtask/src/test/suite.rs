//! The suites: what each is called and what it runs.

use super::engine::Proof;
use super::header::Header;
use super::windows::{self, Part};
use super::{windows_c, windows_stress};
use crate::cross::Target;
use crate::kernel::Series;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::PathBuf;

/// How much is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Extent {
    /// While one works: less than 20 minutes on two cores.
    Short,
    /// Before a change lands: everything once.
    All,
    /// What takes hours.
    Long,
}

/// One named suite.
#[derive(Clone, Debug)]
pub(super) struct Suite {
    /// As `--only` takes it.
    pub(super) name: String,
    /// It is run if that much is, or more.
    pub(super) extent: Extent,
    /// What it runs.
    pub(super) kind: Kind,
}

/// What a suite runs.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Cargo, once for each list of arguments.
    Cargo {
        /// Arguments of one call each.
        calls: Vec<Vec<&'static str>>,
        /// One variable in the environment.
        environment: Option<(&'static str, &'static str)>,
        /// What they need that building does not: Debian packages and the programs in them.
        needs: &'static [(&'static str, &'static str)],
    },
    /// A proof of the engine.
    Engine(Proof),
    /// The library for C, installed, by its users.
    C,
    /// Processes once more, in 32-bit code.
    I686,
    /// Programs for Windows, by Wine: 64-bit or 32-bit ones, and how much of them.
    Windows(Target, Part),
    /// The stress suite there.
    WindowsStress(Target),
    /// The library for C on Windows, installed, by its users.
    WindowsC(Target),
    /// Drivers for Windows, by Wine and an emulator.
    WindowsDrivers,
    /// The archive of `cargo xtask dist`.
    Dist,
    /// A script in a guest.
    Guest {
        /// The kernel.
        series: Series,
        /// The script's path.
        script: PathBuf,
        /// The script's header.
        header: Header,
    },
}

/// Every suite, in the order in which they run; those that are run in a shorter and a longer form in the longer one if `long`.
pub(super) fn all(workspace: &Workspace, long: bool) -> Result<Vec<Suite>> {
    let mut suites = cargo_suites(long);
    suites.extend(guest_suites(workspace)?);
    Ok(suites)
}

fn cargo_suites(long: bool) -> Vec<Suite> {
    let suite = |name: &str, calls: &[&[&'static str]], environment| Suite {
        name: name.to_owned(),
        extent: Extent::Short,
        kind: Kind::Cargo {
            calls: calls.iter().map(|call| call.to_vec()).collect(),
            environment,
            needs: &[],
        },
    };
    let other = |name: &str, extent, kind| Suite { name: name.to_owned(), extent, kind };
    // The 32-bit ones have one short form.
    let on_windows = |target: Target| if target == Target::I686Windows { Extent::Long } else { Extent::All };
    let windows = |target: Target, part, extent| {
        other(&windows::name(target, part), extent, Kind::Windows(target, part))
    };
    let windows_stress =
        |target| other(&windows_stress::name(target), on_windows(target), Kind::WindowsStress(target));
    let windows_c = |target| other(windows_c::name(target), on_windows(target), Kind::WindowsC(target));
    let kernel_half: &[&str] = &[
        "clippy",
        "-p",
        "kdetour-ffi",
        "--lib",
        "--no-default-features",
        "--features",
        "linux-kernel",
        // Its panic strategy is the kernel's: there is no unwinding to lint for.
        "--profile",
        "kernel",
        "--",
        "-D",
        "warnings",
    ];
    let process_half: &[&str] = &[
        "clippy",
        "-p",
        "kdetour-ffi",
        "--all-targets",
        "--features",
        "linux-process",
        "--",
        "-D",
        "warnings",
    ];
    let drivers: &[&str] =
        &["clippy", "-p", "kdetour", "--all-targets", "--features", "windows-kernel", "--", "-D", "warnings"];
    vec![
        suite("fmt", &[&["fmt", "--all", "--check"]], None),
        suite(
            "clippy",
            &[
                &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
                kernel_half,
                process_half,
                drivers,
            ],
            None,
        ),
        suite("doc", &[&["doc", "--no-deps", "--workspace"]], Some(("RUSTDOCFLAGS", "-Dwarnings"))),
        suite(
            "unit",
            &[
                &["test", "--workspace", "--no-fail-fast"],
                &["test", "-p", "kdetour-ffi", "--features", "linux-process"],
            ],
            long.then_some(("PROPTEST_CASES", "50000")),
        ),
        suite(
            "windows-kernel",
            &[&["test", "-p", "kdetour", "--features", "windows-kernel", "--lib", "windows_kernel"]],
            None,
        ),
        suite(
            "examples",
            &[
                &["build", "--workspace", "--examples"],
                &["run", "-p", "kdetour-examples", "--example", "getenv"],
                &["run", "-p", "kdetour-examples", "--example", "closure"],
                &["run", "-p", "kdetour-examples", "--example", "inside"],
                &["run", "-p", "kdetour-examples", "--example", "library"],
            ],
            None,
        ),
        suite(
            "process-stress",
            &[&["test", "--release", "-p", "kdetour", "--test", "stress"]],
            Some(("KDETOUR_STRESS_SECONDS", if long { "3600" } else { "20" })),
        ),
        with_tools(suite(
            "process-tools",
            &[&["test", "--release", "-p", "kdetour", "--test", "stress", "--", "tools"]],
            Some(("KDETOUR_STRESS_SECONDS", if long { "300" } else { "6" })),
        )),
        other("images", Extent::All, Kind::Engine(Proof::Images)),
        other("differential", Extent::All, Kind::Engine(Proof::Differential)),
        other("fuzz", Extent::All, Kind::Engine(Proof::Fuzz)),
        other("c", Extent::All, Kind::C),
        other("i686", Extent::All, Kind::I686),
        windows(Target::X86_64Windows, Part::Whole, Extent::All),
        windows_stress(Target::X86_64Windows),
        windows_c(Target::X86_64Windows),
        windows(Target::I686Windows, Part::Host, Extent::All),
        windows(Target::I686Windows, Part::Whole, Extent::Long),
        windows_stress(Target::I686Windows),
        windows_c(Target::I686Windows),
        other("windows-drivers", Extent::All, Kind::WindowsDrivers),
        other("dist", Extent::All, Kind::Dist),
    ]
}

/// A suite that runs other people's tools.
fn with_tools(mut suite: Suite) -> Suite {
    suite.extent = Extent::All;
    if let Kind::Cargo { needs, .. } = &mut suite.kind {
        *needs = &[("gdb", "gdb"), ("linux-perf", "perf"), ("g++", "g++")];
    }
    suite
}

/// Scripts of `kernel/linux/tests` that have a header, on each of their kernels.
fn guest_suites(workspace: &Workspace) -> Result<Vec<Suite>> {
    let folder = workspace.kernel_sources().join("tests");
    let mut scripts: Vec<PathBuf> = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "sh"))
        .collect();
    scripts.sort();
    let mut suites = Vec::new();
    for script in scripts {
        let text =
            fs::read_to_string(&script).with_context(|| format!("cannot read {}", script.display()))?;
        let header = Header::read(&text)
            .with_context(|| format!("{} has a wrong `# guest:` line", workspace.shown(&script)))?;
        let Some(header) = header.filter(|header| !header.manual) else { continue };
        let stem = script.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let kernels = header.kernels.iter().map(|&series| (series, header.extent_on(series)));
        let only_long = header.long_kernels.iter().map(|&series| (series, Extent::Long));
        for (series, extent) in kernels.chain(only_long) {
            let name = format!("kernel-{stem}-{}", series.name());
            let (script, header) = (script.clone(), header.clone());
            suites.push(Suite { name, extent, kind: Kind::Guest { series, script, header } });
        }
    }
    suites.sort_by_key(|suite| match &suite.kind {
        Kind::Guest { series, .. } => Series::ALL.iter().position(|s| s == series),
        Kind::Cargo { .. }
        | Kind::Engine(_)
        | Kind::C
        | Kind::I686
        | Kind::Windows(..)
        | Kind::WindowsStress(_)
        | Kind::WindowsC(_)
        | Kind::WindowsDrivers
        | Kind::Dist => None,
    });
    Ok(suites)
}
