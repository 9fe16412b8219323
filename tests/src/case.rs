//! Functions to be executed natively, as data: `native/cases*.txt`, whose first lines say how they are written.

use crate::record::disassembly;
use kdetour_plan::Mode;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Where a case's pages are taken to lie while its disassembly is checked, and where it is run first.
pub const BASE: u64 = 0x1000_0000;
/// Where the function begins in its page of code.
pub const ENTRY: usize = 0x100;

/// One function, what lies around it, and what it is called with.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// 64-bit or 32-bit code.
    pub mode: Mode,
    /// The page of code; what no line fills is INT3.
    pub code: Vec<u8>,
    /// The page of data behind it, without pointers.
    pub data: Vec<u8>,
    /// The function's length.
    pub length: usize,
    /// Bytes in front of the function and behind it that belong to nobody.
    pub before: usize,
    /// Where the next symbol is in the page, if somebody knows.
    pub next: Option<usize>,
    /// Offset of a pointer in the data page, and of what it points to in both pages.
    pub pointers: Vec<(usize, u64)>,
    /// Whether the code has absolute addresses, so that it can lie at [`BASE`] only.
    pub low: bool,
    /// A processor feature without which it cannot run.
    pub needs: Option<String>,
    /// How often a call passes the detour; none: any number.
    pub entries: Option<u64>,
    /// Asks the plan for what branches back to its own start.
    pub reentry: bool,
    /// The plan is asked to let callees return to the slot.
    pub returns_slot: bool,
    /// It reads its own flags, so it cannot be stepped through.
    pub no_steps: bool,
    /// The reason for which every shape is refused.
    pub refused: Option<String>,
    /// Calls.
    pub runs: Vec<Run>,
}

/// What a call finds: registers, flags, arguments on the stack. An offset into the pages where `relative`.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Number of a register (as in ModRM), and its value.
    pub registers: Vec<(usize, Value)>,
    /// Status flags.
    pub flags: u64,
    /// Stack arguments by number.
    pub arguments: Vec<(usize, Value)>,
}

/// A number, or an offset into the case's pages.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// Itself.
    Number(u64),
    /// So many bytes behind the page of code's start.
    Offset(u64),
}

impl Value {
    /// The value for a case at `base`.
    pub const fn at(self, base: u64) -> u64 {
        match self {
            Self::Number(number) => number,
            Self::Offset(offset) => base.wrapping_add(offset),
        }
    }
}

/// Reads a file of cases.
///
/// # Panics
/// At the first line that is not as it should be.
pub fn parse(mode: Mode, file: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut why = true;
    let mut at = ENTRY;
    for (index, line) in file.lines().enumerate() {
        let fail = |what: &str| -> ! { panic!("line {}: {what}: {line}", index + 1) };
        let words: Vec<&str> = line.split_whitespace().collect();
        let [key, rest @ ..] = &words[..] else { continue };
        if *key == "case" {
            if !why {
                fail("the case before does not say why it matters");
            }
            (why, at) = (false, ENTRY);
            cases.push(Case::named(mode, rest.first().unwrap_or_else(|| fail("no name"))));
            continue;
        }
        let Some(case) = cases.last_mut() else { continue };
        let offset = |index: usize| -> usize {
            let word = rest.get(index).unwrap_or_else(|| fail("a number is missing"));
            number(word).and_then(|number| usize::try_from(number).ok()).unwrap_or_else(|| fail("no number"))
        };
        match *key {
            "#" => why = true,
            "at" => {
                at = offset(0);
                let next = case.next.unwrap_or(PAGE);
                case.next = if at > ENTRY { Some(next.min(at)) } else { case.next };
            }
            "code" => {
                let (bytes, beside) = line.split_once(';').unwrap_or_else(|| fail("no disassembly beside"));
                let bytes = parse_bytes(bytes.split_whitespace().skip(1)).unwrap_or_else(|| fail("no bytes"));
                let (text, len) = disassembly(mode, BASE + at as u64, &bytes);
                if beside.trim() != text || len != bytes.len() {
                    fail(&format!("these bytes are: {text}"));
                }
                case.put(at, &bytes);
                at += bytes.len();
                if (ENTRY..ENTRY + PAGE / 2).contains(&at) && case.length + ENTRY + bytes.len() == at {
                    case.length += bytes.len();
                }
            }
            "after" => {
                let bytes = parse_bytes(rest.iter().copied()).unwrap_or_else(|| fail("no bytes"));
                case.put(at, &bytes);
                at += bytes.len();
                case.next = Some(case.next.unwrap_or(PAGE).min(at));
            }
            "before" => {
                let bytes = parse_bytes(rest.iter().copied()).unwrap_or_else(|| fail("no bytes"));
                case.before = bytes.len();
                case.put(ENTRY - bytes.len(), &bytes);
            }
            "pointer" => case.pointers.push((offset(0) - PAGE, offset(1) as u64)),
            "table" => {
                for entry in 1..rest.len() {
                    // Entries relative to the table, as compilers of 64-bit code make them.
                    let relative = (offset(entry) as u32).wrapping_sub(offset(0) as u32);
                    let place = offset(0) - PAGE + 4 * (entry - 1);
                    case.data[place..place + 4].copy_from_slice(&relative.to_le_bytes());
                }
            }
            "low" => case.low = true,
            "needs" => case.needs = rest.first().map(|word| (*word).into()),
            "entries" => case.entries = rest.first().and_then(|word| number(word)),
            "reentry" => case.reentry = true,
            "returns-slot" => case.returns_slot = true,
            "no-steps" => case.no_steps = true,
            "refused" => case.refused = rest.first().map(|word| (*word).into()),
            "run" => case.runs.push(run(rest).unwrap_or_else(|| fail("no call"))),
            _ => fail("no such key"),
        }
    }
    assert!(
        cases.iter().all(|case| !case.runs.is_empty() || case.refused.is_some()),
        "a case is never called"
    );
    cases
}

