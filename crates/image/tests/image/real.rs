//! Files of the machine that the test runs on.

use kdetour_image::{Function, Image, Kind, Source};
use kdetour_plan::Survey;

/// The C library that this test is linked to, or that the environment variable `KDETOUR_LIBC` names: glibc's.
fn libc() -> Vec<u8> {
    if let Some(path) = std::env::var_os("KDETOUR_LIBC") {
        return std::fs::read(path).unwrap();
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let path =
        maps.lines().find_map(|line| line.split_whitespace().last().filter(|path| path.contains("libc.so")));
    std::fs::read(path.unwrap()).unwrap()
}

/// The same without section headers, as `sstrip` or `llvm-strip --strip-sections` leave it.
fn without_sections(mut file: Vec<u8>) -> Vec<u8> {
    let is_64 = file[4] == 2; // EI_CLASS
    // e_shoff; e_shnum and e_shstrndx.
    let fields = if is_64 { [40..48, 60..64] } else { [32..36, 48..52] };
    fields.into_iter().for_each(|field| file[field].fill(0));
    file
}

#[test]
#[cfg_attr(windows, ignore = "reads files of Linux: the suite `windows` of `cargo xtask test` has them")]
fn the_c_library_is_read() {
    let image = Image::parse(libc()).unwrap();
    assert_eq!(image.kind(), Kind::Elf);
    assert!(image.functions().len() > 2000, "{image:?}");
    for name in ["malloc", "memcpy", "pthread_create", "qsort"] {
        let function = image.function_by_name(name).unwrap();
        assert!(function.length().is_some_and(|length| length > 0), "{name}");
        assert!(image.code(function).bytes().len() >= 64);
        assert_eq!(
            image.function_around(function.address()).map(Function::address),
            Some(function.address())
        );
    }
    // glibc has functions in assembly, with unwind information, that no symbol is left of.
    assert!(image.functions().iter().any(|function| function.source() == Source::EhFrame));
    let accepted = image.functions().iter().filter(|function| {
        let facts = image.facts(function);
        Survey::of(&image.code(function), &facts.context()).is_ok()
    });
    let accepted = accepted.count();
    assert!(accepted * 100 > image.functions().len() * 98, "{accepted} of {}", image.functions().len());
}

#[test]
#[cfg_attr(windows, ignore = "reads files of Linux: the suite `windows` of `cargo xtask test` has them")]
fn the_same_functions_without_section_headers() {
    let file = libc();
    let whole = Image::parse(file.clone()).unwrap();
    let stripped = Image::parse(without_sections(file)).unwrap();
    // What is in .symtab is lost, but a distribution strips it anyway.
    let names = |image: &Image| -> Vec<String> {
        let exported = ["malloc", "free", "open", "printf", "qsort", "memcpy"];
        exported.iter().map(|name| format!("{:?}", image.function_by_name(name))).collect()
    };
    assert_eq!(names(&whole).iter().filter(|name| name.starts_with("Some")).count(), 6);
    let addresses = |image: &Image| -> Vec<(u64, Option<u64>)> {
        let found = image.functions().iter().filter(|function| function.source() != Source::Entry);
        found.map(|function| (function.address(), function.length())).collect()
    };
    let (whole, stripped) = (addresses(&whole), addresses(&stripped));
    let missing = whole.iter().filter(|function| !stripped.contains(function)).count();
    let more = stripped.iter().filter(|function| !whole.contains(function)).count();
    assert!(missing + more <= whole.len() / 200, "{missing} missing, {more} more of {}", whole.len());
}

#[test]
fn the_test_itself_has_its_own_symbols() {
    let image = Image::open(std::env::current_exe().unwrap()).unwrap();
    let function =
        image.functions().iter().find(|f| image.name(f).contains("the_test_itself_has_its_own_symbols"));
    assert!(function.is_some_and(|function| function.source() == Source::Symbol));
    // Rust's unwinding needs landing pads; they are inside functions. A PE file tells of none.
    let pads = image.functions().iter().filter(|f| !image.facts(f).context().branch_targets.is_empty());
    assert!(pads.count() > 0 || image.kind() == Kind::Pe);
}

#[test]
#[cfg_attr(windows, ignore = "reads files of Linux: the suite `windows` of `cargo xtask test` has them")]
fn static_programs_are_read() {
    for path in ["/sbin/ldconfig", "/bin/busybox", "/usr/sbin/ldconfig"] {
        let Ok(image) = Image::open(path) else { continue };
        assert!(image.functions().len() > 500, "{path}: {image:?}");
        assert!(image.is_complete());
    }
}

#[test]
#[cfg_attr(windows, ignore = "reads files of Linux: the suite `windows` of `cargo xtask test` has them")]
fn every_function_has_facts() {
    let image = Image::parse(libc()).unwrap();
    let mut seen = 0;
    for function in image.functions() {
        let facts = image.facts(function);
        seen += facts.context().branch_targets.len() + facts.context().parts.len();
    }
    assert!(seen > 0, "{} functions", image.functions().len());
}
