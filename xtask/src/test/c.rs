//! The C library as its users have it: installed, compiled against by every standard, linked both ways, run.

use crate::cross::{self, Processor};
use crate::install;
use crate::packages::{self, Need};
use crate::progress::Progress;
use crate::shell::{Step, query};
use crate::workspace::Workspace;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// By these the header is compiled without a word: the oldest that it promises, what people use, the newest.
const C: [&str; 4] = ["c89", "c99", "gnu11", "c2x"];
const CPP: [&str; 3] = ["c++98", "c++11", "c++20"];
const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-pedantic-errors", "-Werror"];

/// Installs into a folder of its own, and does there what users do, with programs for `processor`. Says in a few words what that was.
pub(super) fn check(workspace: &Workspace, progress: &Progress, processor: Processor) -> Result<String> {
    {
        let stage = progress.stage("packages");
        packages::ensure(workspace, &stage, &[Need::new("gcc", "cc"), Need::new("g++", "c++")])?;
        packages::ensure(workspace, &stage, &[Need::new("pkg-config", "pkg-config")])?;
        if processor == Processor::I686 {
            cross::compilers(workspace, &stage, &["cc", "c++"])?;
        }
        let (package, compiler) = windows(processor);
        packages::ensure(workspace, &stage, &[Need::new(package, format!("{compiler}-gcc"))])?;
        stage.clear();
    }
    let (name, folder) = match processor {
        Processor::X86_64 => ("c", "c-prefix"),
        Processor::I686 => ("c i686", "c-prefix-i686"),
    };
    let prefix = workspace.out.join(folder);
    if prefix.exists() {
        fs::remove_dir_all(&prefix).with_context(|| format!("cannot remove {}", prefix.display()))?;
    }
    install::install(workspace, progress, &prefix, None)?;
    if processor == Processor::I686 {
        install::install_i686(workspace, progress, &prefix, None)?;
    }
    let stage = progress.stage(name);
    let user = User { workspace, prefix, processor };
    for (language, standards) in [("c", &C[..]), ("c++", &CPP[..])] {
        for standard in standards {
            user.header(language, standard)?;
            user.detours_header(language, standard)?;
        }
    }
    stage.note("misuse");
    user.misuse()?;
    user.detours_misuse()?;
    let examples = workspace.root.join("examples/c");
    let tests = workspace.root.join("crates/ffi/tests/c");
    let mut programs = 0;
    let sources = [
        (&examples, "getenv"),
        (&examples, "set"),
        (&examples, "plan"),
        (&examples, "import"),
        (&tests, "behaviour"),
        (&tests, "pointers"),
    ];
    for (folder, name) in sources {
        let source = folder.join(format!("{name}.c"));
        for how in [How::Shared, How::Static] {
            stage.note(name);
            let program = user.compile(&source, how)?;
            user.run(&program)?;
            programs += 1;
        }
    }
    stage.note("vtable");
    user.virtual_functions(&tests)?;
    programs += 1;
    stage.note("a PE image");
    programs += user.pe_image(&tests.join("pe"))?;
    stage.note("detours");
    programs += user.detours(&tests.join("detours"))?;
    stage.note("a library");
    user.run_with(&examples.join("shared.cpp"))?;
    user.run_slept(&examples.join("slept.cpp"))?;
    let modules = workspace.kernel_sources().join("examples");
    is_short(&examples.join("getenv.c"), 25)?;
    is_short(&modules.join("hello.c"), 60)?;
    is_short(&modules.join("static_trampoline.c"), 60)?;
    stage.clear();
    Ok(format!("{} standards, {programs} programs, two libraries", C.len() + CPP.len()))
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
    prefix: PathBuf,
    /// For whom the programs are.
    processor: Processor,
}

