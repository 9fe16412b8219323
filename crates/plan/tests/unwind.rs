//! Rows of hand-made prologues, and of every function of a library against the library's own unwind information.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test: it may fail")]

use gimli::{BaseAddresses, CfaRule, EhFrame, LittleEndian, Register, RegisterRule, UnwindSection};
use kdetour_plan::{
    Allocator, Code, Context, Frame, Kept, Mode, Options, Plan, Reach, Relays, Returns, Shape, Shapes, Slot,
    Survey, UnwindRow,
};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::{env, fs};

const TARGET: u64 = 0x4000_1000;
const SLOT: u64 = 0x4800_0000;
/// Too far for a `jmp rel32`, from the slot too.
const FAR_DETOUR: u64 = 0x5555_0000_0000;

fn plan(mode: Mode, bytes: &[u8], options: Options, detour: u64) -> Plan {
    let code = Code::in_mode(mode, TARGET, bytes).with_length(bytes.len());
    let survey = Survey::of(&code, &Context::default()).unwrap();
    Plan::with_options(&survey, Slot { address: SLOT, capacity: 160 }, detour, options).unwrap()
}

/// `start..end sp+distance bp+distance register@place ...`, with what is in its place left out.
fn told(rows: impl Iterator<Item = UnwindRow>) -> Vec<String> {
    let frame = |frame: Frame| {
        let mut text = String::new();
        for (name, distance) in [("sp", frame.above_stack_pointer()), ("bp", frame.above_frame_pointer())] {
            if let Some(distance) = distance {
                write!(text, " {name}+{distance}").unwrap();
            }
        }
        for (register, kept) in frame.registers() {
            match kept {
                Kept::InPlace => {}
                Kept::At(at) => write!(text, " r{register}@{at}").unwrap(),
                Kept::Lost => write!(text, " r{register}?").unwrap(),
            }
        }
        text
    };
    rows.map(|row| {
        let frame = row.frame.map_or_else(|| " unknown".into(), frame);
        format!("{}..{}{frame}", row.start, row.end)
    })
    .collect()
}

fn rows(bytes: &[u8]) -> Vec<String> {
    told(plan(Mode::Bits64, bytes, Options::default(), 0x4100_0000).unwind())
}

#[test]
fn a_frame_pointer() {
    #[rustfmt::skip]
    let bytes = [
        0x55,                   // push rbp
        0x48, 0x89, 0xe5,       // mov rbp, rsp
        0x53,                   // push rbx
        0x31, 0xdb,             // xor ebx, ebx
        0xc3,                   // ret
    ];
    // The register that was saved is still in its place, until it is written.
    assert_eq!(
        rows(&bytes),
        ["0..1 sp+8", "1..4 sp+16", "4..5 sp+16 bp+16 r6@-16", "5..10 sp+24 bp+16 r6@-16"]
    );
}

#[test]
fn saved_written_and_given_back() {
    #[rustfmt::skip]
    let bytes = [
        0x53,                   // push rbx
        0x31, 0xdb,             // xor ebx, ebx
        0x5b,                   // pop rbx
        0x90,                   // nop
        0x90,                   // nop
        0xc3,                   // ret
    ];
    assert_eq!(rows(&bytes), ["0..1 sp+8", "1..3 sp+16", "3..4 sp+16 r3@-16", "4..10 sp+8"]);
    #[rustfmt::skip]
    let bytes = [
        0x53,                               // push rbx
        0x31, 0xdb,                         // xor ebx, ebx
        0x48, 0x89, 0x1c, 0x24,             // mov [rsp], rbx
        0x90,                               // nop
        0xc3,                               // ret
    ];
    assert_eq!(rows(&bytes), ["0..1 sp+8", "1..3 sp+16", "3..7 sp+16 r3@-16", "7..12 sp+16 r3?"]);
    #[rustfmt::skip]
    let bytes = [
        0x48, 0x89, 0x5c, 0x24, 0xf8,       // mov [rsp-8], rbx
        0x31, 0xdb,                         // xor ebx, ebx
        0xc3,                               // ret
    ];
    let options = Options { shapes: Shapes::only(Shape::Jump14), ..Options::default() };
    #[rustfmt::skip]
    let long = [&bytes[..7], &[
        0x6a, 0x01,                         // push 1
        0x50,                               // push rax
        0x0f, 0x1f, 0x40, 0x00,             // nop
        0xc3,                               // ret
    ]].concat();
    let plan = plan(Mode::Bits64, &long, options, 0x4100_0000);
    // What lay below the stack pointer is overwritten by a push.
    assert_eq!(told(plan.unwind())[..3], ["0..7 sp+8", "7..9 sp+8 r3@-16", "9..10 sp+16 r3?"]);
}

