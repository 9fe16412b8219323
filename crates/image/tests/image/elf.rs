//! ELF images made of bytes: what is a function, and what is known of it.

use crate::made::*;
use kdetour_image::{Error, Image, Kind, LeftOut, Reason, Source};
use kdetour_plan::Mode;

/// push rbp; mov rbp, rsp; pop rbp; ret
const BODY: [u8; 6] = [0x55, 0x48, 0x89, 0xe5, 0x5d, 0xc3];

/// `BODY` at each offset, int3 in between.
fn text(offsets: &[usize], len: usize) -> Vec<u8> {
    let mut text = vec![0xcc; len];
    for &at in offsets {
        text[at..at + BODY.len()].copy_from_slice(&BODY);
    }
    text
}

fn counted(image: &Image, reason: Reason) -> usize {
    image.left_out().iter().find(|left_out| left_out.reason == reason).map_or(0, |left_out| left_out.count)
}

#[test]
fn symbols_become_functions_with_bounds() {
    let file = elf64(
        &text(&[0, 0x10, 0x20], 0x30),
        &[1, 2, 3],
        &[
            ("first", TEXT, 6, GLOBAL_FUNC),
            ("__alias", TEXT, 6, GLOBAL_FUNC),
            ("second", TEXT + 0x10, 6, LOCAL_FUNC),
            ("assembly", TEXT + 0x20, 0, GLOBAL_NOTYPE),
            ("data", RODATA, 3, GLOBAL_FUNC),
            ("nowhere", 0x1234, 3, GLOBAL_FUNC),
        ],
    );
    let image = Image::parse(file).unwrap();
    assert_eq!((image.kind(), image.mode()), (Kind::Elf, Mode::Bits64));
    let found: Vec<_> = image.functions().iter().map(|f| (image.name(f), f.address(), f.length())).collect();
    assert_eq!(
        found,
        [
            ("first".into(), TEXT, Some(6)),
            ("second".into(), TEXT + 0x10, Some(6)),
            ("assembly".into(), TEXT + 0x20, None)
        ]
    );
    let first = image.function_by_name("__alias").unwrap();
    assert_eq!(image.name(first), "first");
    assert_eq!(image.aliases(first).collect::<Vec<_>>(), ["__alias"]);
    assert_eq!((first.source(), first.next_symbol()), (Source::Symbol, Some(TEXT + 0x10)));
    assert_eq!(image.function_around(TEXT + 0x12).map(|f| f.address()), Some(TEXT + 0x10));
    assert!(image.function_at(TEXT + 1).is_none());

    let second = image.function_by_name("second").unwrap();
    let code = image.code(second);
    assert_eq!((code.address(), code.length()), (TEXT + 0x10, Some(6)));
    assert_eq!(code.bytes(), &text(&[0, 0x10, 0x20], 0x30)[0x10..]);
    let facts = image.facts(second);
    assert_eq!(facts.context().before, [0xcc; 10]);
    assert_eq!(facts.context().data.iter().map(|region| region.address).collect::<Vec<_>>(), [TEXT, RODATA]);

    assert_eq!(counted(&image, Reason::PointsAtData), 1);
    assert_eq!(counted(&image, Reason::NotMapped), 1);
    assert_eq!(counted(&image, Reason::NoLength), 1);
}

#[test]
fn labels_and_overlapping_symbols() {
    let file = elf64(
        &text(&[0], 0x60),
        &[],
        &[
            ("outer", TEXT, 0x40, GLOBAL_FUNC),
            // No function, but somebody may jump there.
            ("label", TEXT + 8, 0, GLOBAL_NOTYPE),
            ("local", TEXT + 0xc, 0, LOCAL_NOTYPE),
            // A function in a function, and one that reaches out of it.
            ("inner", TEXT + 0x10, 8, LOCAL_FUNC),
            ("across", TEXT + 0x30, 0x20, GLOBAL_FUNC),
            ("too_long", TEXT + 0x50, 0x1_0000, GLOBAL_FUNC),
            ("at_the_end", TEXT + 0x60, 0, GLOBAL_NOTYPE),
        ],
    );
    let image = Image::parse(file).unwrap();
    let names: Vec<_> = image.functions().iter().map(|f| image.name(f)).collect();
    assert_eq!(names, ["outer", "inner", "across", "too_long"]);
    let outer = image.function_by_name("outer").unwrap();
    assert_eq!(image.facts(outer).context().branch_targets, [TEXT + 8, TEXT + 0xc, TEXT + 0x10, TEXT + 0x30]);
    assert_eq!(outer.next_symbol(), Some(TEXT + 0x50));
    let inner = image.function_by_name("inner").unwrap();
    assert_eq!(image.function_around(TEXT + 0x12).map(|f| f.address()), Some(inner.address()));
    assert_eq!(image.function_around(TEXT + 0x1a).map(|f| f.address()), Some(outer.address()));
    assert!(image.facts(inner).context().before.is_empty());
    assert_eq!(image.function_by_name("too_long").unwrap().length(), None);
    assert_eq!(counted(&image, Reason::LabelInside), 1);
    assert_eq!(counted(&image, Reason::Overlaps), 2);
    assert_eq!(counted(&image, Reason::TooLong), 1);
    assert!(image.left_out().iter().any(LeftOut::is_kept));
}

