//! The libraries for programs on Windows: `libkdetour.a`, and `kdetour.dll` with the import library `libkdetour.dll.a`.
//!
//! rustc makes the static library. The DLL is linked of that by mingw, with the functions of `kdetour.h` and `detours.h` as its
//! exports: rustc would call it by the name of the crate, inside too.
//!
//! In 32-bit code nothing but what compilers write for their unwinder tells where a function ends, and a program registers that with its libgcc: with
//! the one in a DLL, if a DLL needs that. So `kdetour.dll` shares it with the program, and it is installed beside; with a libgcc of its own it would
//! know no function of the program, and a detach could not tell who is inside.

use super::{Destination, VERSION, step, target};
use crate::cross::{Cross, Target};
use crate::progress::Stage;
use crate::shell::{Step, query, write_if_changed};
use crate::workspace::Workspace;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the static library needs besides: what `rustc --print native-static-libs` says.
const NEEDS: [&str; 6] = ["-lkernel32", "-lntdll", "-luserenv", "-lws2_32", "-ldbghelp", "-lgcc_eh"];

/// DLLs of the compiler's that `kdetour.dll` needs.
pub(crate) const fn beside(target: Target) -> &'static [&'static str] {
    match target {
        // The former needs the latter.
        Target::I686Windows => &["libgcc_s_dw2-1.dll", "libwinpthread-1.dll"],
        _ => &[],
    }
}

/// Where the compiler has a file of its own.
fn of_compiler(target: Target, name: &str) -> Result<PathBuf> {
    let found =
        query(Command::new(format!("{}-gcc", folder(target))).arg(format!("-print-file-name={name}")))?;
    let path = PathBuf::from(found.trim());
    // What it has not it answers as it was asked.
    if !path.is_absolute() {
        bail!(
            "{}-gcc has no {name}: install the one with threads of POSIX' kind, {}",
            folder(target),
            target.mingw().package
        );
    }
    Ok(path)
}

/// As compilers for Windows call what they compile for, and the folders for that.
pub(crate) const fn folder(target: Target) -> &'static str {
    match target {
        Target::I686Windows => "i686-w64-mingw32",
        _ => "x86_64-w64-mingw32",
    }
}

/// Builds and installs everything for one kind of programs.
pub(super) fn install(
    workspace: &Workspace,
    stage: &Stage,
    which: Target,
    cross: &Cross,
    into: &mut Destination<'_>,
) -> Result<()> {
    let built = build(workspace, stage, which, cross)?;
    let below = folder(which);
    let headers = workspace.root.join("crates/ffi/include");
    into.put(&headers.join("kdetour.h"), &format!("{below}/include/kdetour.h"), 0o644)?;
    // Beside it: windows.h is the compiler's own.
    into.put(&headers.join("detours/detours.h"), &format!("{below}/include/detours.h"), 0o644)?;
    into.put(&built.fixed, &format!("{below}/lib/libkdetour.a"), 0o644)?;
    into.put(&built.imports, &format!("{below}/lib/libkdetour.dll.a"), 0o644)?;
    into.put(&built.shared, &format!("{below}/bin/kdetour.dll"), 0o755)?;
    for name in beside(which) {
        into.put(&of_compiler(which, name)?, &format!("{below}/bin/{name}"), 0o755)?;
    }
    for (name, text) in [("kdetour", pkg_config(into.prefix, below)), ("kdetour-detours", detours())] {
        let file = into.root.join(format!("{below}/lib/pkgconfig/{name}.pc"));
        super::write(&file, &text, 0o644)?;
        into.files.push(file);
    }
    Ok(())
}

/// What was built.
struct Libraries {
    fixed: PathBuf,
    shared: PathBuf,
    imports: PathBuf,
}

