//! An independent reading of a plan: decodes the original and the slot afresh and says where they differ.
//!
//! It shares no code with the crate. Everything it knows about a copy comes from the bytes in the slot.

use iced_x86::{
    Code as Opcode, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};
use kdetour_plan::{Plan, Shape, Survey};
use std::collections::BTreeSet;

const WINDOW: u64 = 5;

/// What a plan was made from.
pub(crate) struct Given<'a> {
    /// The function's entry.
    pub(crate) entry: u64,
    /// The bytes from there on.
    pub(crate) bytes: &'a [u8],
    /// The function's length, if it was given.
    pub(crate) length: Option<usize>,
    /// Where the detour is.
    pub(crate) detour: u64,
    /// Whether a landing pad was asked for.
    pub(crate) landing_pad: bool,
}

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

/// Checks everything that can be read from the bytes; an error says what is wrong.
pub(crate) fn check(given: &Given<'_>, survey: &Survey, plan: &Plan) -> Result<(), String> {
    let window = survey.window();
    let skip = usize::try_from(window.wrapping_sub(given.entry)).map_err(|_| "window before entry")?;
    ensure!(skip <= 9, "{skip} bytes between entry and window");
    let code = given.bytes.get(skip..).ok_or("window behind the bytes")?;
    let originals = displaced(code, window)?;
    let code_len: usize = originals.iter().map(Instruction::len).sum();
    let surveyed: Vec<_> = survey.displaced().iter().map(|one| one.address()).collect();
    let decoded: Vec<_> = originals.iter().map(Instruction::ip).collect();
    ensure!(surveyed == decoded, "displaced {surveyed:x?}, decoded {decoded:x?}");
    let rest = check_padding(code, &originals, code_len)?;
    if let Some(length) = given.length {
        ensure!(skip + code_len <= length, "displaces bytes behind the function's end");
    }
    check_branches_into_window(given, skip, rest, window)?;

    let mut slot = Slot::new(plan);
    if given.landing_pad {
        let pad = slot.next()?;
        ensure!(pad.mnemonic() == Mnemonic::Endbr64, "no landing pad");
    }
    let map = plan.ip_map();
    let resolve = |target: u64| {
        if decoded.contains(&target) {
            map.to_slot(target).ok_or(format!("no copy of {target:#x}"))
        } else if (window..window + code_len.max(5) as u64).contains(&target) {
            Err(format!("branch to {target:#x}, no boundary of the displaced bytes"))
        } else {
            Ok(target)
        }
    };
    for original in &originals {
        ensure!(
            map.to_slot(original.ip()) == Some(slot.at()),
            "copy of {:#x} is not at {:#x}",
            original.ip(),
            slot.at()
        );
        check_copy(original, &mut slot, resolve).map_err(|why| format!("{:#x}: {why}", original.ip()))?;
    }
    if originals.last().is_some_and(goes_on) {
        let resume = window + code_len as u64;
        ensure!(resume >= window + WINDOW, "jumps back into the window");
        ensure!(map.to_slot(resume) == Some(slot.at()), "jump back is not in the map");
        let back = slot.next()?;
        ensure!(is_near_jump(&back, resume), "jumps back by {back:?}, not to {resume:#x}");
    }
    let relay = slot.at();
    if slot.left() > 0 {
        let jump = slot.next()?;
        ensure!(
            jump.code() == Opcode::Jmp_rm64 && jump.ip_rel_memory_address() == jump.next_ip(),
            "relay begins with {jump:?}"
        );
        ensure!(slot.rest() == given.detour.to_le_bytes(), "relay does not go to the detour");
    }
    check_patch(given, plan, survey, code, code_len, (relay, slot.far))?;
    check_map(plan, &decoded)?;
    ensure!(survey.slot_need() >= plan.slot_bytes().len(), "slot_need is too small");
    ensure!(
        (survey.shape() == Shape::WholeInstruction) == (originals.len() == 1),
        "shape {} for {} instructions",
        survey.shape(),
        originals.len()
    );
    Ok(())
}

fn decode(bytes: &[u8], ip: u64) -> Result<Instruction, String> {
    let mut decoder = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        Err(format!("{ip:#x} does not decode: {bytes:02x?}"))
    } else {
        Ok(instruction)
    }
}

/// Whether control can reach the address behind an instruction.
fn goes_on(instruction: &Instruction) -> bool {
    !matches!(
        instruction.flow_control(),
        FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Return
            | FlowControl::Exception
    )
}

