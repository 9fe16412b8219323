//! Damaged images: an error or a partial result, soon, and never a panic.

use crate::made::*;
use kdetour_image::Image;
use kdetour_plan::Survey;
use proptest::prelude::*;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

static SMALL: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let mut text = vec![0x90; 0x100];
    text[0xff] = 0xc3;
    let symbols = [
        ("first", TEXT, 0x20, GLOBAL_FUNC),
        ("first.cold", TEXT + 0x80, 0x10, LOCAL_FUNC),
        ("second", TEXT + 0x20, 0x60, LOCAL_FUNC),
    ];
    let mut rdata = Bytes::default();
    rdata.u32(0, 0x1010).u32(4, 0x1020).u32(8, 0x2100);
    rdata.u32(12, 0x1040).u32(16, 0x1060).u32(20, 0x2110);
    rdata.put(0x110, &[0x21, 0, 0, 0]).u32(0x114, 0x1010).u32(0x118, 0x1020).u32(0x11c, 0x2100);
    let exports = [("One", 0x1010), ("Two", 0x1060)];
    let mut images = vec![
        elf64(&text, &[7; 16], &symbols),
        pe(true, &text, &rdata.0, &exports, &[(3, 0x2000, 24)]),
        pe(false, &text, &rdata.0, &exports, &[(10, 0x2000, 72), (5, 0x2100, 64)]),
    ];
    // A library with everything a linker makes; a small one is quickly read.
    let candidates = [
        "/lib/x86_64-linux-gnu/libdl.so.2",
        "/lib/x86_64-linux-gnu/libutil.so.1",
        "/usr/bin/true",
        "C:/windows/system32/version.dll",
    ];
    images.extend(candidates.iter().filter_map(|path| std::fs::read(path).ok()));
    images
});