#[test]
fn the_stack_pointer_is_moved() {
    #[rustfmt::skip]
    let bytes = [
        0x48, 0x83, 0xec, 0x18,                         // sub rsp, 24
        0x48, 0x8d, 0xa4, 0x24, 0x00, 0xff, 0xff, 0xff, // lea rsp, [rsp-256]
        0xc3,                                           // ret
    ];
    assert_eq!(rows(&bytes), ["0..4 sp+8", "4..12 sp+32", "12..17 sp+288"]);
    #[rustfmt::skip]
    let bytes = [
        0x48, 0x83, 0xc4, 0x80,             // add rsp, -128
        0x9c,                               // pushfq
        0x9d,                               // popfq
        0xc3,                               // ret
    ];
    assert_eq!(rows(&bytes), ["0..4 sp+8", "4..5 sp+136", "5..10 sp+144"]);
}

#[test]
fn an_aligned_stack_is_found_by_the_frame_pointer_or_not_at_all() {
    #[rustfmt::skip]
    let bytes = [
        0x55,                   // push rbp
        0x48, 0x89, 0xe5,       // mov rbp, rsp
        0x48, 0x83, 0xe4, 0xe0, // and rsp, -32
        0xc9,                   // leave
        0xc3,                   // ret
    ];
    assert_eq!(rows(&bytes), ["0..1 sp+8", "1..4 sp+16", "4..8 sp+16 bp+16 r6@-16", "8..13 bp+16 r6@-16"]);
    let all = Options { shapes: Shapes::only(Shape::Jump14), ..Options::default() };
    let long = [&bytes[..9], &[0x0f, 0x1f, 0x80, 0, 0, 0, 0, 0xc3]].concat();
    let leave = plan(Mode::Bits64, &long, all, 0x4100_0000);
    assert_eq!(told(leave.unwind())[3..], ["8..9 bp+16 r6@-16", "9..21 sp+8"]);
    #[rustfmt::skip]
    let bytes = [
        0x4c, 0x8d, 0x54, 0x24, 0x08, // lea r10, [rsp+8]
        0x48, 0x83, 0xe4, 0xe0,       // and rsp, -32
        0x41, 0xff, 0x72, 0xf8,       // push [r10-8]
        0x55,                         // push rbp
        0xc3,                         // ret
    ];
    let aligned = plan(Mode::Bits64, &bytes, all, 0x4100_0000);
    assert_eq!(told(aligned.unwind()), ["0..9 sp+8", "9..19 unknown"]);
}

#[test]
fn without_the_return_address_nothing_is_known() {
    #[rustfmt::skip]
    let popped = [
        0x58,                               // pop rax
        0x48, 0x8d, 0x40, 0x01,             // lea rax, [rax+1]
        0x50,                               // push rax
        0xc3,                               // ret
    ];
    assert_eq!(rows(&popped), ["0..1 sp+8", "1..10 unknown"]);
    #[rustfmt::skip]
    let overwritten = [
        0x48, 0x89, 0x44, 0x24, 0x04,       // mov [rsp+4], rax
        0xc3,                               // ret
    ];
    assert_eq!(rows(&overwritten), ["0..5 sp+8", "5..10 unknown"]);
}