impl User<'_> {
    /// Where the libraries are.
    fn libraries(&self) -> PathBuf {
        self.prefix.join(self.processor.library_folder())
    }

    /// A compiler: `cc` or `c++`.
    fn compiler(&self, name: &str) -> Command {
        let mut compiler = Command::new(name);
        compiler.args(self.processor.flags());
        compiler
    }

    /// What `pkg-config` answers.
    fn flags(&self, question: &[&str]) -> Result<Vec<String>> {
        self.flags_of("kdetour", question)
    }

    fn flags_of(&self, package: &str, question: &[&str]) -> Result<Vec<String>> {
        let mut command = Command::new("pkg-config");
        command.args(question).arg(package).env("PKG_CONFIG_PATH", self.libraries().join("pkgconfig"));
        Ok(query(&mut command)?.split_whitespace().map(str::to_owned).collect())
    }

    fn step(&self, what: &str, command: &mut Command) -> Result<String> {
        Step {
            what,
            log: self.workspace.log(match self.processor {
                Processor::X86_64 => "suite-c",
                Processor::I686 => "suite-i686-c",
            }),
            advice: "it is what users do with the installed files",
        }
        .run(command)
    }

    /// The header alone, and twice.
    fn header(&self, language: &str, standard: &str) -> Result<()> {
        let source = self.prefix.join("header");
        let text = "#include <kdetour.h>\n#include <kdetour.h>\nKDETOUR(f, int, (int a), (a)) { return f_original(a); }\n\
                    KDETOUR_VOID(g, (void), ()) { g_original(); }\n\
                    int main(void) { return kdetour_attach(&f_detour) || kdetour_detach(&g_detour); }\n";
        fs::write(&source, text).with_context(|| format!("cannot write {}", source.display()))?;
        let mut compiler = self.compiler(if language == "c" { "cc" } else { "c++" });
        compiler.args(["-x", language, &format!("-std={standard}"), "-fsyntax-only"]).args(STRICT);
        compiler.args(self.flags(&["--cflags"])?).arg(&source);
        self.step(&format!("compile the header as {standard}"), &mut compiler).map(drop)
    }

    /// What is to be told by the compiler.
    fn misuse(&self) -> Result<()> {
        let wrong = [
            ("a body of another type", "KDETOUR(f, int, (int a), (a)) { return f_original(a, 1); }"),
            (
                "no such protocol",
                "int f(struct kdetour **s) { return kdetour_attach_all(s, 1, KDETOUR_PARALLEL, 0); }",
            ),
            (
                "a detour in place of a set",
                "int f(struct kdetour *s) { return kdetour_attach_all(s, 1, KDETOUR_LIVE, 0); }",
            ),
            ("void by the macro for values", "KDETOUR(f, void, (void), ()) { f_original(); }"),
        ];
        let source = self.prefix.join("wrong.c");
        for (what, text) in wrong {
            fs::write(&source, format!("#include <kdetour.h>\n{text}\n"))?;
            let mut compiler = self.compiler("cc");
            compiler
                .args(["-std=c11", "-fsyntax-only"])
                .args(STRICT)
                .args(self.flags(&["--cflags"])?)
                .arg(&source);
            let output = compiler.output().context("there is no C compiler")?;
            if output.status.success() {
                bail!("the compiler does not complain: {what}");
            }
        }
        Ok(())
    }

    fn compile(&self, source: &Path, how: How) -> Result<PathBuf> {
        let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let program = self.prefix.join(format!("{name}-{how:?}"));
        let mut compiler = self.compiler("cc");
        compiler.args(["-std=c89", "-O2", "-g"]).args(STRICT).arg("-Wno-long-long");
        compiler.args(self.flags(&["--cflags"])?).arg("-o").arg(&program).arg(source);
        self.link(&mut compiler, how)?;
        self.step(&format!("compile {name}, {how:?}"), &mut compiler)?;
        Ok(program)
    }

    fn link(&self, compiler: &mut Command, how: How) -> Result<()> {
        match how {
            How::Shared => compiler.args(self.flags(&["--libs"])?),
            How::Static => {
                compiler.arg(self.libraries().join("libkdetour.a"));
                compiler.args(self.flags(&["--libs", "--static"])?.iter().filter(|flag| *flag != "-lkdetour"))
            }
        };
        compiler.arg("-lpthread");
        Ok(())
    }

    fn run(&self, program: &Path) -> Result<()> {
        self.ran(&mut Command::new(program))
    }

    /// Runs a program whose lines say what holds and what does not.
    fn ran(&self, command: &mut Command) -> Result<()> {
        command.env("LD_LIBRARY_PATH", self.libraries());
        let what = command.get_program().to_string_lossy().into_owned();
        let said = self.step(&format!("run {what}"), command)?;
        match said.lines().find(|line| line.starts_with("FAIL")) {
            Some(line) => bail!("{what}: {line}"),
            None => Ok(()),
        }
    }

    /// A table of virtual functions, as the compiler lays it out.
    fn virtual_functions(&self, folder: &Path) -> Result<()> {
        let program = self.prefix.join("vtable");
        let mut compiler = self.compiler("c++");
        compiler.args(["-std=c++11", "-O2"]).args(STRICT).args(self.flags(&["--cflags"])?);
        compiler.arg("-o").arg(&program).arg(folder.join("vtable.cpp")).args(self.flags(&["--libs"])?);
        self.step("compile vtable.cpp", &mut compiler)?;
        self.run(&program)
    }

    /// A library for Windows, as a compiler and a linker for Windows make it, in a program that loads it by itself; how many programs.
    fn pe_image(&self, folder: &Path) -> Result<usize> {
        let (_, tools) = windows(self.processor);
        let (prices, library) = (self.prefix.join("libprices.a"), self.prefix.join("shop.dll"));
        let mut imports = Command::new(format!("{tools}-dlltool"));
        imports.arg("-d").arg(folder.join("prices.def")).arg("-l").arg(&prices);
        self.step("make the list of what prices.dll exports", &mut imports)?;
        let mut compiler = Command::new(format!("{tools}-gcc"));
        compiler.args(["-O2", "-Wall", "-Wextra", "-Werror", "-nostdlib", "-shared"]);
        compiler.arg(match self.processor {
            Processor::X86_64 => "-Wl,-e,start",
            Processor::I686 => "-Wl,-e,_start",
        });
        compiler
            .arg("-o")
            .arg(&library)
            .args(["shop.c", "shop.def"].map(|name| folder.join(name)))
            .arg(&prices);
        self.step("compile shop.dll", &mut compiler)?;
        let ways = [How::Shared, How::Static];
        for how in ways {
            let program = self.compile(&folder.join("loaded.c"), how)?;
            self.ran(Command::new(&program).arg(&library))?;
        }
        Ok(ways.len())
    }

    /// `windows.h` and `detours.h` alone, and twice; as little as a program for Detours uses of them.
    fn detours_header(&self, language: &str, standard: &str) -> Result<()> {
        let source = self.prefix.join("detours-header");
        let text = "#include <windows.h>\n#include <detours.h>\n#include <detours.h>\n#include <windows.h>\n\
                    static BOOL CALLBACK file(PVOID c, HMODULE m, LPCSTR n) { return c && m && n; }\n\
                    static BOOL CALLBACK slot(PVOID c, DWORD o, LPCSTR n, PVOID *s) { return c && n && s && !o; }\n\
                    int main(void) { PVOID p = NULL, t; LONG x; DWORD z; Sleep(0); SetLastError(0);\n\
                    return DetourTransactionBegin() + DetourAttach(&p, (PVOID)&x) + DetourTransactionCommit()\n\
                    + !DetourCopyInstruction(NULL, NULL, p, &t, &x) + !DetourAllocateRegionWithinJumpBounds(p, &z)\n\
                    + DetourEnumerateImportsEx(GetModuleHandleA(NULL), p, file, slot) + (int)GetLastError(); }\n";
        fs::write(&source, text).with_context(|| format!("cannot write {}", source.display()))?;
        let mut compiler = self.compiler(if language == "c" { "cc" } else { "c++" });
        compiler.args(["-x", language, &format!("-std={standard}"), "-fsyntax-only"]).args(STRICT);
        compiler.args(self.flags_of("kdetour-detours", &["--cflags"])?).arg(&source);
        self.step(&format!("compile detours.h as {standard}"), &mut compiler).map(drop)
    }

    /// What the compiler tells of `detours.h`'s calls; and what is not offered is not declared.
    fn detours_misuse(&self) -> Result<()> {
        let wrong = [
            ("c", "a function in place of a pointer to it", "LONG f(void) { return DetourAttach(main, 0); }"),
            (
                "c",
                "a pointer to a function for a pointer to anything",
                "static int (*g)(void); LONG f(void) { return DetourAttach(&g, (PVOID)main); }",
            ),
            (
                "c",
                "a callback that answers nothing",
                "static void g(PVOID c, ULONG o, LPCSTR n, PVOID p) \
              { (void)c, (void)o, (void)n, (void)p; } BOOL f(void) { return DetourEnumerateExports(0, 0, g); }",
            ),
            (
                "c",
                "a callback for slots in place of one for functions",
                "static BOOL h(PVOID c, HMODULE m, LPCSTR n) \
              { return c && m && n; } static BOOL g(PVOID c, DWORD o, LPCSTR n, PVOID *p) { return c && o && n && p; }\n\
              BOOL f(void) { return DetourEnumerateImports(0, 0, h, g); }",
            ),
            ("c", "a number in place of a module", "ULONG f(void) { return DetourGetModuleSize(7); }"),
            ("c", "payloads", "int f(void) { DWORD n; return !DetourFindPayload(0, 0, &n); }"),
            ("c", "another process", "int f(void) { return DetourCreateProcessWithDllEx(0); }"),
            (
                "c++",
                "a detour of another type",
                "static int (*t)(int); static int d(long) { return 0; }\n\
              LONG f() { return DetourAttach(&t, d); }",
            ),
        ];
        for (language, what, text) in wrong {
            let source = self.prefix.join("wrong");
            let text = format!("#include <windows.h>\n#include <detours.h>\nint main(void);\n{text}\n");
            fs::write(&source, text)?;
            let mut compiler = self.compiler(if language == "c" { "cc" } else { "c++" });
            compiler
                .args(["-x", language, "-fsyntax-only", "-Wno-unused-function"])
                .args(STRICT)
                .args(self.flags_of("kdetour-detours", &["--cflags"])?)
                .arg(&source);
            let output = compiler.output().context("there is no C compiler")?;
            if output.status.success() {
                bail!("the compiler does not complain: {what}");
            }
        }
        Ok(())
    }

    /// Programs that use `detours.h`; how many.
    fn detours(&self, folder: &Path) -> Result<usize> {
        const PLAIN: &[&str] = &[];
        let library = self.prefix.join("interpose.so");
        let mut compiler = self.compiler("cc");
        compiler.args(["-O2", "-shared", "-fPIC", "-Wl,-soname,interpose.so", "-o"]).arg(&library);
        self.step("compile interpose.so", compiler.arg(folder.join("interpose.c")))?;
        let c = ["transactions", "modules", "exports", "hostile", "instruction", "region"];
        let mut programs: Vec<(String, &str, &str, &[&str])> =
            c.iter().map(|name| (format!("{name}.c"), "gnu11", "cc", PLAIN)).collect();
        // In every way in which a program's functions are bound.
        let bound: [&[&str]; 4] = [
            &["-Wl,-z,lazy", "-DLAZY"],
            &["-Wl,-z,now,-z,relro", "-DNOW"],
            &["-fno-plt", "-Wl,-z,now"],
            &["-no-pie", "-fno-pic", "-Wl,-z,lazy", "-DLAZY", "-DFIXED"],
        ];
        programs.extend(bound.map(|more| ("imports.c".to_owned(), "gnu11", "cc", more)));
        programs.extend(
            ["c++11", "c++17", "c++20"].map(|standard| ("sample.cpp".to_owned(), standard, "c++", PLAIN)),
        );
        let mut count = 0;
        for (source, standard, compiler, more) in &programs {
            for how in [How::Shared, How::Static] {
                let program = self.prefix.join(format!("detours-{count}"));
                let mut command = self.compiler(compiler);
                command.args([
                    &format!("-std={standard}"),
                    "-O2",
                    "-rdynamic",
                    "-Wall",
                    "-Wextra",
                    "-Werror",
                ]);
                command.args(*more).arg("-o").arg(&program).arg(folder.join(source));
                command.args(self.flags_of("kdetour-detours", &["--cflags"])?);
                self.link(&mut command, how)?;
                self.step(&format!("compile {source} as {standard}, {how:?} {more:?}"), &mut command)?;
                self.run(&program)?;
                if source == "imports.c" {
                    let mut command = Command::new(&program);
                    command.arg("interposed").env("LD_PRELOAD", &library);
                    self.ran(&mut command)?;
                }
                count += 1;
            }
        }
        Ok(count)
    }

    /// Hooks that were written for Detours, put into a program.
    fn run_slept(&self, source: &Path) -> Result<()> {
        let library = self.prefix.join("slept.so");
        let flags = self.flags_of("kdetour-detours", &["--cflags", "--libs"])?;
        let mut compiler = self.compiler("c++");
        compiler.args(["-std=c++11", "-O2", "-shared", "-fPIC"]).args(STRICT).arg("-o").arg(&library);
        self.step("compile slept.so", compiler.arg(source).args(flags))?;
        let said = self.run_with_in(&library, &["sleep", "0.05"], SLEEPS)?;
        let slept = said.lines().find_map(|line| line.strip_prefix("slept: detached (0), 1 calls slept "));
        let slept = slept.and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        let imported = said.contains("slept: the program imports nanosleep of libc.so.6\n");
        match slept {
            Some(50_000..) if imported && said.contains("slept: attached (0)\n") => Ok(()),
            _ => bail!("the library did not see it sleep: {said}"),
        }
    }

    /// A library in C++, put into a program that knows nothing of it.
    fn run_with(&self, source: &Path) -> Result<()> {
        let library = self.prefix.join("count.so");
        let mut compiler = self.compiler("c++");
        compiler
            .args(["-std=c++11", "-O2", "-shared", "-fPIC"])
            .args(STRICT)
            .args(self.flags(&["--cflags"])?);
        compiler.arg("-o").arg(&library).arg(source).args(self.flags(&["--libs"])?);
        self.step("compile a library", &mut compiler)?;
        let said = self.run_with_in(&library, &["ls", "/"], ALLOCATES)?;
        let counted =
            |line: &str| line.strip_prefix("malloc was called ")?.split(' ').next()?.parse::<u64>().ok();
        match said.lines().find_map(counted) {
            Some(calls) if calls > 0 => Ok(()),
            _ => bail!("the library did not count: {said}"),
        }
    }

    /// Puts a library into a program of the system's; into one of these lines, where the system has none for the processor.
    fn run_with_in(&self, library: &Path, of_the_system: &[&str], lines: &str) -> Result<String> {
        let mut command = Command::new(self.prefix.join("bin/kdetour"));
        command.args(["run", "--with"]).arg(library).arg("--").env("LD_LIBRARY_PATH", self.libraries());
        match self.processor {
            Processor::X86_64 => command.args(of_the_system),
            Processor::I686 => {
                let program = self.prefix.join("stranger");
                let source = program.with_extension("c");
                fs::write(&source, lines).with_context(|| format!("cannot write {}", source.display()))?;
                let mut compiler = self.compiler("cc");
                compiler.args(["-O2", "-fno-builtin", "-o"]).arg(&program).arg(&source);
                self.step("compile a program that knows nothing of kdetour", &mut compiler)?;
                command.arg(program)
            }
        };
        self.step("run a program with a library in it", &mut command)
    }
}

/// The package that has a compiler for Windows, and what the names of its tools begin with.
const fn windows(processor: Processor) -> (&'static str, &'static str) {
    match processor {
        Processor::X86_64 => ("gcc-mingw-w64-x86-64-posix", "x86_64-w64-mingw32"),
        Processor::I686 => ("gcc-mingw-w64-i686-posix", "i686-w64-mingw32"),
    }
}

/// A program that does what `sleep 0.05` does.
const SLEEPS: &str = "#include <time.h>\n\
                      int main(void) { struct timespec t = {0, 50000000}; return nanosleep(&t, 0); }\n";
/// One that allocates, as `ls` does.
const ALLOCATES: &str = "#include <stdlib.h>\n\
                         int main(void) { void *p = malloc(5); free(p); return !p; }\n";

/// What is promised of the least program and the least module that work.
fn is_short(source: &Path, most: usize) -> Result<()> {
    let lines = fs::read_to_string(source)?.lines().count();
    if lines > most {
        bail!("{} has {lines} lines; {most} are promised", source.display());
    }
    Ok(())
}