fn is_near_branch(instruction: &Instruction) -> bool {
    matches!(instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
}

fn is_near_jump(instruction: &Instruction, target: u64) -> bool {
    instruction.mnemonic() == Mnemonic::Jmp
        && is_near_branch(instruction)
        && instruction.near_branch_target() == target
}

/// Whole instructions until five bytes are full, or until nothing reaches the next one.
fn displaced(code: &[u8], window: u64) -> Result<Vec<Instruction>, String> {
    let mut found: Vec<Instruction> = Vec::new();
    let mut at = 0;
    while at < 5 {
        let ip = window + at as u64;
        let reached = found.last().is_none_or(goes_on)
            || found.iter().any(|one| is_near_branch(one) && one.near_branch_target() == ip);
        if !reached {
            break;
        }
        let one = decode(code.get(at..).unwrap_or(&[]), ip)?;
        at += one.len();
        found.push(one);
    }
    Ok(found)
}

/// What is overwritten behind the last displaced instruction is never run. Answers where the padding ends.
fn check_padding(code: &[u8], originals: &[Instruction], code_len: usize) -> Result<usize, String> {
    let mut at = code_len;
    while at < 5 {
        let one = decode(code.get(at..).unwrap_or(&[]), at as u64)?;
        ensure!(
            matches!(one.mnemonic(), Mnemonic::Nop | Mnemonic::Int3),
            "overwrites {one:?}, which is no padding"
        );
        ensure!(!originals.last().is_some_and(goes_on), "runs into padding");
        at += one.len();
    }
    Ok(at)
}

/// No direct branch of the function, read from one end to the other, lands in the window.
fn check_branches_into_window(
    given: &Given<'_>,
    skip: usize,
    rest: usize,
    window: u64,
) -> Result<(), String> {
    let Some(length) = given.length else {
        return Ok(());
    };
    // No function goes round the end of the address space.
    let room = usize::try_from(u64::MAX - given.entry).unwrap_or(usize::MAX);
    let end = length.min(given.bytes.len()).min(room);
    let bytes = given.bytes.get(skip + rest..end).unwrap_or(&[]);
    let mut decoder = Decoder::with_ip(64, bytes, window + rest as u64, DecoderOptions::NONE);
    while decoder.can_decode() {
        let one = decoder.decode();
        if one.is_invalid() || !is_near_branch(&one) {
            continue;
        }
        let target = one.near_branch_target();
        let call_of_start = one.mnemonic() == Mnemonic::Call && target == window;
        ensure!(
            call_of_start || !(window..window + WINDOW).contains(&target),
            "{:#x} branches into the window, to {target:#x}",
            one.ip()
        );
    }
    Ok(())
}

/// Reads a slot from its first byte on.
struct Slot<'a> {
    bytes: &'a [u8],
    address: u64,
    at: usize,
    far: bool,
}

impl<'a> Slot<'a> {
    fn new(plan: &'a Plan) -> Self {
        Self { bytes: plan.slot_bytes(), address: plan.trampoline(), at: 0, far: false }
    }

    fn at(&self) -> u64 {
        self.address.wrapping_add(self.at as u64)
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or(&[])
    }

    fn left(&mut self) -> usize {
        self.far = !self.rest().is_empty();
        self.rest().len()
    }

    fn next(&mut self) -> Result<Instruction, String> {
        let one = decode(self.rest(), self.at())?;
        self.at += one.len();
        Ok(one)
    }
}

fn check_copy(
    original: &Instruction,
    slot: &mut Slot<'_>,
    resolve: impl Fn(u64) -> Result<u64, String>,
) -> Result<(), String> {
    if original.mnemonic() == Mnemonic::Call {
        return check_call(original, slot);
    }
    let copy = slot.next()?;
    if !is_near_branch(original) {
        // Compares everything but address and length; a RIP-relative displacement is the address it means.
        ensure!(copy == *original, "copied as {copy:?}");
        return Ok(());
    }
    let target = resolve(original.near_branch_target())?;
    ensure!(copy.mnemonic() == original.mnemonic(), "copied as {copy:?}");
    if original.is_jcx_short() || original.is_loop() || original.is_loopcc() {
        ensure!(copy.code() == original.code(), "counts in another register");
        let skip = slot.next()?;
        let jump = slot.next()?;
        ensure!(copy.near_branch_target() == jump.ip(), "taken, goes to {copy:?}");
        ensure!(is_near_jump(&skip, jump.next_ip()), "not taken, goes to {skip:?}");
        ensure!(is_near_jump(&jump, target), "taken, goes on to {jump:?}");
        return Ok(());
    }
    ensure!(
        copy.near_branch_target() == target,
        "branches to {:#x}, not {target:#x}",
        copy.near_branch_target()
    );
    Ok(())
}

