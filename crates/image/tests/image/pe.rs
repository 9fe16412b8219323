//! PE images made of bytes.

use crate::made::*;
use kdetour_image::{Image, Kind, Reason, Source};
use kdetour_plan::Mode;

fn counted(image: &Image, reason: Reason) -> usize {
    image.left_out().iter().find(|left_out| left_out.reason == reason).map_or(0, |left_out| left_out.count)
}

#[test]
fn exports_and_unwind_information_of_a_64_bit_image() {
    let mut text = vec![0xcc; 0x100];
    // push rbx; sub rsp, 32; ret
    for at in [0x10, 0x40, 0x60, 0x80] {
        text[at..at + 6].copy_from_slice(&[0x53, 0x48, 0x83, 0xec, 0x20, 0xc3]);
    }
    let mut rdata = Bytes::default();
    // .pdata at RVA 0x2000: a function, its second piece right behind it, a third one elsewhere, another function.
    for (index, (begin, end, unwind)) in [
        (0x1010, 0x1016, 0x2100),
        (0x1016, 0x1020, 0x2110),
        (0x1040, 0x1046, 0x2130),
        (0x1060, 0x1066, 0x2100),
        (0, 0, 0),
    ]
    .into_iter()
    .enumerate()
    {
        rdata.u32(12 * index, begin).u32(12 * index + 4, end).u32(12 * index + 8, unwind);
    }
    // Unwind information: version 1, no codes. With one code, chained to the first function.
    rdata.put(0x100, &[1, 0, 0, 0]);
    rdata
        .put(0x110, &[1 | 4 << 3, 0, 1, 0, 0, 0, 0, 0])
        .u32(0x118, 0x1010)
        .u32(0x11c, 0x1016)
        .u32(0x120, 0x2100);
    // Chained to the piece that is chained.
    rdata.put(0x130, &[1 | 4 << 3, 0, 0, 0]).u32(0x134, 0x1016).u32(0x138, 0x1020).u32(0x13c, 0x2110);
    rdata.put(0x500, b"OTHER.Function\0");
    let exports = [("First", 0x1010), ("Leaf", 0x1080), ("Table", 0x2000), ("Other", 0x2500)];
    let image = Image::parse(pe(true, &text, &rdata.0, &exports, &[(3, 0x2000, 60)])).unwrap();
    assert_eq!((image.kind(), image.mode()), (Kind::Pe, Mode::Bits64));

    let found: Vec<_> = image
        .functions()
        .iter()
        .map(|f| (f.address() - PE_BASE, f.length(), f.source(), image.name(f).into_owned()))
        .collect();
    assert_eq!(
        found,
        [
            (0x1000, None, Source::Entry, "sub_140001000".into()),
            // The piece that follows makes it longer.
            (0x1010, Some(0x10), Source::Export, "First".into()),
            (0x1060, Some(6), Source::Pdata, "sub_140001060".into()),
            (0x1080, None, Source::Export, "Leaf".into()),
        ]
    );
    let first = image.function_by_name("First").unwrap();
    let facts = image.facts(first);
    assert_eq!(facts.context().parts.len(), 1);
    assert_eq!(facts.context().parts[0].address(), PE_BASE + 0x1040);
    assert_eq!(facts.context().image, Some((PE_BASE, PE_BASE + 0x4000)));
    assert_eq!(counted(&image, Reason::DataExport), 1);
    assert_eq!(counted(&image, Reason::Forwarded), 1);
}

#[test]
fn a_32_bit_image_with_handlers_relocations_and_hot_patching() {
    let mut text = vec![0xcc; 0x100];
    // mov edi, edi; push ebp; mov ebp, esp; pop ebp; ret
    text[0x20..0x27].copy_from_slice(&[0x8b, 0xff, 0x55, 0x8b, 0xec, 0x5d, 0xc3]);
    text[0x40..0x43].copy_from_slice(&[0x33, 0xc0, 0xc3]); // xor eax, eax; ret
    let mut rdata = Bytes::default();
    // Load configuration: its size, SEHandlerTable, SEHandlerCount. One handler.
    rdata.u32(0, 72).u32(64, (PE32_BASE + 0x2080) as u32).u32(68, 1).u32(0x80, 0x1040);
    // A jump table of two addresses, which base relocations tell.
    rdata.u32(0x90, (PE32_BASE + 0x1022) as u32).u32(0x94, (PE32_BASE + 0x1026) as u32);
    rdata.u32(0xa0, 0x2000).u32(0xa4, 12).u16(0xa8, 0x3090).u16(0xaa, 0x3094);
    let directories = [(10, 0x2000, 72), (5, 0x20a0, 12)];
    let image = Image::parse(pe(false, &text, &rdata.0, &[("Hot", 0x1020)], &directories)).unwrap();
    assert_eq!(image.mode(), Mode::Bits32);
    let found: Vec<_> = image.functions().iter().map(|f| (f.address() - PE32_BASE, f.source())).collect();
    assert_eq!(found, [(0x1000, Source::Entry), (0x1020, Source::Export), (0x1040, Source::SafeHandler)]);
    let facts = image.facts(image.function_by_name("Hot").unwrap());
    let context = facts.context();
    assert_eq!(context.branch_targets, [PE32_BASE + 0x1022, PE32_BASE + 0x1026]);
    assert_eq!((context.before, context.dead), (&[0xcc; 5][..], true));
    // Nothing says where functions end: what is behind one is not known.
    assert_eq!(context.next_symbol, None);
    assert!(!image.is_complete());
}
