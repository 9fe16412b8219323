//! Compiling and linking drivers.

use super::check::{self, Facts};
use super::{Machine, checksum};
use crate::packages::{self, Need};
use crate::progress::Stage;
use crate::shell::{Step, query, write_if_changed};
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Code generation for drivers: no source paths and no `Debug` in them, which never print either.
const FLAGS: [&str; 4] =
    ["-Zlocation-detail=none", "-Zfmt-debug=none", "-Zunstable-options", "-Cpanic=immediate-abort"];
/// NT unwinds through 64-bit code by its tables; 32-bit code has none.
const WITH_TABLES: &str = "-Cforce-unwind-tables=yes";

/// The version of NT that an image is for, in its headers: 5.2 (Windows Server 2003, and XP for x64). NT takes an image below 5 for a driver
/// of NT 4, whose text is to be writable.
const VERSION: &[&str] = &[
    "-Wl,--subsystem,native:5.2",
    "-Wl,--major-os-version,5",
    "-Wl,--minor-os-version,2",
    "-Wl,--major-image-version,5",
    "-Wl,--minor-image-version,2",
];
/// The rest that a driver's linker is told: nothing of a C library, relocations, no executable data, and only what is reached.
const LINK: &[&str] = &[
    "-nostdlib",
    "-Wl,--file-alignment,512",
    "-Wl,--section-alignment,4096",
    "-Wl,--dynamicbase",
    "-Wl,--nxcompat",
    "-Wl,--gc-sections",
    "-Wl,--exclude-all-symbols",
];
/// What C's compiler is told: as the WDK's, no floating point and no calls that are not written.
const C: &[&str] = &[
    "-std=gnu99",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-mgeneral-regs-only",
    "-mno-stack-arg-probe",
    "-fno-asynchronous-unwind-tables",
    "-fno-ident",
];

/// A driver that was built.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    /// Its name, without `.sys`.
    pub(crate) name: &'static str,
    /// Its file.
    pub(crate) file: PathBuf,
    /// What is known of it.
    pub(crate) facts: Facts,
}

/// How a driver is made.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// Of a file in C, below `kernel/windows`, with the library.
    C(&'static str),
    /// Of a crate, below `kernel/windows`.
    Rust(&'static str),
}

/// The drivers: two that do the same, and that of the tests.
const DRIVERS: [(&str, Source); 3] = [
    ("hello-c", Source::C("examples/hello.c")),
    ("hello-rust", Source::Rust("examples/rust")),
    ("bad", Source::C("tests/bad.c")),
];

/// Builds every driver for a machine.
pub(crate) fn build(workspace: &Workspace, stage: &Stage, machine: Machine) -> Result<Vec<Driver>> {
    let (compiler, package) = machine.compiler();
    packages::ensure(workspace, stage, &[Need::new(package, compiler)])?;
    let toolchain = Toolchain::find(workspace, stage)?;
    stage.note(&format!("compiling with {}", toolchain.description));
    let builder = Builder { workspace, toolchain, machine };
    let library = builder.library()?;
    DRIVERS
        .into_iter()
        .map(|(name, source)| {
            let linked = match source {
                Source::C(file) => builder.object(name, file).map(|object| vec![object, library.clone()])?,
                Source::Rust(folder) => vec![builder.crate_of(folder)?],
            };
            builder.link(name, &linked)
        })
        .collect()
}

struct Builder<'a> {
    workspace: &'a Workspace,
    toolchain: Toolchain,
    machine: Machine,
}

