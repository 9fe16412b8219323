//! How much stack a module's or a driver's functions take, callees and all: a kernel's stack is 16 KiB (Linux), 24 or 12 KB (Windows), and
//! whoever calls the module has used some of it, as have the kernel's functions that the module calls.
//!
//! What is counted is an upper bound of what is on the stack by direct calls: each function's pushes and subtractions, all of
//! them, though some are on paths that exclude each other. Calls through pointers and the kernel's own functions are not
//! followed. Those are the decoder's handlers, one for each prefix and one for the instruction, of less than a hundred bytes each; and what runs
//! while others are parked, far above what planning takes. That the sum bounds these too is looked at where drivers run: the emulator measures
//! what they use.

use anyhow::{Context as _, Result, bail};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SymbolKind,
};
use std::collections::{BTreeMap, BTreeSet};

/// Half of the stack of a task on x86-64.
const LIMIT: u64 = 8 << 10;
/// Not followed: it ran when the module was loaded.
const ONCE: &str = "try_call_once_slow";
/// Not followed: nobody returns from there.
const FATAL: [&str; 4] = ["panicking", "unwrap_failed", "assert_failed", "_panic"];
/// No function takes so much at once.
const NONSENSE: u64 = 64 << 10;
/// A return address.
const RETURN: u64 = 8;

/// A function: what it takes itself, and whom it calls or jumps to.
#[derive(Debug, Default)]
struct Function {
    name: String,
    takes: u64,
    calls: BTreeSet<usize>,
}

/// The most that any function of a module takes, and the way there: each function with what it takes itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Deepest {
    bytes: u64,
    way: Vec<(String, u64)>,
}

/// The most that a module takes; it is refused if that is more than [`LIMIT`].
pub(crate) fn check(module: &[u8]) -> Result<u64> {
    limited(&deepest(&functions(module)?), LIMIT)
}

/// The most that a driver takes; it is refused if that is more than `limit`. The image has its symbols.
pub(crate) fn check_image(image: &[u8], limit: u64) -> Result<u64> {
    let functions = image_functions(image)?;
    if let Some(name) = recursive(&functions) {
        bail!("{name} comes to itself by direct calls: nobody can say how much of the stack that takes");
    }
    limited(&deepest(&functions), limit)
}

/// A function that leads to itself.
fn recursive(functions: &[Function]) -> Option<&str> {
    // Those that lead to none that is left are taken away, until there are none, or only such as lead round.
    let mut left: BTreeSet<usize> = (0..functions.len()).collect();
    loop {
        let leads_on = |&index: &usize| {
            functions.get(index).is_some_and(|one| !is_left_out(one) && !one.calls.is_disjoint(&left))
        };
        let rest: BTreeSet<usize> = left.iter().copied().filter(leads_on).collect();
        if rest.len() == left.len() {
            return functions.get(*rest.first()?).map(|one| one.name.as_str());
        }
        left = rest;
    }
}

/// Whether it is not followed.
fn is_left_out(function: &Function) -> bool {
    function.name.contains(ONCE) || FATAL.iter().any(|fatal| function.name.contains(fatal))
}

fn limited(deepest: &Deepest, limit: u64) -> Result<u64> {
    if deepest.bytes > limit {
        let way: String = deepest.way.iter().map(|(name, takes)| format!("\n{takes:>8}  {name}")).collect();
        bail!("takes {} bytes of the stack, more than {limit}:{way}", deepest.bytes);
    }
    Ok(deepest.bytes)
}

/// The deepest way through these.
fn deepest(functions: &[Function]) -> Deepest {
    let mut known = vec![None; functions.len()];
    for index in 0..functions.len() {
        below(functions, index, &mut known, &mut BTreeSet::new());
    }
    let depth = |index: &usize| known.get(*index).copied().flatten().map_or(0, |(bytes, _)| bytes);
    let Some(mut at) = (0..functions.len()).max_by_key(depth) else { return Deepest::default() };
    let mut deepest = Deepest { bytes: depth(&at), way: Vec::new() };
    while let Some(function) = functions.get(at) {
        deepest.way.push((function.name.clone(), function.takes));
        match known.get(at).copied().flatten() {
            Some((_, Some(next))) => at = next,
            _ => break,
        }
    }
    deepest
}