#[test]
fn a_cold_part_belongs_to_its_function() {
    let mut code = text(&[0, 0x20], 0x40);
    // The part jumps back to the second instruction: jmp -0x24 + 1.
    code[0x30..0x35].copy_from_slice(&[0xe9, 0xcc, 0xff, 0xff, 0xff]);
    let file = elf64(
        &code,
        &[],
        &[
            ("hot", TEXT, 6, GLOBAL_FUNC),
            ("other", TEXT + 0x20, 6, GLOBAL_FUNC),
            ("hot.cold", TEXT + 0x30, 5, LOCAL_FUNC),
            ("gone.cold.2", TEXT + 0x38, 4, LOCAL_FUNC),
        ],
    );
    let image = Image::parse(file).unwrap();
    assert_eq!(image.functions().len(), 2);
    let facts = image.facts(image.function_by_name("hot").unwrap());
    let context = facts.context();
    assert_eq!(context.parts.len(), 1);
    assert_eq!((context.parts[0].address(), context.parts[0].length()), (TEXT + 0x30, Some(5)));
    // The branch is found too where nothing says whose part it is.
    assert_eq!(context.branch_targets, [TEXT + 1]);
    assert_eq!(counted(&image, Reason::Piece), 1);
}

#[test]
fn an_object_file_is_laid_out_and_relocated() {
    use object::write::{Object, Relocation, Symbol, SymbolSection};
    use object::{
        Architecture, BinaryFormat, Endianness, RelocationFlags, SymbolFlags, SymbolKind, SymbolScope,
    };
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let section = object.section_id(object::write::StandardSection::Text);
    // call rel32; ret
    let caller = object.append_section_data(section, &[0xe8, 0, 0, 0, 0, 0xc3], 16);
    let callee = object.append_section_data(section, &BODY, 16);
    let mut symbol = |name: &str, value, size, section| {
        object.add_symbol(Symbol {
            name: name.into(),
            value,
            size,
            kind: SymbolKind::Text,
            scope: SymbolScope::Linkage,
            weak: false,
            section,
            flags: SymbolFlags::None,
        })
    };
    symbol("caller", caller, 6, SymbolSection::Section(section));
    let callee = symbol("callee", callee, 6, SymbolSection::Section(section));
    let flags = RelocationFlags::Elf { r_type: object::elf::R_X86_64_PLT32 };
    object
        .add_relocation(section, Relocation { offset: caller + 1, symbol: callee, addend: -4, flags })
        .unwrap();
    let image = Image::parse(object.write().unwrap()).unwrap();
    assert_eq!(image.kind(), Kind::Object);
    let caller = image.function_by_name("caller").unwrap();
    let callee = image.function_by_name("callee").unwrap();
    let code = image.code(caller).bytes();
    let distance = i32::from_le_bytes(code[1..5].try_into().unwrap());
    assert_eq!(caller.address() + 5 + u64::from(distance.cast_unsigned()), callee.address());
}

#[test]
fn what_is_no_x86_image_is_refused_by_name() {
    assert!(matches!(Image::parse(b"#!/bin/sh\n".to_vec()), Err(Error::UnknownFormat)));
    assert!(matches!(Image::parse(Vec::new()), Err(Error::UnknownFormat)));
    assert!(matches!(Image::parse(b"\x7fELF".to_vec()), Err(Error::NotLittleEndian)));
    let file = elf64(&text(&[0], 0x10), &[], &[]);
    assert!(matches!(Image::parse(file[..40].to_vec()), Err(Error::Header(_))));
    let mut arm = file.clone();
    arm[18] = 183;
    assert!(matches!(Image::parse(arm), Err(Error::Machine(183))));
    let mut big = file.clone();
    big[5] = 2;
    assert!(matches!(Image::parse(big), Err(Error::NotLittleEndian)));
    let mut data = file;
    data[64 + 4] = 4;
    assert!(matches!(Image::parse(data), Err(Error::NoCode)));
    assert!(matches!(Image::open("/does/not/exist"), Err(Error::Read(_))));
}

#[test]
fn truncated_tables_are_left_out_and_the_rest_is_read() {
    let symbols = [("first", TEXT, 6, GLOBAL_FUNC), ("data", RODATA, 1, GLOBAL_OBJECT)];
    let file = elf64(&text(&[0], 0x10), &[1], &symbols);
    // The section headers are at the end of the file.
    let image = Image::parse(file[..file.len() - 8].to_vec()).unwrap();
    assert_eq!(counted(&image, Reason::Table("section headers")), 1);
    // Nothing is left but the entry point.
    assert_eq!(image.functions().len(), 1);
    assert_eq!(image.functions()[0].source(), Source::Entry);
    assert_eq!(image.name(&image.functions()[0]), "sub_401000");
    assert!(image.function_by_name("sub_401000").is_some());
    assert!(!image.is_complete());
}