impl Builder<'_> {
    /// Where all of it goes.
    fn folder(&self) -> PathBuf {
        self.workspace.out.join("drivers").join(self.machine.name())
    }

    fn sources(&self) -> PathBuf {
        self.workspace.root.join("kernel/windows")
    }

    /// Cargo, for a static library of a package.
    fn cargo(&self) -> Command {
        let mut flags = FLAGS.to_vec();
        flags.extend((self.machine == Machine::X64).then_some(WITH_TABLES));
        let mut cargo = self.toolchain.cargo();
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        cargo.args(["rustc", "--lib", "--crate-type", "staticlib", "--profile", "driver"]);
        cargo.args(["--target", self.machine.triple(), "-Zbuild-std=core,alloc"]);
        cargo.arg("-Zbuild-std-features=compiler-builtins-mem,optimize_for_size");
        cargo.arg("--target-dir").arg(self.workspace.out.join("drivers/rust"));
        cargo
    }

    fn compiled(&self, cargo: &mut Command, what: &str, archive: &str) -> Result<PathBuf> {
        Step {
            what: &format!("compile {what} for {}", self.machine.name()),
            log: self.workspace.log(&format!("drivers-{}-{what}", self.machine.name())),
            advice: "errors about `core` or `-Zbuild-std` mean that compiler and library source differ: reinstall them together",
        }
        .run(cargo)?;
        Ok(self.workspace.out.join("drivers/rust").join(self.machine.triple()).join("driver").join(archive))
    }

    /// The library for drivers in C.
    fn library(&self) -> Result<PathBuf> {
        let mut cargo = self.cargo();
        cargo.current_dir(&self.workspace.root);
        cargo.args(["-p", "kdetour-ffi", "--no-default-features", "--features", "windows-kernel"]);
        let made = self.compiled(&mut cargo, "libkdetour_nt", "libkdetour_ffi.a")?;
        // Whole, for the WDK's linker.
        let bytes = fs::read(&made).with_context(|| format!("cannot read {}", made.display()))?;
        write_if_changed(&self.folder().join("kdetour_nt.lib"), &bytes)?;
        self.trimmed(&made, "libkdetour_nt.a")
    }

    /// A library without Rust's own arithmetic, which is gcc's instead: GNU's linker takes all of an object that has unwind tables, a
    /// hundred kilobytes of it.
    fn trimmed(&self, made: &Path, name: &str) -> Result<PathBuf> {
        let library = self.folder().join(name);
        fs::create_dir_all(self.folder())
            .with_context(|| format!("cannot create {}", self.folder().display()))?;
        fs::copy(made, &library).with_context(|| format!("cannot copy {}", made.display()))?;
        let ar = self.machine.compiler().0.replace("gcc", "ar");
        let members = query(Command::new(&ar).arg("t").arg(&library))?;
        let arithmetic = members.lines().filter(|member| member.starts_with("compiler_builtins"));
        query(Command::new(&ar).arg("d").arg(&library).args(arithmetic))?;
        Ok(library)
    }

    /// The static library of a driver in Rust.
    fn crate_of(&self, folder: &str) -> Result<PathBuf> {
        let mut cargo = self.cargo();
        cargo.current_dir(self.sources().join(folder));
        let made = self.compiled(&mut cargo, "hello", "libhello.a")?;
        self.trimmed(&made, "libhello.a")
    }

    /// A driver's object, of its file in C.
    fn object(&self, name: &str, file: &str) -> Result<PathBuf> {
        let object = self.folder().join(format!("{name}.o"));
        let mut gcc = Command::new(self.machine.compiler().0);
        gcc.args(C).arg("-isystem").arg(ddk(self.machine)?);
        gcc.arg("-I").arg(self.workspace.root.join("crates/ffi/include"));
        gcc.arg("-c").arg(self.sources().join(file)).arg("-o").arg(&object);
        Step {
            what: &format!("compile {file} for {}", self.machine.name()),
            log: self.workspace.log(&format!("drivers-{}-{name}", self.machine.name())),
            advice: "the log has the compiler's errors",
        }
        .run(&mut gcc)?;
        Ok(object)
    }

    /// Links a driver, looks at it, and puts it where it belongs.
    fn link(&self, name: &'static str, inputs: &[PathBuf]) -> Result<Driver> {
        let (whole, file) =
            (self.folder().join(format!("{name}.unstripped.sys")), self.folder().join(format!("{name}.sys")));
        for (to, strip) in [(&whole, None), (&file, Some("-Wl,--strip-all"))] {
            let mut gcc = Command::new(self.machine.compiler().0);
            gcc.args(LINK).args(VERSION).args(strip);
            gcc.arg(format!("-Wl,--entry,{},--image-base,{:#x}", self.machine.entry(), self.machine.base()));
            gcc.arg("-o").arg(to).args(inputs).args(["-lntoskrnl", "-lhal", "-lgcc"]);
            Step {
                what: &format!("link {name}.sys for {}", self.machine.name()),
                log: self.workspace.log(&format!("drivers-{}-link-{name}", self.machine.name())),
                advice: "what is undefined is no function of NT that MinGW knows: look it up when the driver runs",
            }
            .run(&mut gcc)?;
        }
        let mut image = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        checksum::write(&mut image)?;
        fs::write(&file, &image).with_context(|| format!("cannot write {}", file.display()))?;
        let whole = fs::read(&whole).with_context(|| format!("cannot read {}", whole.display()))?;
        let allowed = check::allowed(&self.sources().join("imports.txt"))?;
        // That of the tests has a good deal of its own.
        let most = if name == "bad" { check::MOST + (16 << 10) } else { check::MOST };
        let facts = check::check(&image, &whole, self.machine, most, &allowed).with_context(|| {
            format!("{} is no driver that NT 5.2 and later would load", self.workspace.shown(&file))
        })?;
        Ok(Driver { name, file, facts })
    }
}

/// Where MinGW has the headers of the driver kit.
fn ddk(machine: Machine) -> Result<PathBuf> {
    let target = match machine {
        Machine::X64 => "x86_64-w64-mingw32",
        Machine::I386 => "i686-w64-mingw32",
    };
    let places = [
        PathBuf::from("/usr/share/mingw-w64/include/ddk"),
        Path::new("/usr").join(target).join("include/ddk"),
        Path::new("/usr").join(target).join("sys-root/mingw/include/ddk"),
    ];
    places.iter().find(|place| place.join("ntddk.h").is_file()).cloned().with_context(|| {
        format!("MinGW's headers for drivers are in none of {places:?}: install its package of headers (Debian: mingw-w64-common)")
    })
}