/// What is on the stack from this function's return address on, and who is called next there. A function that is on the way
/// already counts once.
fn below(
    functions: &[Function],
    index: usize,
    known: &mut [Option<(u64, Option<usize>)>],
    way: &mut BTreeSet<usize>,
) -> u64 {
    if let Some((bytes, _)) = known.get(index).copied().flatten() {
        return bytes;
    }
    let Some(function) = functions.get(index) else { return 0 };
    if is_left_out(function) {
        return 0;
    }
    if !way.insert(index) {
        return 0;
    }
    let mut most = (0, None);
    for &called in &function.calls {
        let bytes = below(functions, called, known, way);
        if bytes > most.0 {
            most = (bytes, Some(called));
        }
    }
    way.remove(&index);
    let bytes = function.takes + most.0;
    if let Some(place) = known.get_mut(index) {
        *place = Some((bytes, most.1));
    }
    bytes
}

/// Every function of the module.
fn functions(module: &[u8]) -> Result<Vec<Function>> {
    let file = object::File::parse(module).context("the module is no ELF object")?;
    let mut functions = Vec::new();
    // For each section its functions: start, end and number.
    let mut places: BTreeMap<usize, BTreeMap<u64, (u64, usize)>> = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.is_definition() && symbol.kind() == SymbolKind::Text)
    {
        let (Some(section), 1..) = (symbol.section_index(), symbol.size()) else { continue };
        let end = symbol.address() + symbol.size();
        places.entry(section.0).or_default().entry(symbol.address()).or_insert_with(|| {
            functions.push(Function { name: symbol.name().unwrap_or("?").to_owned(), ..Function::default() });
            (end, functions.len() - 1)
        });
    }
    for (&section, starts) in &places {
        let section = file.section_by_index(SectionIndex(section))?;
        let data = section.data()?;
        let mut to = BTreeMap::new();
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(index) = relocation.target() else { continue };
            let symbol = file.symbol_by_index(index)?;
            // It counts from the end of its four bytes. What is undefined is the kernel's.
            let address = symbol.address().wrapping_add_signed(relocation.addend() + 4);
            to.insert(offset, symbol.section_index().map(|of| (of.0, address)));
        }
        for (&start, &(end, number)) in starts {
            let bytes = usize::try_from(start).ok().zip(usize::try_from(end).ok());
            let bytes =
                bytes.and_then(|(start, end)| data.get(start..end)).context("a function is cut short")?;
            let mut takes = RETURN;
            let mut calls = BTreeSet::new();
            for one in Decoder::with_ip(64, bytes, start, DecoderOptions::NONE) {
                takes += taken(&one)?;
                let Some(place) = operand(&one) else { continue };
                let target = match to.range(place..place + 4).next() {
                    Some((_, &target)) => target,
                    // Within its own section the assembler knows the distance.
                    None if one.op0_kind() == OpKind::NearBranch64 => {
                        Some((section.index().0, one.near_branch64()))
                    }
                    None => None,
                };
                let callee = target.and_then(|(of, address)| {
                    places.get(&of)?.range(..=address).next_back().filter(|&(_, &(end, _))| address < end)
                });
                if let Some((_, &(_, callee))) = callee.filter(|&(_, &(_, callee))| callee != number) {
                    calls.insert(callee);
                }
            }
            if let Some(function) = functions.get_mut(number) {
                function.takes = takes;
                function.calls = calls;
            }
        }
    }
    Ok(functions)
}

/// Every function of a linked image: from its symbol to the next one.
fn image_functions(image: &[u8]) -> Result<Vec<Function>> {
    let file = object::File::parse(image).context("the driver is no image")?;
    let bits = if file.is_64() { 64 } else { 32 };
    let mut functions = Vec::new();
    for section in file.sections().filter(|section| section.kind() == object::SectionKind::Text) {
        let data = section.data()?;
        let end = section.address() + data.len() as u64;
        let mut starts: BTreeMap<u64, String> = BTreeMap::new();
        // Sections have symbols, too.
        let functions_of = |symbol: &object::Symbol<'_, '_>| {
            symbol.section_index() == Some(section.index())
                && symbol.name().is_ok_and(|name| !name.starts_with('.'))
        };
        for symbol in file.symbols().filter(functions_of) {
            if (section.address()..end).contains(&symbol.address()) {
                starts.entry(symbol.address()).or_insert_with(|| symbol.name().unwrap_or("?").to_owned());
            }
        }
        let first = functions.len();
        let numbers: BTreeMap<u64, usize> = starts.keys().copied().zip(first..).collect();
        let ends = starts.keys().copied().skip(1).chain([end]);
        for ((&start, name), end) in starts.iter().zip(ends) {
            let place = |address: u64| usize::try_from(address - section.address()).ok();
            let bytes = place(start).zip(place(end)).and_then(|(start, end)| data.get(start..end));
            let bytes = bytes.context("a function is cut short")?;
            let own = functions.len();
            let mut takes = u64::from(bits) / 8;
            let mut calls = BTreeSet::new();
            let mut in_eax = None;
            for one in Decoder::with_ip(bits, bytes, start, DecoderOptions::NONE) {
                // More than a page is looked through first: mov eax, size / call ___chkstk_ms / sub esp, eax.
                let by_eax = matches!(
                    one.code(),
                    Code::Sub_rm32_r32 | Code::Sub_r32_rm32 | Code::Sub_rm64_r64 | Code::Sub_r64_rm64
                ) && matches!(one.op1_register(), Register::EAX | Register::RAX);
                takes += match in_eax.filter(|_| by_eax && is_stack_pointer(one.op0_register())) {
                    Some(size) => size,
                    // 32-bit code has its jump tables among it, which decode as anything. What they seem to take counts, but for
                    // what no function would.
                    None if bits == 32 => taken(&one).unwrap_or(0) % NONSENSE,
                    None => taken(&one).with_context(|| name.clone())?,
                };
                if one.code() == Code::Mov_r32_imm32 && one.op0_register() == Register::EAX {
                    in_eax = Some(u64::from(one.immediate32()));
                }
                if operand(&one).is_some() {
                    let callee =
                        numbers.range(..=one.near_branch_target()).next_back().map(|(_, &number)| number);
                    calls.extend(callee.filter(|&callee| callee != own));
                }
            }
            functions.push(Function { name: name.clone(), takes, calls });
        }
    }
    if functions.is_empty() {
        bail!("the driver's image has no symbols");
    }
    Ok(functions)
}