/// Pushes and a jump stand for a call; a thread that stood behind it goes on behind them.
#[test]
fn calls() {
    #[rustfmt::skip]
    let bytes = [
        0x50,                               // push rax
        0xff, 0xd0,                         // call rax
        0x58,                               // pop rax
        0x90,                               // nop
        0xc3,                               // ret
    ];
    let of = |mode, returns| {
        let code = Code::in_mode(mode, TARGET, &bytes).with_length(bytes.len());
        let survey = Survey::of(&code, &Context::default()).unwrap();
        let options = Options { shapes: Shapes::only(Shape::Jump5Trapped), returns, ..Options::default() };
        told(Plan::best(&survey, &mut Anywhere, 0x4100_0000, options).unwrap().unwind())
    };
    // The relay, push rax / push / jmp / pop rax / nop, jump back.
    assert_eq!(
        of(Mode::Bits64, Returns::Original),
        ["0..6 sp+8", "6..11 sp+16", "11..13 sp+24", "13..14 sp+16", "14..20 sp+8"]
    );
    assert_eq!(of(Mode::Bits64, Returns::Slot), ["0..6 sp+8", "6..9 sp+16", "9..15 sp+8"]);
    // There a callee may take its arguments off the stack.
    assert_eq!(
        of(Mode::Bits32, Returns::Original),
        ["0..6 sp+4", "6..11 sp+8", "11..13 sp+12", "13..20 unknown"]
    );
    assert_eq!(of(Mode::Bits32, Returns::Slot), ["0..6 sp+4", "6..8 sp+8", "8..15 unknown"]);
}

/// A target out of reach, whose return address takes two instructions; then a jump back and a relay out of reach.
#[test]
fn far_calls() {
    #[rustfmt::skip]
    let bytes = [
        0x50,                               // push rax
        0xe8, 0x00, 0x00, 0x00, 0x08,       // call
        0xc3,                               // ret
    ];
    let far = 0x7fff_0000_0000;
    let code = Code::new(far, &bytes).with_length(bytes.len());
    let survey = Survey::of(&code, &Context::default()).unwrap();
    let slot = Slot { address: SLOT, capacity: 160 };
    let of = |returns| {
        let options = Options { shapes: Shapes::only(Shape::Breakpoint), returns, ..Options::default() };
        Plan::with_options(&survey, slot, FAR_DETOUR, options).unwrap()
    };
    assert_eq!(told(of(Returns::Original).unwind()), ["0..1 sp+8", "1..15 sp+16"]);
    let code = Code::new(far, &bytes[1..]).with_length(6);
    let survey = Survey::of(&code, &Context::default()).unwrap();
    let of = |returns| {
        let options = Options { shapes: Shapes::only(Shape::Breakpoint), returns, ..Options::default() };
        Plan::with_options(&survey, slot, FAR_DETOUR, options).unwrap()
    };
    // push 5, mov [rsp+4] 8, jmp and address 14; then the jump back and its address.
    assert_eq!(told(of(Returns::Original).unwind()), ["0..5 sp+8", "5..27 sp+16", "27..41 sp+8"]);
    // call 6, jmp 2, address 8, jump back.
    assert_eq!(told(of(Returns::Slot).unwind()), ["0..30 sp+8"]);
}

