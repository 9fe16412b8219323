//! A program started with a library in it.

use crate::command::{Run, kdetour, libc};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Says that it is in a program, before that runs.
const LIBRARY: &str = r#"
#include <unistd.h>
__attribute__((constructor)) static void loaded(void) { if (write(2, "loaded\n", 7) != 7) _exit(99); }
"#;
const PROGRAM: &str = r"
int main(int count, char **arguments) { (void)arguments; return 40 + count; }
";

/// A compiler is where Rust is: it links by it.
fn compile(folder: &TempDir, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let (from, to) = (folder.path().join(format!("{name}.c")), folder.path().join(name));
    fs::write(&from, source).unwrap();
    let output =
        Command::new("cc").args(["-o".as_ref(), to.as_os_str(), from.as_os_str()]).args(flags).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    to
}

fn library(folder: &TempDir) -> PathBuf {
    compile(folder, "library.so", LIBRARY, &["-shared", "-fPIC"])
}

fn run(library: &Path, program: &Path, arguments: &[&str]) -> Run {
    let mut all: Vec<OsString> =
        vec!["run".into(), "--with".into(), library.into(), "--".into(), program.into()];
    all.extend(arguments.iter().map(OsString::from));
    kdetour(all)
}

/// What it says instead of starting the program.
fn refused(library: &Path, program: &Path) -> String {
    let run = run(library, program, &[]);
    assert_eq!(run.code, 125, "{}", run.stderr);
    assert!(!run.stderr.contains("loaded\n"), "{}", run.stderr);
    run.stderr
}

