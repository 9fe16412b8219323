//! The library for C on Windows as its users have it: installed, compiled against by mingw's compilers, linked both ways, run by Wine; for 64-bit
//! programs, and for 32-bit ones.

use crate::cross::Target;
use crate::install::{self, windows};
use crate::packages::{self, Need};
use crate::progress::{Progress, Stage};
use crate::setup;
use crate::shell::{Step, query};
use crate::wine::Wine;
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// By these the headers are compiled without a word.
const STANDARDS: [(&str, &str); 5] =
    [("c", "c99"), ("c", "gnu11"), ("c", "c2x"), ("c++", "c++11"), ("c++", "c++20")];
const STRICT: [&str; 3] = ["-Wall", "-Wextra", "-Werror"];
/// No program takes nearly as long; one that hangs is ended.
const LIMIT: Duration = Duration::from_secs(120);

/// Programs below `crates/ffi/tests/c` and `examples/c`, and the standard of each.
const PROGRAMS: [(&str, &str); 15] = [
    ("examples/c/getenv.c", "gnu89"),
    ("examples/c/set.c", "gnu89"),
    ("examples/c/import.c", "gnu89"),
    ("crates/ffi/tests/c/behaviour.c", "gnu89"),
    ("crates/ffi/tests/c/pointers.c", "gnu89"),
    ("crates/ffi/tests/c/vtable.cpp", "c++11"),
    ("crates/ffi/tests/c/detours/transactions.c", "gnu11"),
    ("crates/ffi/tests/c/detours/sample.cpp", "c++11"),
    ("crates/ffi/tests/c/detours/sample.cpp", "c++17"),
    ("crates/ffi/tests/c/detours/instruction.c", "gnu11"),
    ("crates/ffi/tests/c/windows/traced.cpp", "c++11"),
    ("crates/ffi/tests/c/windows/modules.c", "gnu11"),
    ("crates/ffi/tests/c/windows/region.c", "gnu11"),
    ("crates/ffi/tests/c/windows/conventions.cpp", "c++11"),
    ("crates/ffi/tests/c/windows/conventions.cpp", "c++20"),
];

/// What of the programs for Linux is not run, and why.
const LEFT_OUT: [(&str, &str); 5] = [
    ("examples/c/plan.c", "it writes text by mprotect"),
    ("examples/c/shared.cpp, slept.cpp", "they are libraries for `kdetour run`; windows/slept.c is a DLL"),
    ("detours/exports.c, hostile.c, imports.c, modules.c", "they are about ELF; windows/modules.c has PE"),
    ("detours/region.c", "it maps memory as Linux does; windows/region.c has what is asked there"),
    ("pe/loaded.c", "it is a loader of PE images for Linux"),
];

/// What the suite is called.
pub(super) fn name(target: Target) -> &'static str {
    match target {
        Target::I686Windows => "windows-c-i686",
        _ => "windows-c",
    }
}

/// Installs into a folder of its own, and does there what users do. Says in a few words what that was.
pub(super) fn check(workspace: &Workspace, progress: &Progress, target: Target) -> Result<String> {
    let name = name(target);
    {
        let stage = progress.stage("packages");
        packages::ensure(workspace, &stage, &[target.mingw_plus(), Need::new("pkg-config", "pkg-config")])?;
        stage.clear();
    }
    let prefix = workspace.out.join(format!("{name}-prefix"));
    if prefix.exists() {
        fs::remove_dir_all(&prefix).with_context(|| format!("cannot remove {}", prefix.display()))?;
    }
    install::install_windows(workspace, progress, target, &prefix, None)?;
    let wine = setup::wine(workspace, progress, target)?;
    wine.start(workspace)?;
    let stage = progress.stage(name);
    let user = User { workspace, wine, folder: prefix.join(windows::folder(target)), target };
    for (language, standard) in STANDARDS {
        user.header(language, standard)?;
    }
    user.misuse()?;
    let programs = user.programs(&stage)?;
    stage.note("a DLL");
    user.library()?;
    stage.clear();
    for (name, why) in LEFT_OUT {
        progress.line(&format!("       left out on Windows: {name}: {why}"));
    }
    Ok(format!("{} standards, {programs} programs and a DLL by {}", STANDARDS.len(), user.wine.version()))
}