const fn is_stack_pointer(register: Register) -> bool {
    matches!(register, Register::RSP | Register::ESP)
}

/// What an instruction takes of the stack.
fn taken(one: &Instruction) -> Result<u64> {
    let stack = is_stack_pointer(one.op0_register());
    let by_register = matches!(
        one.code(),
        Code::Sub_rm64_r64 | Code::Sub_r64_rm64 | Code::Sub_rm32_r32 | Code::Sub_r32_rm32
    );
    if stack && by_register {
        bail!("takes a part of the stack that is as long as a register says");
    }
    let subtracts = matches!(
        one.code(),
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 | Code::Sub_rm32_imm8 | Code::Sub_rm32_imm32
    );
    if subtracts && stack {
        return Ok(one.immediate(1));
    }
    // Aligned to so many bytes.
    if matches!(one.code(), Code::And_rm64_imm8 | Code::And_rm32_imm8) && stack {
        return Ok(one.immediate(1).cast_signed().unsigned_abs().saturating_sub(4));
    }
    let adds = matches!(one.code(), Code::Add_rm64_imm8 | Code::Add_rm64_imm32 | Code::Add_rm32_imm8);
    if adds && stack {
        // 128 bytes are taken so: the number is a byte shorter.
        return Ok(u64::try_from(-(one.immediate(1).cast_signed())).unwrap_or(0));
    }
    let pushes = one.is_stack_instruction() && one.flow_control() == FlowControl::Next;
    Ok(if pushes { u64::try_from(-one.stack_pointer_increment()).unwrap_or(0) } else { 0 })
}

