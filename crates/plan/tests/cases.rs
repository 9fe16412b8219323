//! Runs the cases of `tests/cases/*.txt`, which say in their first lines how they are written.
//!
//! A case that does not hold prints what was found, in the file's own notation.
#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test: it may fail")]

mod oracle;

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};
use kdetour_plan::{
    Code, Context, Hazard, MAX_SLOT, Options, Owner, Plan, Refusal, Reserved, Slot, Survey, Thunk, thunk,
};
use std::fmt::Write as _;

#[test]
fn branches() {
    run(include_str!("cases/branches.txt"));
}

#[test]
fn operands() {
    run(include_str!("cases/operands.txt"));
}

#[test]
fn calls() {
    run(include_str!("cases/calls.txt"));
}

#[test]
fn entries() {
    run(include_str!("cases/entries.txt"));
}

#[test]
fn bounds() {
    run(include_str!("cases/bounds.txt"));
}

#[test]
fn slots() {
    run(include_str!("cases/slots.txt"));
}

/// One case as it is written in a file.
struct Case {
    name: String,
    why: bool,
    at: u64,
    bytes: Vec<u8>,
    length: Option<usize>,
    fentry: Option<u64>,
    next: Option<u64>,
    image: Option<(u64, u64)>,
    targets: Vec<u64>,
    parts: Vec<(u64, Vec<u8>)>,
    reserved: Vec<Reserved>,
    slot: Slot,
    detour: u64,
    landing_pad: bool,
    /// The lines of the expectation, spaces made equal.
    expected: Vec<String>,
}

