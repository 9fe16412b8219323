//! Libraries of the Windows that the test runs on.

use kdetour_image::{Image, Kind, Reason};
use kdetour_plan::Survey;
use std::path::PathBuf;

fn library(name: &str) -> Image {
    let root = std::env::var_os("SystemRoot").unwrap();
    Image::open(PathBuf::from(root).join("system32").join(name)).unwrap()
}

#[test]
fn its_libraries_are_read() {
    for (name, exported) in
        [("ntdll.dll", "RtlAllocateHeap"), ("kernelbase.dll", "VirtualProtect"), ("ucrtbase.dll", "qsort")]
    {
        let image = library(name);
        assert_eq!(image.kind(), Kind::Pe);
        assert!(image.functions().len() > 1000, "{name}: {image:?}");
        let function = image.function_by_name(exported).unwrap();
        assert!(!image.code(function).bytes().is_empty(), "{exported}");
        // By .pdata: symbols and exports have no sizes.
        let bounded = image.functions().iter().filter(|function| function.length().is_some()).count();
        assert!(bounded * 2 > image.functions().len(), "{name}: {bounded} of {}", image.functions().len());
        let accepted = image.functions().iter().filter(|function| {
            let facts = image.facts(function);
            Survey::of(&image.code(function), &facts.context()).is_ok()
        });
        let accepted = accepted.count();
        assert!(
            accepted * 100 > image.functions().len() * 95,
            "{name}: {accepted} of {}",
            image.functions().len()
        );
    }
}

#[test]
fn what_another_library_has_is_no_function() {
    // Forwarded to ntdll.dll.
    let image = library("kernel32.dll");
    assert!(image.function_by_name("AddVectoredExceptionHandler").is_none());
    assert!(image.left_out().iter().any(|left_out| left_out.reason == Reason::Forwarded));
}