/// Reads it and asks everything.
fn exercise(file: Vec<u8>) {
    let len = file.len();
    let start = Instant::now();
    if let Ok(image) = Image::parse(file) {
        assert!(image.functions().is_sorted_by(|a, b| a.address() < b.address()));
        for function in image.functions().iter().take(200) {
            let facts = image.facts(function);
            let code = image.code(function);
            let context = facts.context();
            assert!(context.data.is_sorted_by(|a, b| a.address <= b.address));
            let _ = (image.name(function).len(), image.aliases(function).count());
            if !code.bytes().is_empty() {
                let _ = Survey::of(&code, &context);
            }
        }
        let _ = image.function_by_name("first");
        let _: Vec<String> = image.left_out().iter().map(ToString::to_string).collect();
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{len} bytes took {:?}", start.elapsed());
}

/// Where damage does most: in headers.
fn place(len: usize) -> impl Strategy<Value = usize> {
    prop_oneof![3 => 0..len.min(0x200), 1 => 0..len, 2 => len.saturating_sub(0x300)..len]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes(
        (index, changes) in (0..SMALL.len()).prop_flat_map(|index| {
            let len = SMALL[index].len();
            let value = prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x7f), Just(0x80)];
            (Just(index), prop::collection::vec((place(len), value), 1..12))
        })
    ) {
        let mut file = SMALL[index].clone();
        for (at, value) in changes {
            file[at] = value;
        }
        exercise(file);
    }

    #[test]
    fn large_numbers_in_headers(
        (index, changes) in (0..SMALL.len()).prop_flat_map(|index| {
            let len = SMALL[index].len() - 8;
            let value = prop_oneof![
                any::<u64>(),
                Just(u64::MAX),
                Just(i64::MAX as u64),
                Just(0xffff_ffff),
                Just(0x7fff_fff8),
                (0..len as u64)
            ];
            (Just(index), prop::collection::vec((place(len), value, prop::bool::ANY), 1..4))
        })
    ) {
        let mut file = SMALL[index].clone();
        for (at, value, wide) in changes {
            let width = if wide { 8 } else { 4 };
            file[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        exercise(file);
    }

    #[test]
    fn truncated((index, len) in (0..SMALL.len()).prop_flat_map(|index| (Just(index), 0..SMALL[index].len()))) {
        exercise(SMALL[index][..len].to_vec());
    }
}

#[test]
fn boot_images_that_lie() {
    let boot = |payload: &[u8], size: u32| {
        let mut file = Bytes::default();
        file.u16(0x1fe, 0xaa55).put(0x202, b"HdrS").u16(0x206, 0x20f).put(0x1f1, &[1]);
        file.u32(0x248, 0)
            .u32(0x24c, payload.len() as u32 + 4)
            .put(0x400, payload)
            .u32(0x400 + payload.len(), size);
        file.0
    };
    let error = |file: Vec<u8>| Image::parse(file).unwrap_err().to_string();
    assert!(error(boot(b"\x1f\x8b\x08", u32::MAX)).contains("gzip"));
    assert!(error(boot(b"\xfd7zXZ\0", 1000)).contains("xz"));
    assert!(error(boot(b"\x28\xb5\x2f\xfd", 1000)).contains("zstd"));
    assert!(error(boot(b"\x02\x21\x4c\x18\0\0\0\0", 1000)).contains("lz4"));
    assert!(error(boot(b"BZh9", 1000)).contains("bzip2"));
    assert!(error(boot(b"\x5d\0\0\x80\0", 1000)).contains("lzma"));
    assert!(error(boot(b"\x89LZO", 1000)).contains("89 4c 5a 4f"));
    assert!(error(boot(b"", 0)).contains("compressed"));
    assert!(error(boot(b"\x7fELF", 0)).contains("big-endian"));
    let file = boot(b"\x1f\x8b\x08", 1000);
    assert!(error(file[..0x300].to_vec()).contains("cut off"));
    assert!(error(file[..0x208].to_vec()).contains("cut off"));
}

#[test]
fn many_symbols_of_one_name_at_one_place_end_soon() {
    let mut symbols = Vec::new();
    for index in 0..40_000u64 {
        symbols.push((
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            TEXT + index % 64,
            1,
            GLOBAL_FUNC,
        ));
        symbols.push((
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.cold",
            TEXT + index % 64,
            1,
            GLOBAL_FUNC,
        ));
    }
    exercise(elf64(&[0x90; 0x100], &[], &symbols));
}

/// Every function reaches to the end of the code: to look through all of them is quadratic.
#[test]
fn functions_that_all_overlap_cost_no_more_than_a_file_of_their_size_may() {
    let mut text = vec![0x90; 0xf00];
    text[0xeff] = 0xc3;
    let few: Vec<Symbol> = (0..0xe00).map(|at| ("overlaps", TEXT + at, 0xf00 - at, GLOBAL_FUNC)).collect();
    let image = Image::parse(elf64(&text, &[0; 16], &few)).unwrap();
    assert!(
        image.functions().iter().all(|function| function.length().is_some()),
        "a small file is read whole"
    );

    // Sixteen times the code, and 16 MiB for small files.
    let mut text = vec![0x90; 0x20_0000];
    text[0x1f_ffff] = 0xc3;
    let many: Vec<Symbol> = (0..64).map(|at| ("overlaps", TEXT + at, 0x20_0000 - at, GLOBAL_FUNC)).collect();
    let mut file = elf64(&text, &[], &many);
    // The code is larger than its place in front of the read-only data: that segment is taken away.
    file[56..58].copy_from_slice(&1_u16.to_le_bytes());
    let image = Image::parse(file).unwrap();
    let looked_through: u64 = image.functions().iter().filter_map(|function| function.length()).sum();
    assert!(looked_through <= 16 * 0x20_0000 + (1 << 24), "{looked_through}");
    assert!(image.functions().iter().any(|function| function.length().is_none()));
    let told = image.left_out().iter().any(|left_out| left_out.to_string().contains("overlap"));
    assert!(told, "{:?}", image.left_out());
}

/// Modules are kept compressed by distributions.
#[test]
fn a_compressed_file_is_the_file_that_it_holds() {
    let plain = SMALL[0].clone();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &plain).unwrap();
    let gz = gz.finish().unwrap();
    let (held, plain) = (Image::parse(gz.clone()).unwrap(), Image::parse(plain).unwrap());
    assert_eq!(held.functions().len(), plain.functions().len());
    assert!(matches!(Image::parse(gz[..gz.len() / 2].to_vec()), Err(kdetour_image::Error::Unpack { .. })));
}