fn run(file: &str) {
    let mut failures = String::new();
    let cases = parse(file);
    assert!(!cases.is_empty(), "the file holds no case");
    for case in cases {
        assert!(case.why, "case {} does not say why it matters", case.name);
        let found = outcome(&case);
        if found != case.expected {
            let _ = write!(failures, "\ncase {}\nfound:\n", case.name);
            for line in &found {
                let _ = writeln!(failures, "{line}");
            }
            let _ = writeln!(failures, "expected:\n{}", case.expected.join("\n"));
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// What the crate makes of a case, as lines of an expectation.
fn outcome(case: &Case) -> Vec<String> {
    let mut code = Code::new(case.at, &case.bytes);
    if let Some(length) = case.length {
        code = code.with_length(length);
    }
    let parts: Vec<Code<'_>> = case.parts.iter().map(|(at, bytes)| Code::new(*at, bytes)).collect();
    let context = Context {
        parts: &parts,
        fentry: case.fentry,
        next_symbol: case.next,
        image: case.image,
        branch_targets: &case.targets,
        reserved: &case.reserved,
    };
    let mut lines = match plan(case, &code, &context) {
        Ok(lines) => lines,
        Err(refusal) => vec![refused(&refusal)],
    };
    if case.expected.iter().any(|line| line.starts_with("thunk")) {
        lines.push(match thunk(&code) {
            Some(Thunk::To(target)) => format!("thunk To {target:#x}"),
            Some(Thunk::Through(pointer)) => format!("thunk Through {pointer:#x}"),
            None => "thunk none".into(),
        });
    }
    lines
}

fn plan(case: &Case, code: &Code<'_>, context: &Context<'_>) -> Result<Vec<String>, Refusal> {
    let survey = Survey::of(code, context)?;
    let options = Options { landing_pad: case.landing_pad };
    let plan = Plan::with_options(&survey, case.slot, case.detour, options)?;
    let given = oracle::Given {
        entry: case.at,
        bytes: &case.bytes,
        length: case.length,
        detour: case.detour,
        landing_pad: case.landing_pad,
    };
    if let Err(why) = oracle::check(&given, &survey, &plan) {
        panic!("case {}: the oracle disagrees: {why}", case.name);
    }

    let mut lines = vec![format!("window {:#x} {}", survey.window(), survey.shape())];
    let interior: Vec<_> = survey.interior_boundaries().map(|at| format!("{at:#x}")).collect();
    if !interior.is_empty() {
        lines.push(format!("interior {}", interior.join(" ")));
    }
    let patch = plan.patch().new_bytes();
    lines.push(format!("patch {}", listing(&patch, survey.window())[0].1));
    for (address, text) in listing(plan.slot_bytes(), plan.trampoline()) {
        lines.push(format!("=> {address:#x} {text}"));
    }
    lines.extend(survey.hazards().iter().map(hazard));
    Ok(lines)
}

fn refused(refusal: &Refusal) -> String {
    let mut line = format!("refused {} {:#x}", refusal.name(), refusal.address());
    let _ = match refusal {
        Refusal::Unsupported { why, .. } => write!(line, " {why:?}"),
        Refusal::Reserved { owner, .. } => write!(line, " {owner:?}"),
        Refusal::BranchIntoWindow { from, .. } => write!(line, " from {from:#x}"),
        Refusal::SlotTooSmall { needed, .. } => write!(line, " needs {needed}"),
        _ => Ok(()),
    };
    line
}

fn hazard(hazard: &Hazard) -> String {
    match hazard {
        Hazard::LengthUnknown => "hazard LengthUnknown".into(),
        Hazard::NotWhollyRead { address } => format!("hazard NotWhollyRead {address:#x}"),
        Hazard::Call { address, returns_to } => format!("hazard Call {address:#x} returns {returns_to:#x}"),
        Hazard::IndirectJump { address } => format!("hazard IndirectJump {address:#x}"),
        Hazard::SystemCall { address } => format!("hazard SystemCall {address:#x}"),
        Hazard::Undecodable { address } => format!("hazard Undecodable {address:#x}"),
        other => format!("hazard {other:?}"),
    }
}

/// Disassembles; the eight bytes behind `jmp [rip+0]` are a pointer.
fn listing(bytes: &[u8], address: u64) -> Vec<(u64, String)> {
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    let mut lines = Vec::new();
    while decoder.can_decode() {
        let one = decoder.decode();
        lines.push((one.ip(), text(&one)));
        let pointer = bytes.get(decoder.position()..).unwrap_or(&[]);
        if one.is_ip_rel_memory_operand() && one.ip_rel_memory_address() == one.next_ip() {
            let pointer = u64::from_le_bytes(pointer.try_into().expect("eight bytes behind a relay's jump"));
            lines.push((one.next_ip(), format!("dq {pointer:#x}")));
            break;
        }
    }
    lines
}

fn text(one: &Instruction) -> String {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    options.set_space_after_operand_separator(true);
    options.set_small_hex_numbers_in_decimal(true);
    let mut text = String::new();
    formatter.format(one, &mut text);
    text
}

fn parse(file: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for (index, line) in file.lines().enumerate() {
        let fail = |why: &str| -> ! { panic!("line {}: {why}: {line}", index + 1) };
        let words: Vec<&str> = line.split_whitespace().collect();
        let [key, rest @ ..] = &words[..] else { continue };
        if *key == "case" {
            let [name] = rest else { fail("a case has a name of one word") };
            cases.push(Case::named(name));
            continue;
        }
        let Some(case) = cases.last_mut() else {
            if key.starts_with('#') {
                continue;
            }
            fail("no case yet")
        };
        let at = |at: usize| -> u64 { number(rest.get(at).unwrap_or_else(|| fail("a number is missing"))) };
        match *key {
            "at" => case.at = at(0),
            "code" | "after" => case.code(line).unwrap_or_else(|why| fail(&why)),
            "length" if rest == ["unknown"] => case.length = None,
            "length" => case.length = Some(usize::try_from(at(0)).expect("a length")),
            "fentry" => case.fentry = Some(at(0)),
            "next" => case.next = Some(at(0)),
            "image" => case.image = Some((at(0), at(1))),
            "target" => case.targets.push(at(0)),
            "part" => {
                let bytes = rest[1..].iter().map(|byte| u8::from_str_radix(byte, 16).expect("a byte"));
                case.parts.push((at(0), bytes.collect()));
            }
            "reserved" => case.reserved.push(Reserved {
                address: at(0),
                len: u32::try_from(at(1)).expect("a length"),
                owner: owner(rest.get(2).unwrap_or_else(|| fail("an owner is missing"))),
            }),
            "slot" => case.slot.address = at(0),
            "capacity" => case.slot.capacity = usize::try_from(at(0)).expect("a capacity"),
            "detour" => case.detour = at(0),
            "landing-pad" => case.landing_pad = true,
            "window" | "interior" | "patch" | "=>" | "hazard" | "refused" | "thunk" => {
                case.expected.push(words.join(" "));
            }
            "#" => case.why = true,
            _ => fail("no such key"),
        }
    }
    cases
}

fn number(word: &str) -> u64 {
    let parsed = match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => word.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("{word} is no number"))
}

fn owner(word: &str) -> Owner {
    match word {
        "ExceptionTable" => Owner::ExceptionTable,
        "JumpLabel" => Owner::JumpLabel,
        "StaticCall" => Owner::StaticCall,
        "Alternative" => Owner::Alternative,
        "Ftrace" => Owner::Ftrace,
        "BugTable" => Owner::BugTable,
        "Kprobe" => Owner::Kprobe,
        _ => panic!("{word} owns nothing"),
    }
}

impl Case {
    fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            why: false,
            at: 0x40_1000,
            bytes: Vec::new(),
            length: Some(0),
            fentry: None,
            next: None,
            image: None,
            targets: Vec::new(),
            parts: Vec::new(),
            reserved: Vec::new(),
            slot: Slot { address: 0x50_0000, capacity: MAX_SLOT },
            detour: 0x60_0000,
            landing_pad: false,
            expected: Vec::new(),
        }
    }

    /// `code 55 ; push rbp`: adds bytes, whose disassembly must be what stands beside them. `after` adds bytes that
    /// lie behind the function's end. What is no instruction is written as `; .. words`.
    fn code(&mut self, line: &str) -> Result<(), String> {
        let (bytes, beside) = line.split_once(';').ok_or("no disassembly beside the bytes")?;
        let mut words = bytes.split_whitespace();
        let inside = words.next() == Some("code");
        let bytes = words.map(|byte| u8::from_str_radix(byte, 16).map_err(|_| format!("{byte} is no byte")));
        let bytes = bytes.collect::<Result<Vec<u8>, _>>()?;
        let ip = self.at.wrapping_add(self.bytes.len() as u64);
        let beside = beside.split_whitespace().collect::<Vec<_>>().join(" ");
        if !beside.starts_with("..") {
            let one = Decoder::with_ip(64, &bytes, ip, DecoderOptions::NONE).decode();
            if one.len() != bytes.len() || text(&one) != beside {
                return Err(format!("{} bytes at {ip:#x} are: {}", one.len(), text(&one)));
            }
        }
        if let Some(length) = self.length.as_mut().filter(|_| inside) {
            *length += bytes.len();
        }
        self.bytes.extend(bytes);
        Ok(())
    }
}