/// Where the four bytes are that say whom a direct call or jump is to.
fn operand(one: &Instruction) -> Option<u64> {
    let leads_on = matches!(
        one.flow_control(),
        FlowControl::Call | FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
    );
    let direct = matches!(one.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32);
    (leads_on && direct && one.len() >= 5).then(|| one.next_ip().wrapping_sub(4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::write::{Object, Relocation, StandardSection, Symbol, SymbolSection};
    use object::{Architecture, BinaryFormat, Endianness, RelocationFlags, elf};

    /// Its name, its code, and the places in it that call or jump to others.
    type Source<'a> = (&'a str, &'a [u8], &'a [(u64, &'a str)]);

    /// A module of functions.
    fn module(of: &[Source<'_>]) -> Vec<u8> {
        let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        let text = object.section_id(StandardSection::Text);
        let mut symbols = BTreeMap::new();
        let mut starts = Vec::new();
        for &(name, code, _) in of {
            let value = object.append_section_data(text, code, 16);
            starts.push(value);
            let symbol = object.add_symbol(Symbol {
                name: name.into(),
                value,
                size: code.len() as u64,
                kind: SymbolKind::Text,
                scope: object::SymbolScope::Linkage,
                weak: false,
                section: SymbolSection::Section(text),
                flags: object::SymbolFlags::None,
            });
            symbols.insert(name, symbol);
        }
        for (&(_, _, calls), start) in of.iter().zip(starts) {
            for &(at, callee) in calls {
                let undefined = || Symbol {
                    name: callee.into(),
                    value: 0,
                    size: 0,
                    kind: SymbolKind::Text,
                    scope: object::SymbolScope::Dynamic,
                    weak: false,
                    section: SymbolSection::Undefined,
                    flags: object::SymbolFlags::None,
                };
                let symbol = *symbols.entry(callee).or_insert_with(|| object.add_symbol(undefined()));
                let flags = RelocationFlags::Elf { r_type: elf::R_X86_64_PLT32 };
                object
                    .add_relocation(text, Relocation { offset: start + at, symbol, addend: -4, flags })
                    .unwrap();
            }
        }
        object.write().unwrap()
    }

    /// push rbx; sub rsp, 0x100; call ...; add rsp, 0x100; pop rbx; ret
    const CALLER: &[u8] =
        &[0x53, 0x48, 0x81, 0xec, 0, 1, 0, 0, 0xe8, 0, 0, 0, 0, 0x48, 0x81, 0xc4, 0, 1, 0, 0, 0x5b, 0xc3];
    const CALL: u64 = 9;
    /// add rsp, -0x80; sub rsp, 8; ret
    const LEAF: &[u8] = &[0x48, 0x83, 0xc4, 0x80, 0x48, 0x83, 0xec, 8, 0xc3];

    fn names(deepest: &Deepest) -> Vec<&str> {
        deepest.way.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn the_deepest_way_is_found() {
        let of = module(&[
            ("leaf", LEAF, &[]),
            ("ret", &[0xc3], &[]),
            ("shallow", CALLER, &[(CALL, "ret")]),
            ("deep", CALLER, &[(CALL, "leaf")]),
            ("first", CALLER, &[(CALL, "deep")]),
        ]);
        let found = deepest(&functions(&of).unwrap());
        assert_eq!(names(&found), ["first", "deep", "leaf"]);
        assert_eq!(found.bytes, 2 * (8 + 8 + 0x100) + 8 + 0x80 + 8);
    }

    #[test]
    fn what_the_kernel_does_is_not_followed() {
        // jmp __x86_return_thunk: until it is linked it seems to lead to what is behind it.
        let mut of = Vec::from(CALLER);
        of.truncate(CALLER.len() - 1);
        of.extend([0xe9, 0, 0, 0, 0]);
        let undefined = module(&[("a", &of, &[(CALL, "ext"), (22, "ext")]), ("b", CALLER, &[])]);
        assert_eq!(deepest(&functions(&undefined).unwrap()).bytes, 8 + 8 + 0x100);
    }

    #[test]
    fn a_recursion_counts_once() {
        let of = module(&[("a", CALLER, &[(CALL, "b")]), ("b", CALLER, &[(CALL, "a")])]);
        assert_eq!(deepest(&functions(&of).unwrap()).bytes, 2 * (8 + 8 + 0x100));
    }

    #[test]
    fn who_leads_to_himself_is_named() {
        let calls = |to: &[usize]| to.iter().copied().collect();
        let one = |name: &str, to: &[usize]| Function { name: name.to_owned(), takes: 8, calls: calls(to) };
        let straight = [one("a", &[1, 2]), one("b", &[2]), one("c", &[])];
        assert_eq!(recursive(&straight), None);
        let round = [one("a", &[1]), one("b", &[2]), one("c", &[1]), one("d", &[])];
        assert_eq!(recursive(&round), Some("a"), "it leads to the two that lead round");
        assert_eq!(recursive(&[one("a_panic", &[0])]), None, "nobody returns from there");
    }

    #[test]
    fn what_ran_once_and_what_is_fatal_does_not_count() {
        let of = module(&[
            ("table_try_call_once_slow", CALLER, &[]),
            ("core_panicking", CALLER, &[]),
            ("a", CALLER, &[(CALL, "core_panicking")]),
            ("b", CALLER, &[(CALL, "table_try_call_once_slow")]),
        ]);
        assert_eq!(deepest(&functions(&of).unwrap()).bytes, 8 + 8 + 0x100);
    }

    #[test]
    fn too_much_is_refused_with_the_way_there() {
        // sub rsp, 0x2000; ret
        let of = module(&[("large", &[0x48, 0x81, 0xec, 0, 0x20, 0, 0, 0xc3], &[])]);
        let why = check(&of).unwrap_err().to_string();
        assert!(why.contains("takes 8200 bytes") && why.contains("8200  large"), "{why}");
        assert_eq!(check(&module(&[("small", LEAF, &[])])).unwrap(), 8 + 0x80 + 8);
        // sub rsp, rax
        check(&module(&[("some", &[0x48, 0x29, 0xc4, 0xc3], &[])])).unwrap_err();
    }
}