/// How a program gets the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Shared,
    Static,
}

/// Somebody who has installed it.
struct User<'a> {
    workspace: &'a Workspace,
    wine: Wine,
    /// Where headers and libraries are.
    folder: PathBuf,
    target: Target,
}

impl User<'_> {
    fn step(&self, what: &str, command: &mut Command) -> Result<String> {
        let advice = "it is what users do with the installed files";
        let log = self.workspace.log(&format!("suite-{}", name(self.target)));
        Step { what, log, advice }.run(command)
    }

    /// The compiler of a language: `c` or `c++`.
    fn compiler(&self, language: &str, standard: &str) -> Command {
        let tool = if language == "c" { "gcc" } else { "g++" };
        let mut compiler = Command::new(format!("{}-{tool}", windows::folder(self.target)));
        compiler.args(["-x", language, &format!("-std={standard}"), "-O2"]).args(STRICT);
        compiler
    }

    /// What `pkg-config` answers.
    fn flags(&self, question: &[&str]) -> Result<Vec<String>> {
        let mut command = Command::new("pkg-config");
        command.args(question).arg("kdetour-detours");
        // Nothing of this machine's own is meant.
        command.env("PKG_CONFIG_LIBDIR", self.folder.join("lib/pkgconfig")).env_remove("PKG_CONFIG_PATH");
        Ok(query(&mut command)?.split_whitespace().map(str::to_owned).collect())
    }

    /// The headers alone, and twice, beside the compiler's own windows.h.
    fn header(&self, language: &str, standard: &str) -> Result<()> {
        let text = "#include <kdetour.h>\n#include <windows.h>\n#include <detours.h>\n#include <detours.h>\n#include <kdetour.h>\n\
                    static BOOL CALLBACK file(PVOID c, HMODULE m, LPCSTR n) { return c && m && n; }\n\
                    static BOOL CALLBACK slot(PVOID c, DWORD o, LPCSTR n, PVOID *s) { return c && n && s && !o; }\n\
                    KDETOUR(f, int, (int a), (a)) { return f_original(a); }\n\
                    int main(void) { PVOID p = NULL, t; LONG x; DWORD z; if (DetourIsHelperProcess()) return 1;\n\
                    return DetourTransactionBegin() + DetourAttach(&p, (PVOID)&x) + DetourTransactionCommit()\n\
                    + !DetourCopyInstruction(NULL, NULL, p, &t, &x) + !DetourAllocateRegionWithinJumpBounds(p, &z)\n\
                    + DetourEnumerateImportsEx(GetModuleHandleA(NULL), p, file, slot) + kdetour_attach(&f_detour); }\n";
        let source = self.folder.join("header");
        fs::write(&source, text).with_context(|| format!("cannot write {}", source.display()))?;
        let mut compiler = self.compiler(language, standard);
        compiler.arg("-fsyntax-only").args(self.flags(&["--cflags"])?).arg(&source);
        self.step(&format!("compile the headers as {standard}"), &mut compiler).map(drop)
    }

    /// What is to be told by the compiler; and what is not offered is not declared.
    fn misuse(&self) -> Result<()> {
        let wrong = [
            ("a function in place of a pointer to it", "LONG f(void) { return DetourAttach(main, 0); }"),
            ("payloads", "int f(void) { DWORD n; return !DetourFindPayload(0, 0, &n); }"),
            ("another process", "int f(void) { return DetourCreateProcessWithDllEx(0); }"),
        ];
        for (what, text) in wrong {
            let source = self.folder.join("wrong");
            fs::write(
                &source,
                format!("#include <windows.h>\n#include <detours.h>\nint main(void);\n{text}\n"),
            )?;
            let mut compiler = self.compiler("c", "gnu11");
            compiler.arg("-fsyntax-only").args(self.flags(&["--cflags"])?).arg(&source);
            if compiler.output().context("there is no compiler for Windows")?.status.success() {
                bail!("the compiler does not complain: {what}");
            }
        }
        Ok(())
    }

    /// Compiles a program, or a DLL. All but `kdetour.dll` and Windows' own libraries is in it.
    fn compile(&self, source: &Path, standard: &str, how: How, to: &Path) -> Result<()> {
        let language = if standard.contains("++") { "c++" } else { "c" };
        let mut compiler = self.compiler(language, standard);
        if to.extension().is_some_and(|ending| ending == "dll") {
            compiler.arg("-shared");
            if self.target == Target::I686Windows {
                // Or what it exports is found by no name but that with the length of its arguments.
                compiler.arg("-Wl,--add-stdcall-alias");
            }
        }
        compiler.args(self.flags(&["--cflags"])?).arg("-o").arg(to).arg(source).args(["-x", "none"]);
        match how {
            How::Shared => compiler.args(self.flags(&["--libs"])?),
            How::Static => {
                compiler.arg(self.folder.join("lib/libkdetour.a"));
                let flags = self.flags(&["--libs", "--static"])?;
                compiler.args(flags.iter().filter(|flag| *flag != "-lkdetour"))
            }
        };
        compiler.args(["-static-libgcc", "-Wl,-Bstatic", "-lpthread"]);
        if self.target == Target::I686Windows {
            // Or a jump that leads far up, or down below 0, has no place in what 32-bit programs have otherwise.
            compiler.arg("-Wl,--large-address-aware");
        }
        self.step(&format!("compile {} as {standard}, {how:?}", source.display()), &mut compiler).map(drop)
    }

    /// Compiles all programs and runs them; how many.
    fn programs(&self, stage: &Stage) -> Result<usize> {
        let mut count = 0;
        for how in [How::Shared, How::Static] {
            let folder = self.folder.join(format!("{how:?}").to_lowercase());
            fs::create_dir_all(&folder)?;
            if how == How::Shared {
                // Windows looks for DLLs beside the program.
                for name in ["kdetour.dll"].iter().chain(windows::beside(self.target)) {
                    fs::copy(self.folder.join("bin").join(name), folder.join(name))?;
                }
            }
            for (source, standard) in PROGRAMS {
                stage.note(source);
                let program = folder.join(format!("program-{count}.exe"));
                self.compile(&self.workspace.root.join(source), standard, how, &program)?;
                self.run(&program, source, &[])?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// A DLL that hooks when it is loaded, and a program that loads and unloads it. It needs `kdetour.dll`: with the static library in it, it would stay.
    fn library(&self) -> Result<()> {
        let (sources, folder) =
            (self.workspace.root.join("crates/ffi/tests/c/windows"), self.folder.join("shared"));
        for (source, file) in [("slept.c", "slept.dll"), ("sleeper.c", "sleeper.exe")] {
            self.compile(&sources.join(source), "gnu11", How::Shared, &folder.join(file))?;
        }
        self.run(&folder.join("sleeper.exe"), "sleeper.c", &["slept.dll"])
    }

    /// Runs a program whose lines say what holds and what does not.
    fn run(&self, program: &Path, source: &str, arguments: &[&str]) -> Result<()> {
        let folder = program.parent().unwrap_or(Path::new("/"));
        let mut command = self.wine.command("wine", LIMIT);
        let said = self.step(
            &format!("run {source} by Wine"),
            command.current_dir(folder).arg(program).args(arguments),
        )?;
        match said.lines().find(|line| line.starts_with("FAIL")) {
            Some(line) => bail!("{source}: {line}"),
            None => Ok(()),
        }
    }
}