#[test]
fn relays() {
    #[rustfmt::skip]
    let bytes = [
        0x55,                               // push rbp
        0x48, 0x89, 0xe5,                   // mov rbp, rsp
        0x53,                               // push rbx
        0xc3,                               // ret
    ];
    let behind = plan(Mode::Bits64, &bytes, Options { landing_pad: true, ..Options::default() }, FAR_DETOUR);
    // The landing pad, the copies, the jump back; then the relay, which the patch leads to.
    assert_eq!(
        told(behind.unwind()),
        ["0..5 sp+8", "5..8 sp+16", "8..9 sp+16 bp+16 r6@-16", "9..14 sp+24 bp+16 r6@-16", "14..28 sp+8"]
    );
    let code = Code::new(TARGET, &bytes).with_length(bytes.len());
    let survey = Survey::of(&code, &Context::default()).unwrap();
    let options = Options { shapes: Shapes::only(Shape::Jump5Kept), landing_pad: true, ..Options::default() };
    let first = Plan::best(&survey, &mut Anywhere, FAR_DETOUR, options).unwrap();
    assert_eq!(first.trampoline_offset(), 14);
    // The relay is the first, and the pad behind it.
    let rows = told(first.unwind());
    assert_eq!(rows[..2], ["0..19 sp+8", "19..22 sp+16"]);
}

/// Both ways to a place have to agree.
#[test]
fn branches_among_the_copies() {
    #[rustfmt::skip]
    let agree = [
        0x85, 0xff,             // 0: test edi, edi
        0x74, 0x01,             // 2: jz 5
        0x90,                   // 4: nop
        0x53,                   // 5: push rbx
        0x48, 0x83, 0xec, 0x10, // 6: sub rsp, 16
        0x48, 0x83, 0xec, 0x10, // 10: sub rsp, 16
        0xc3,                   // 14: ret
    ];
    let options = Options { shapes: Shapes::only(Shape::Jump14), ..Options::default() };
    let of = |bytes: &[u8]| told(plan(Mode::Bits64, bytes, options, 0x4100_0000).unwind());
    assert_eq!(of(&agree), ["0..10 sp+8", "10..14 sp+16", "14..18 sp+32", "18..23 sp+48"]);
    #[rustfmt::skip]
    let differ = [
        0x85, 0xff,             // 0: test edi, edi
        0x74, 0x01,             // 2: jz 5
        0x53,                   // 4: push rbx
        0x90,                   // 5: nop
        0x48, 0x83, 0xec, 0x10, // 6: sub rsp, 16
        0x48, 0x83, 0xec, 0x10, // 10: sub rsp, 16
        0xc3,                   // 14: ret
    ];
    assert_eq!(of(&differ), ["0..9 sp+8", "9..23 unknown"]);
    #[rustfmt::skip]
    let back = [
        0x90,                   // 0: nop
        0x53,                   // 1: push rbx
        0x85, 0xff,             // 2: test edi, edi
        0x75, 0xfb,             // 4: jnz 1
        0x48, 0x83, 0xec, 0x10, // 6: sub rsp, 16
        0x48, 0x83, 0xec, 0x10, // 10: sub rsp, 16
        0xc3,                   // 14: ret
    ];
    assert_eq!(of(&back), ["0..1 sp+8", "1..23 unknown"]);
}

#[test]
fn code_of_32_bits() {
    let of = |bytes: &[u8]| told(plan(Mode::Bits32, bytes, Options::default(), 0x4100_0000).unwind());
    #[rustfmt::skip]
    let bytes = [
        0x55,                   // push ebp
        0x89, 0xe5,             // mov ebp, esp
        0x56,                   // push esi
        0x31, 0xf6,             // xor esi, esi
        0xc3,                   // ret
    ];
    assert_eq!(
        of(&bytes),
        [
            "0..1 sp+4",
            "1..3 sp+8",
            "3..4 sp+8 bp+8 r5@-8",
            "4..6 sp+12 bp+8 r5@-8",
            "6..11 sp+12 bp+8 r5@-8 r6@-12"
        ]
    );
    // call $+5 / pop ebx: the program counter.
    assert_eq!(of(&[0xe8, 0, 0, 0, 0, 0x5b, 0xc3]), ["0..5 sp+4", "5..10 sp+8"]);
}

/// Gives the lowest address that it may.
struct Anywhere;