/// A call must have become: push of the original return address, jump to the callee.
fn check_call(original: &Instruction, slot: &mut Slot<'_>) -> Result<(), String> {
    let push = slot.next()?;
    ensure!(push.code() == Opcode::Pushq_imm32, "pushes by {push:?}");
    let mut pushed = push.immediate32to64().cast_unsigned();
    let mut copy = None;
    let is_jump_next = decode(slot.rest(), slot.at()).is_ok_and(|one| one.mnemonic() == Mnemonic::Jmp);
    let returns_to = original.next_ip();
    if pushed != returns_to {
        ensure!(!is_jump_next, "pushes {pushed:#x} alone");
        let high = slot.next()?;
        ensure!(
            high.code() == Opcode::Mov_rm32_imm32
                && high.memory_base() == Register::RSP
                && high.memory_index() == Register::None
                && high.memory_displacement64() == 4,
            "completes the return address by {high:?}"
        );
        pushed = pushed & 0xffff_ffff | u64::from(high.immediate32()) << 32;
    }
    ensure!(pushed == returns_to, "pushes {pushed:#x}, not {returns_to:#x}");
    let direct = original.code() == Opcode::Call_rel32_64;
    if !(direct && original.near_branch_target() == returns_to) {
        copy = Some(slot.next()?);
    }
    let Some(jump) = copy else { return Ok(()) };
    if direct {
        ensure!(is_near_jump(&jump, original.near_branch_target()), "calls {jump:?}");
        return Ok(());
    }
    ensure!(original.code() == Opcode::Call_rm64, "an unknown call");
    ensure!(jump.code() == Opcode::Jmp_rm64, "calls by {jump:?}");
    let stack = |register: Register| register.full_register() == Register::RSP;
    ensure!(
        !stack(original.op0_register()) && !stack(original.memory_base()),
        "reads its target from the stack that the push has moved"
    );
    let operand = |one: &Instruction| {
        (
            one.op0_kind(),
            one.op0_register(),
            one.memory_base(),
            one.memory_index(),
            one.memory_index_scale(),
            one.memory_displacement64(),
            one.memory_segment(),
        )
    };
    // For a register operand the memory fields say nothing, and both are the same anyway.
    ensure!(operand(original) == operand(&jump), "calls through {jump:?}");
    Ok(())
}

fn check_patch(
    given: &Given<'_>,
    plan: &Plan,
    survey: &Survey,
    code: &[u8],
    code_len: usize,
    (relay, far): (u64, bool),
) -> Result<(), String> {
    let patch = plan.patch();
    let len = code_len.max(5);
    ensure!(patch.address() == survey.window(), "patch beside the window");
    ensure!(Some(patch.original_bytes()) == code.get(..len), "original bytes differ");
    ensure!(survey.original_bytes() == patch.original_bytes(), "survey and patch differ");
    ensure!(Some(&patch.window_bytes()[..]) == code.get(..5), "window bytes differ");
    let (patched, patched_len) = patch.patched_bytes();
    ensure!(patched_len == len, "patched {patched_len} bytes, not {len}");
    ensure!(patched.get(..5) == Some(&patch.new_bytes()[..]), "patched bytes differ");
    ensure!(patched.get(5..len) == code.get(5..len), "writes behind the window");
    let jump = decode(&patch.new_bytes(), patch.address())?;
    let goes_to = if far { relay } else { given.detour };
    ensure!(jump.len() == 5 && is_near_jump(&jump, goes_to), "patch is {jump:?}, not {goes_to:#x}");
    ensure!(patch.detour() == given.detour, "another detour");
    ensure!(patch.shape() == survey.shape(), "another shape");
    Ok(())
}

/// Boundaries and map agree with each other, and are one to one.
fn check_map(plan: &Plan, decoded: &[u64]) -> Result<(), String> {
    let patch = plan.patch();
    let boundaries = patch.boundaries();
    let of_patch: Vec<_> = boundaries.iter().map(|one| patch.address() + u64::from(one.offset)).collect();
    ensure!(of_patch == decoded, "boundaries {of_patch:x?}, instructions {decoded:x?}");
    ensure!(boundaries.iter().all(|one| one.offset < 5), "boundary behind the window");
    for (boundary, &old) in boundaries.iter().zip(decoded) {
        ensure!(plan.ip_map().to_slot(old) == Some(boundary.address), "map and boundary differ");
    }
    ensure!(boundaries.first().map(|one| one.address) == Some(patch.trampoline()), "trampoline");
    let pairs = plan.ip_map().pairs();
    let old: BTreeSet<_> = pairs.iter().map(|pair| pair.0).collect();
    let new: BTreeSet<_> = pairs.iter().map(|pair| pair.1).collect();
    ensure!(old.len() == pairs.len() && new.len() == pairs.len(), "map is not one to one");
    let slot = plan.trampoline()..plan.trampoline() + plan.slot_bytes().len() as u64;
    for &(old, new) in pairs {
        ensure!(plan.ip_map().to_original(new) == Some(old), "map does not lead back");
        ensure!(slot.contains(&new), "map leads out of the slot");
    }
    Ok(())
}