#[test]
fn the_library_is_in_the_program_which_is_as_it_would_be() {
    let folder = TempDir::new().unwrap();
    let library = library(&folder);
    let program = compile(&folder, "program", PROGRAM, &[]);
    let ran = run(&library, &program, &["--with", "-x", "--"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (44, "loaded\n"));
    // By its name, and its environment is there.
    let ran = run(&library, Path::new("sh"), &["-c", "echo $0 $LD_PRELOAD", "me"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.starts_with("me "), "{}", ran.stdout);
    assert!(ran.stdout.contains(library.to_str().unwrap()));
}

#[test]
fn a_script_is_run_by_its_interpreter_with_the_library_in_it() {
    let folder = TempDir::new().unwrap();
    let library = library(&folder);
    let script = folder.path().join("script");
    fs::write(&script, "#! /bin/sh -e\nexit 7\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let ran = run(&library, &script, &[]);
    assert_eq!((ran.code, ran.stderr.as_str()), (7, "loaded\n"));
}

#[test]
fn several_libraries_are_loaded_and_what_was_asked_for_before_as_well() {
    let folder = TempDir::new().unwrap();
    let first = library(&folder);
    let second = compile(&folder, "second.so", &LIBRARY.replace("loaded", "second"), &["-shared", "-fPIC"]);
    let program = compile(&folder, "program", PROGRAM, &[]);
    let output = Command::new(env!("CARGO_BIN_EXE_kdetour"))
        .args(["run", "--with"])
        .arg(&first)
        .arg(&program)
        .env("LD_PRELOAD", &second)
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(41), "{stderr}");
    assert!(stderr.contains("loaded\n") && stderr.contains("second\n"), "{stderr}");
    let ran = kdetour([
        "run".as_ref(),
        "--with".as_ref(),
        first.as_os_str(),
        "--with".as_ref(),
        second.as_os_str(),
        program.as_os_str(),
    ]);
    assert_eq!(ran.code, 41, "{}", ran.stderr);
    assert!(ran.stderr.contains("loaded\n") && ran.stderr.contains("second\n"), "{}", ran.stderr);
}

#[test]
fn what_no_loader_would_load_it_into_is_not_started() {
    let folder = TempDir::new().unwrap();
    let library = library(&folder);
    let bare = "void _start(void) { __asm__ volatile (\"hlt\"); }";
    let fixed = compile(&folder, "static", bare, &["-static", "-nostdlib"]);
    assert!(refused(&library, &fixed).contains("statically linked"));

    let lost = compile(&folder, "lost", PROGRAM, &["-Wl,--dynamic-linker=/no/such/loader"]);
    assert!(refused(&library, &lost).contains("its loader /no/such/loader is not there"));

    let text = folder.path().join("text");
    fs::write(&text, "just words").unwrap();
    assert!(refused(&library, &text).contains("may not be executed"));
    fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(refused(&library, &text).contains("no ELF file"));
    assert!(refused(&library, folder.path()).contains("no file"));
    assert!(refused(&library, &folder.path().join("absent")).contains("cannot run"));
    assert!(refused(&library, Path::new("no-program-has-this-name")).contains("is in PATH"));

    let script = folder.path().join("script");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(refused(&library, &script).contains("interpreter \"/no/such/interpreter\""));
    let endless = folder.path().join("endless");
    fs::write(&endless, format!("#!{}\n", endless.display())).unwrap();
    fs::set_permissions(&endless, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(refused(&library, &endless).contains("a script for a script"));
}

/// One that has somebody else's privileges: owned by another user if the test may make such a file, else setgid of a group
/// that the caller is not in at the moment.
#[test]
fn a_program_with_privileges_of_others_is_not_started() {
    let folder = TempDir::new().unwrap();
    let library = library(&folder);
    let program = compile(&folder, "program", PROGRAM, &[]);
    if std::os::unix::fs::chown(&program, Some(65_534), None).is_ok() {
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
        assert!(refused(&library, &program).contains("setuid"));
        return;
    }
    // An ordinary user has one that every system has.
    let candidates = ["/usr/bin/su", "/bin/su", "/usr/bin/passwd", "/usr/bin/newgrp", "/usr/bin/sudo"];
    let found = candidates
        .iter()
        .find(|path| fs::metadata(path).is_ok_and(|about| about.permissions().mode() & 0o4000 != 0));
    let found = found.expect("there is a setuid program to be refused");
    let said = refused(&library, Path::new(found));
    assert!(said.contains("setuid") || said.contains("cannot read"), "{said}");
}

#[test]
fn what_no_loader_would_load_is_told_before_anything_runs() {
    let folder = TempDir::new().unwrap();
    let program = compile(&folder, "program", PROGRAM, &[]);
    assert!(refused(&folder.path().join("absent.so"), &program).contains("cannot load"));
    assert!(refused(folder.path(), &program).contains("no file"));
    assert!(refused(&program, &program).contains("it is a program"));
    let object = compile(&folder, "object.o", PROGRAM, &["-c"]);
    assert!(refused(&object, &program).contains("not linked"));
    let empty = folder.path().join("empty.so");
    fs::write(&empty, "").unwrap();
    assert!(refused(&empty, &program).contains("no ELF file"));
    let cut = folder.path().join("cut.so");
    let whole = fs::read(library(&folder)).unwrap();
    for len in [16, 63, 64, 100, 4000, whole.len() / 2] {
        fs::write(&cut, &whole[..len]).unwrap();
        let said = refused(&cut, &program);
        assert!(
            said.contains("damaged") || said.contains("no ELF file") || said.contains("loader"),
            "{len}: {said}"
        );
    }
    let mut other = whole;
    // e_machine: AArch64.
    other[18..20].copy_from_slice(&183_u16.to_le_bytes());
    fs::write(&cut, &other).unwrap();
    assert!(refused(&cut, &program).contains("is for AArch64"));
}

/// A library that needs another one which is not there.
#[test]
fn what_the_library_needs_must_be_there() {
    let folder = TempDir::new().unwrap();
    let program = compile(&folder, "program", PROGRAM, &[]);
    let needed = compile(&folder, "libneeded.so", "int needed(void) { return 1; }", &["-shared", "-fPIC"]);
    let source = "int needed(void); int needs(void) { return needed(); }";
    let flags = ["-shared", "-fPIC", "-L", folder.path().to_str().unwrap(), "-lneeded"];
    let needs = compile(&folder, "needs.so", source, &flags);
    fs::remove_file(needed).unwrap();
    assert!(refused(&needs, &program).contains("libneeded.so"));
}

#[test]
fn a_path_that_ends_a_list_is_told() {
    let folder = TempDir::new().unwrap();
    let library = library(&folder);
    let program = compile(&folder, "program", PROGRAM, &[]);
    for name in ["with blank.so", "with:colon.so", "with$ORIGIN.so"] {
        let odd = folder.path().join(name);
        fs::copy(&library, &odd).unwrap();
        assert!(refused(&odd, &program).contains("cannot be handed to a loader"), "{name}");
    }
    // Links are followed.
    let link = folder.path().join("link.so");
    symlink(&library, &link).unwrap();
    assert_eq!(run(&link, &program, &[]).code, 41);
}

#[test]
fn it_asks_for_a_library_and_a_program() {
    let libc = libc();
    assert_eq!(kdetour(["run"]).code, 1);
    assert_eq!(kdetour(["run", "--with", libc.to_str().unwrap()]).code, 1);
    assert_eq!(kdetour(["run", "true"]).code, 1);
}