impl Allocator for Anywhere {
    fn near(&mut self, reach: Reach, len: usize) -> Option<Slot> {
        Some(Slot { address: reach.first.max(0x1_0000), capacity: len })
    }

    fn at(&mut self, relays: Relays, reach: Reach, len: usize) -> Option<Slot> {
        let address = relays.ranges().map(|range| range.0).find(|&address| reach.contains(address))?;
        Some(Slot { address, capacity: len })
    }
}

/// The file that the environment names, or the C library that this very test is linked to.
fn library() -> String {
    if let Ok(path) = env::var("KDETOUR_LIBRARY") {
        return path;
    }
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc/self/maps can be read");
    let paths: BTreeSet<&str> = maps
        .lines()
        .filter(|line| line.contains(" r-xp "))
        .filter_map(|line| line.split_whitespace().nth(5))
        .filter(|path| path.contains(".so"))
        .collect();
    let libc = paths.iter().find(|path| path.contains("/libc"));
    libc.or(paths.first()).expect("this test is linked to a shared library").to_string()
}

/// How the rows of a library's functions compare with its own unwind information.
#[derive(Debug, Default)]
struct Comparison {
    functions: usize,
    boundaries: usize,
    cfa_agrees: usize,
    /// The library says it by an expression.
    cfa_by_expression: usize,
    /// The row says that it is not known.
    cfa_unknown: BTreeMap<String, usize>,
    registers_agree: usize,
    /// The library says where it was saved, and the row that it still is in its place: both are right.
    registers_in_place_and_saved: usize,
    registers_lost: usize,
    disagreements: Vec<String>,
}

type Theirs<'a> = gimli::UnwindTableRow<usize>;

impl Comparison {
    fn boundary(&mut self, at: &str, frame: Option<Frame>, theirs: &Theirs<'_>, mode: Mode) {
        let (stack, base) = if mode == Mode::Bits64 { (7, 6) } else { (4, 5) };
        self.boundaries += 1;
        let Some(frame) = frame else {
            *self.cfa_unknown.entry(at.split('+').next().unwrap_or(at).to_string()).or_default() += 1;
            return;
        };
        let mine = match *theirs.cfa() {
            CfaRule::RegisterAndOffset { register, .. } if register.0 == stack => frame.above_stack_pointer(),
            CfaRule::RegisterAndOffset { register, .. } if register.0 == base => frame.above_frame_pointer(),
            _ => {
                self.cfa_by_expression += 1;
                return;
            }
        };
        match *theirs.cfa() {
            CfaRule::RegisterAndOffset { offset, .. } if mine.map(i64::from) == Some(offset) => {
                self.cfa_agrees += 1;
            }
            _ => self.disagreements.push(format!("{at}: {:?}, but {frame:?}", theirs.cfa())),
        }
        for (register, kept) in frame.registers() {
            match (theirs.register(Register(register.into())), kept) {
                (Some(RegisterRule::Offset(there)), Kept::At(here)) if there == i64::from(here) => {
                    self.registers_agree += 1;
                }
                (Some(RegisterRule::SameValue) | None, Kept::InPlace) => self.registers_agree += 1,
                (Some(RegisterRule::Offset(_)), Kept::InPlace) => self.registers_in_place_and_saved += 1,
                (_, Kept::Lost) => self.registers_lost += 1,
                (there, here) => {
                    self.disagreements.push(format!("{at}: register {register} {there:?}, but {here:?}"));
                }
            }
        }
    }
}