impl Case {
    fn named(mode: Mode, name: &str) -> Self {
        // Something in every byte, and no two words the same.
        let data = (0..PAGE).map(|at| (at * 7 + at / 8 * 13 + 1) as u8).collect();
        Self {
            name: name.into(),
            mode,
            code: vec![0xcc; PAGE],
            data,
            length: 0,
            before: 0,
            next: None,
            pointers: Vec::new(),
            low: false,
            needs: None,
            entries: Some(1),
            reentry: false,
            returns_slot: false,
            no_steps: false,
            refused: None,
            runs: Vec::new(),
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.code[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The page of data for a case at `base`.
    pub fn data_at(&self, base: u64) -> Vec<u8> {
        let mut data = self.data.clone();
        let len = self.mode.bits() as usize / 8;
        for &(place, offset) in &self.pointers {
            let pointer = base.wrapping_add(offset).to_le_bytes();
            data[place..place + len].copy_from_slice(&pointer[..len]);
        }
        data
    }
}

fn parse_bytes<'a>(words: impl Iterator<Item = &'a str>) -> Option<Vec<u8>> {
    words.map(|word| u8::from_str_radix(word, 16).ok()).collect()
}

fn number(word: &str) -> Option<u64> {
    if let Some(positive) = word.strip_prefix('-') {
        return number(positive).map(u64::wrapping_neg);
    }
    match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

const REGISTERS: [[&str; 2]; 16] = [
    ["rax", "eax"],
    ["rcx", "ecx"],
    ["rdx", "edx"],
    ["rbx", "ebx"],
    ["rsp", "esp"],
    ["rbp", "ebp"],
    ["rsi", "esi"],
    ["rdi", "edi"],
    ["r8", ""],
    ["r9", ""],
    ["r10", ""],
    ["r11", ""],
    ["r12", ""],
    ["r13", ""],
    ["r14", ""],
    ["r15", ""],
];

/// `rdi=1 rsi=@0x1100 flags=0x40 a0=5`.
fn run(words: &[&str]) -> Option<Run> {
    let mut run = Run::default();
    for word in words {
        let (name, value) = word.split_once('=')?;
        let value = match value.strip_prefix('@') {
            Some(offset) => Value::Offset(number(offset)?),
            None => Value::Number(number(value)?),
        };
        if name == "flags" {
            run.flags = value.at(0);
        } else if let Some(register) = REGISTERS.iter().position(|names| names.contains(&name)) {
            run.registers.push((register, value));
        } else {
            run.arguments.push((name.strip_prefix('a')?.parse().ok()?, value));
        }
    }
    Some(run)
}