fn build(workspace: &Workspace, stage: &Stage, which: Target, cross: &Cross) -> Result<Libraries> {
    let what = "the static library for Windows";
    stage.note(what);
    let mut cargo = cross.cargo("rustc", &[]);
    cargo.args(["--release", "-p", "kdetour-ffi", "--lib", "--no-default-features"]);
    cargo.args(["--features", "windows-process", "--crate-type", "staticlib"]);
    step(workspace, what, &mut cargo, &[])?;
    let release = target(workspace).join(cross.folder()).join("release");
    let fixed = release.join("libkdetour_ffi.a");
    stage.note("the DLL");
    let (shared, imports) = (release.join("kdetour.dll"), release.join("libkdetour.dll.a"));
    let exports = release.join("kdetour.def");
    write_if_changed(&exports, definition(&exported(&fixed, which)?).as_bytes())?;
    let mut linker = Command::new(format!("{}-gcc", folder(which)));
    linker.args(["-shared", "-s", "-o"]).args([&shared, &exports, &fixed]);
    // Who looks for a function by its name knows it without the length of its arguments.
    linker.arg("-Wl,--add-stdcall-alias");
    linker.arg(format!("-Wl,--out-implib,{}", imports.display()));
    match beside(which) {
        [] => linker.arg("-static-libgcc").args(NEEDS),
        _ => linker.arg("-shared-libgcc").args(NEEDS.iter().filter(|need| **need != "-lgcc_eh")),
    };
    Step {
        what: "link kdetour.dll",
        log: workspace.log("install-windows"),
        advice: "what the static library needs besides is in xtask/src/install/windows.rs",
    }
    .run(&mut linker)?;
    Ok(Libraries { fixed, shared, imports })
}

/// The functions for C that a static library has, as the linker calls them: in 32-bit code those that take their arguments off the stack say how many
/// bytes these are.
fn exported(library: &Path, which: Target) -> Result<Vec<String>> {
    let mut nm = Command::new(format!("{}-nm", folder(which)));
    let listed = query(nm.args(["--extern-only", "--defined-only", "--no-sort"]).arg(library))?;
    let mut names: Vec<String> = listed.lines().filter_map(|line| function(line, which)).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        bail!("{} has no function for C", library.display());
    }
    Ok(names)
}

/// `0000000000000000 T DetourAttach`; in 32-bit code all names have a `_` in front.
fn function(line: &str, which: Target) -> Option<String> {
    let name = line.split_once(" T ")?.1.trim();
    let name = if which == Target::I686Windows { name.strip_prefix('_')? } else { name };
    let is_ours = ["kdetour_", "Detour"].iter().any(|begin| name.starts_with(begin));
    // By those the host's assembler is known to its Rust.
    (is_ours && !name.starts_with("kdetour_windows_process_")).then(|| name.to_owned())
}

fn definition(names: &[String]) -> String {
    let exports: String = names.iter().map(|name| format!("    {name}\n")).collect();
    format!("LIBRARY kdetour.dll\nEXPORTS\n{exports}")
}

fn pkg_config(prefix: &Path, below: &str) -> String {
    format!(
        "prefix={}/{below}\n\
         includedir=${{prefix}}/include\n\
         libdir=${{prefix}}/lib\n\
         \n\
         Name: kdetour\n\
         Description: Detours of functions of running code\n\
         Version: {VERSION}\n\
         Cflags: -I${{includedir}}\n\
         Libs: -L${{libdir}} -lkdetour\n\
         Libs.private: {}\n",
        prefix.display(),
        NEEDS.join(" ")
    )
}

/// So that a program for both systems asks for one name: `detours.h` is beside `kdetour.h` here.
fn detours() -> String {
    format!(
        "Name: kdetour-detours\n\
         Description: The calls of Microsoft Detours\n\
         Version: {VERSION}\n\
         Requires: kdetour\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_for_c_are_found_by_their_names() {
        let found = |line, which| function(line, which);
        let both = [Target::X86_64Windows, Target::I686Windows];
        assert_eq!(found("0000000000000000 T DetourAttach", both[0]), Some("DetourAttach".to_owned()));
        assert_eq!(found("00000000 T _DetourAttach@8", both[1]), Some("DetourAttach@8".to_owned()));
        assert_eq!(found("00000000 T _kdetour_find", both[1]), Some("kdetour_find".to_owned()));
        for line in [
            "00000000 T _ZN4core3fmt",
            "00000000 D kdetour_data",
            "kdetour_ffi-1.o:",
            "         U DetourAttach",
            "00000000 T _kdetour_windows_process_write",
        ] {
            assert_eq!(both.map(|which| function(line, which)), [None, None], "{line}");
        }
        assert_eq!(definition(&["a".to_owned()]), "LIBRARY kdetour.dll\nEXPORTS\n    a\n");
    }
}