#[test]
#[cfg_attr(windows, ignore = "reads a library of Linux: the suite `windows` of `cargo xtask test` names one")]
fn every_function_of_a_library() {
    let path = library();
    let data = fs::read(&path).expect("the library can be read");
    let file = object::File::parse(&*data).expect("the library is an object file");
    let mode = if file.is_64() { Mode::Bits64 } else { Mode::Bits32 };
    let base: u64 = if file.is_64() { 0x7f00_0000_0000 } else { 0xf700_0000 };

    let frames = file.section_by_name(".eh_frame").expect("the library has unwind information");
    let mut section = EhFrame::new(frames.data().unwrap(), LittleEndian);
    section.set_address_size(if file.is_64() { 8 } else { 4 });
    let bases = BaseAddresses::default().set_eh_frame(frames.address()).set_text(0);
    let mut entries = section.entries(&bases);
    let mut fdes = BTreeMap::new();
    while let Some(entry) = entries.next().unwrap() {
        if let gimli::CieOrFde::Fde(partial) = entry {
            let fde = partial.parse(EhFrame::cie_from_offset).unwrap();
            fdes.insert(fde.initial_address(), fde);
        }
    }

    let mut functions: BTreeMap<u64, (String, u64)> = BTreeMap::new();
    for symbol in file.symbols().chain(file.dynamic_symbols()) {
        if symbol.kind() == SymbolKind::Text && symbol.is_definition() && symbol.size() > 0 {
            let name = symbol.name().unwrap_or("?").to_string();
            let function = functions.entry(symbol.address()).or_insert((name, 0));
            function.1 = function.1.max(symbol.size());
        }
    }
    let mut comparison = Comparison::default();
    let mut context = gimli::UnwindContext::new();
    for (index, (&address, (name, size))) in functions.iter().enumerate() {
        let text = file.sections().find(|section| {
            section.kind() == SectionKind::Text
                && (section.address()..section.address() + section.size()).contains(&address)
        });
        let text = text.expect("a function lies in a text section");
        let offset = usize::try_from(address - text.address()).unwrap();
        let length = usize::try_from(*size).unwrap();
        let bytes = &text.data().unwrap()[offset..offset + length];
        let Some(fde) = fdes.get(&address) else { continue };
        // With each policy, in each shape.
        let returns = if index % 2 == 1 { Returns::Slot } else { Returns::Original };
        let code = Code::in_mode(mode, base + address, bytes).with_length(length);
        let Ok(survey) = Survey::of(&code, &Context::default()) else { continue };
        comparison.functions += 1;
        for shape in
            [Shape::Jump14, Shape::Jump5Kept, Shape::Jump5, Shape::ShortJump, Shape::WholeInstruction]
        {
            let far = mode == Mode::Bits64 && index % 3 == 1;
            let detour = if far { FAR_DETOUR } else { base - 0x10_0000 };
            let options = Options {
                shapes: Shapes::only(shape),
                returns,
                landing_pad: index % 5 == 1,
                ..Options::default()
            };
            let Ok(plan) = Plan::best(&survey, &mut Anywhere, detour, options) else { continue };
            let rows: Vec<UnwindRow> = plan.unwind().collect();
            let mut end = 0;
            for row in &rows {
                assert_eq!(row.start, end, "{name}: a gap");
                end = row.end;
            }
            assert_eq!(end, plan.slot_bytes().len(), "{name}");
            for &(original, copy) in plan.ip_map().pairs() {
                let at = format!("{name}+{:#x} {shape}", original - base - address);
                let row = fde.unwind_info_for_address(&section, &bases, &mut context, original - base);
                let Ok(theirs) = row else { continue };
                let offset = usize::try_from(copy - plan.slot()).unwrap();
                let row = rows.iter().find(|row| (row.start..row.end).contains(&offset)).unwrap();
                comparison.boundary(&at, row.frame, theirs, mode);
            }
        }
    }
    println!("{path}: {comparison:#?}");
    assert!(comparison.disagreements.is_empty(), "{} disagreements", comparison.disagreements.len());
    // In 32-bit code what calls leave on the stack is not known, and many functions begin with one.
    let share = if mode == Mode::Bits64 { 99 } else { 85 };
    assert!(comparison.functions > 100);
    assert!(comparison.cfa_agrees * 100 > comparison.boundaries * share, "{}", comparison.cfa_agrees);
}
