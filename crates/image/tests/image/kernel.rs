//! A distribution's kernels: those that `KDETOUR_VMLINUZ` names, as `cargo xtask test` does.

use kdetour_image::{Error, Image, Kind, Options, Source};
use kdetour_plan::{Owner, Survey};
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn kernels() -> Vec<PathBuf> {
    let given = std::env::var_os("KDETOUR_VMLINUZ").unwrap();
    std::env::split_paths(&given).collect()
}

#[test]
#[ignore = "needs kernels: the suite `images` of `cargo xtask test --all` runs it"]
fn every_function_of_a_kernel_with_its_sites() {
    for path in kernels() {
        let image = Image::open(&path).unwrap();
        assert_eq!(image.kind(), Kind::Kernel);
        let count = image.functions().len();
        assert!(count > 30_000, "{}: {image:?}", path.display());
        assert!(image.functions().iter().all(|f| f.source() == Source::Kallsyms && f.length().is_some()));

        let read = image.function_by_name("vfs_read").unwrap();
        let facts = image.facts(read);
        let site = facts.context().fentry.unwrap();
        // call __fentry__
        assert_eq!(image.bytes_at(site)[0], 0xe8);
        assert!(site == read.address() || site == read.address() + 4);

        let with_site =
            image.functions().iter().filter(|f| image.facts(f).context().fentry.is_some()).count();
        assert!(with_site * 10 > count * 7, "{with_site} of {count} have an ftrace site");
        for owner in [Owner::ExceptionTable, Owner::JumpLabel, Owner::StaticCall, Owner::BugTable] {
            let any = image.functions().iter().any(|function| {
                image.facts(function).context().reserved.iter().any(|reserved| reserved.owner == owner)
            });
            assert!(any, "{}: nothing is reserved for {owner:?}", path.display());
        }
        let rewritten = image.functions().iter().filter(|f| !image.facts(f).context().rewritten.is_empty());
        assert!(rewritten.count() > 1000);
        let accepted = image.functions().iter().filter(|function| {
            let facts = image.facts(function);
            Survey::of(&image.code(function), &facts.context()).is_ok()
        });
        assert!(accepted.count() * 100 > count * 95);
    }
}

#[test]
#[ignore = "needs kernels: the suite `images` of `cargo xtask test --all` runs it"]
fn the_text_of_a_running_kernels_kallsyms_serves_as_well() {
    for path in kernels() {
        let own = Image::open(&path).unwrap();
        // As KASLR would load it 16 MiB higher, with a module.
        let mut text = String::new();
        let stext = own.functions().iter().map(|function| function.address()).min().unwrap() & !0x1f_ffff;
        writeln!(text, "0000000000000000 A fixed_percpu_data").unwrap();
        writeln!(text, "{:016x} T _stext", stext + 0x100_0000).unwrap();
        let mut end = 0;
        for function in own.functions() {
            end = function.next_symbol().unwrap_or(0).max(end);
            writeln!(text, "{:016x} t {}", function.address() + 0x100_0000, own.name(function)).unwrap();
        }
        writeln!(text, "{:016x} T _etext", end + 0x100_0000).unwrap();
        writeln!(text, "ffffffffc0000000 t kd_attach\t[kdetour]").unwrap();
        let options = Options { kallsyms: Some(text.clone()) };
        let given = Image::open_with(&path, &options).unwrap();
        // The list made here has functions only: what stood between two is missing, and may make them one.
        let missing = own.functions().iter().filter(|own| given.function_at(own.address()).is_none());
        assert!(missing.count() < 10);
        assert!(given.functions().iter().all(|given| own.function_at(given.address()).is_some()));
        assert!(given.functions().iter().all(|function| function.source() == Source::SymbolFile));

        let hidden = Options { kallsyms: Some("0 T _stext\n0 T _etext\n".into()) };
        assert!(matches!(Image::open_with(&path, &hidden), Err(Error::HiddenAddresses)));
        // Another build: everything behind the first thousand functions is sixteen bytes further.
        let moved = text.lines().enumerate().fold(String::new(), |mut moved, (number, line)| {
            match (number > 1000 && !line.contains("_etext"), line.split_once(' ')) {
                (true, Some((address, rest))) => {
                    let address = u64::from_str_radix(address, 16).unwrap() + 16;
                    writeln!(moved, "{address:016x} {rest}").unwrap();
                }
                _ => writeln!(moved, "{line}").unwrap(),
            }
            moved
        });
        let moved = Options { kallsyms: Some(moved) };
        assert!(matches!(Image::open_with(&path, &moved), Err(Error::OtherKernel)));
        let other = Options { kallsyms: Some("ffffffff81000123 T _stext\n".into()) };
        assert!(matches!(Image::open_with(&path, &other), Err(Error::OtherKernel)));
    }
}

#[test]
#[ignore = "needs kernels: the suite `images` of `cargo xtask test --all` runs it"]
fn modules_are_laid_out() {
    let mut seen = 0;
    for path in kernels() {
        let Some(root) = path.parent().and_then(Path::parent) else { continue };
        let Some(release) = path.file_name().and_then(|name| name.to_str()?.strip_prefix("vmlinuz-")) else {
            continue;
        };
        let mut modules = Vec::new();
        collect(&root.join("lib/modules").join(release), &mut modules);
        for path in modules.iter().take(40) {
            match Image::open(path) {
                Ok(image) => {
                    seen += 1;
                    assert_eq!(image.kind(), Kind::Object);
                    assert!(
                        image.functions().iter().all(|f| image.name(f) != "init_module"),
                        "{}",
                        path.display()
                    );
                }
                // A module may have nothing but an init function.
                Err(error) => assert!(matches!(error, Error::NoCode), "{}: {error}", path.display()),
            }
        }
    }
    assert!(seen > 0, "no module was beside the kernels");
}

fn collect(folder: &Path, modules: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, modules);
        } else if path.extension().is_some_and(|extension| extension == "ko" || extension == "xz") {
            modules.push(path);
        }
    }
}
