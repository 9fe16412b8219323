//! How a case is written down: what stands in the first lines of `cases/branches.txt`, as code.
//!
//! Used by the cases' test, and by the fuzzer's `seeds`, which makes its first inputs of the cases.
#![allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "not every user needs everything")]
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a wrong file has to fail")]

pub mod found;

use iced_x86::{Decoder, DecoderOptions};
use kdetour_plan::{
    Code, Context, MAX_SLOT, Mode, Options, Owner, Region, Reserved, Returns, Shape, Shapes, Slot, Traps,
};

/// One case as it is written in a file.
pub struct Case {
    pub name: String,
    pub why: bool,
    pub mode: Mode,
    pub at: u64,
    pub bytes: Vec<u8>,
    pub length: Option<usize>,
    pub fentry: Option<u64>,
    pub next: Option<u64>,
    pub before: Vec<u8>,
    pub dead: bool,
    pub image: Option<(u64, u64)>,
    pub targets: Vec<u64>,
    pub parts: Vec<(u64, Vec<u8>)>,
    pub reserved: Vec<Reserved>,
    pub rewritten: Vec<Reserved>,
    pub data: Vec<(u64, Vec<u8>)>,
    pub got: Option<u64>,
    pub slot: Slot,
    /// Where the model allocator has room; a case that names none has its slot.
    pub room: Vec<(u64, u64)>,
    pub detour: u64,
    pub options: Options,
    /// The offers are part of what is looked at.
    pub offers: bool,
    /// The lines of the expectation, spaces made equal.
    pub expected: Vec<String>,
}

/// The lists that a case's context refers to.
pub struct Lists<'a> {
    parts: Vec<Code<'a>>,
    data: Vec<Region<'a>>,
}

impl Case {
    fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            why: false,
            mode: Mode::Bits64,
            at: 0x40_1000,
            bytes: Vec::new(),
            length: Some(0),
            fentry: None,
            next: None,
            before: Vec::new(),
            dead: false,
            image: None,
            targets: Vec::new(),
            parts: Vec::new(),
            reserved: Vec::new(),
            rewritten: Vec::new(),
            data: Vec::new(),
            got: None,
            slot: Slot { address: 0x50_0000, capacity: MAX_SLOT },
            room: Vec::new(),
            detour: 0x60_0000,
            options: Options {
                shapes: Shapes::only(Shape::WholeInstruction).with(Shape::Jump5),
                ..Options::default()
            },
            offers: false,
            expected: Vec::new(),
        }
    }

    pub fn code(&self) -> Code<'_> {
        let code = Code::in_mode(self.mode, self.at, &self.bytes);
        match self.length {
            Some(length) => code.with_length(length),
            None => code,
        }
    }

    pub fn lists(&self) -> Lists<'_> {
        let parts = self.parts.iter().map(|(at, bytes)| Code::in_mode(self.mode, *at, bytes)).collect();
        let mut data: Vec<_> =
            self.data.iter().map(|(address, bytes)| Region { address: *address, bytes }).collect();
        data.sort_by_key(|region| region.address);
        Lists { parts, data }
    }

    pub fn context<'a>(&'a self, lists: &'a Lists<'a>) -> Context<'a> {
        Context {
            fentry: self.fentry,
            next_symbol: self.next,
            before: &self.before,
            dead: self.dead,
            image: self.image,
            parts: &lists.parts,
            branch_targets: &self.targets,
            reserved: &self.reserved,
            rewritten: &self.rewritten,
            data: &lists.data,
            got: self.got,
        }
    }

    /// `code 55 ; push rbp`: adds bytes, whose disassembly must be what stands beside them. `after` adds bytes that
    /// lie behind the function's end. What is no instruction is written as `; .. words`.
    fn add(&mut self, line: &str) -> Result<(), String> {
        let (bytes, beside) = line.split_once(';').ok_or("no disassembly beside the bytes")?;
        let mut words = bytes.split_whitespace();
        let inside = words.next() == Some("code");
        let bytes = words.map(|byte| u8::from_str_radix(byte, 16).map_err(|_| format!("{byte} is no byte")));
        let bytes = bytes.collect::<Result<Vec<u8>, _>>()?;
        let ip = self.at.wrapping_add(self.bytes.len() as u64);
        let beside = beside.split_whitespace().collect::<Vec<_>>().join(" ");
        if !beside.starts_with("..") {
            let one = Decoder::with_ip(self.mode.bits(), &bytes, ip, DecoderOptions::NONE).decode();
            if one.len() != bytes.len() || kdetour_oracle::text(&one) != beside {
                return Err(format!("{} bytes at {ip:#x} are: {}", one.len(), kdetour_oracle::text(&one)));
            }
        }
        if let Some(length) = self.length.as_mut().filter(|_| inside) {
            *length += bytes.len();
        }
        self.bytes.extend(bytes);
        Ok(())
    }

    /// Takes a line's words; false if there is no such key.
    fn key(&mut self, key: &str, rest: &[&str]) -> bool {
        let at = |at: usize| -> u64 { number(rest.get(at).expect("a number is missing")) };
        let size = |word: usize| usize::try_from(at(word)).expect("a size");
        let owned = || Reserved {
            address: at(0),
            len: u32::try_from(at(1)).expect("a length"),
            owner: owner(rest.get(2).expect("an owner is missing")),
        };
        match key {
            "mode" => self.mode = if at(0) == 32 { Mode::Bits32 } else { Mode::Bits64 },
            "at" => self.at = at(0),
            "length" if rest == ["unknown"] => self.length = None,
            "length" => self.length = Some(size(0)),
            "fentry" => self.fentry = Some(at(0)),
            "next" => self.next = Some(at(0)),
            "before" => self.before = bytes(rest),
            "dead" => self.dead = true,
            "image" => self.image = Some((at(0), at(1))),
            "target" => self.targets.push(at(0)),
            "part" => self.parts.push((at(0), bytes(&rest[1..]))),
            "reserved" => self.reserved.push(owned()),
            "rewritten" => self.rewritten.push(owned()),
            "data" => self.data.push((at(0), bytes(&rest[1..]))),
            "quads" => self.data.push((at(0), table(&rest[1..], 0, 8))),
            "longs" => self.data.push((at(0), table(&rest[1..], 0, 4))),
            "offsets" => self.data.push((at(0), table(&rest[2..], at(1), 4))),
            "got" => self.got = Some(at(0)),
            "slot" => self.slot.address = at(0),
            "capacity" => self.slot.capacity = size(0),
            "room" => self.room.push((at(0), at(1))),
            "detour" => self.detour = at(0),
            "landing-pad" => self.options.landing_pad = true,
            "shapes" if rest == ["all"] => self.options.shapes = Shapes::ALL,
            "shapes" => {
                self.options.shapes = rest.iter().fold(Shapes::NONE, |shapes, name| shapes.with(shape(name)));
            }
            "returns" => {
                self.options.returns = if rest == ["slot"] { Returns::Slot } else { Returns::Original }
            }
            "traps" => self.options.traps = if rest == ["invalid"] { Traps::Invalid } else { Traps::Int3 },
            "reentry" => self.options.reentry = true,
            "one-byte" => self.options.one_byte = true,
            "roomy" => self.options.roomy = true,
            "offers" => self.offers = true,
            "window" | "interior" | "patch" | "bytes" | "cave" | "trampoline" | "=>" | "hazard"
            | "refused" | "thunk" | "offer" => self.expected.push([&[key], rest].concat().join(" ")),
            "#" => self.why = true,
            _ => return false,
        }
        true
    }
}

/// The cases of a file.
///
/// # Panics
/// If it is written wrongly.
pub fn parse(file: &str) -> Vec<Case> {
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
        match *key {
            "code" | "after" => case.add(line).unwrap_or_else(|why| fail(&why)),
            _ if case.key(key, rest) => {}
            _ => fail("no such key"),
        }
    }
    cases
}

fn bytes(words: &[&str]) -> Vec<u8> {
    words.iter().map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect()
}

/// A jump table: the targets' distances from `base`, `size` bytes each.
fn table(targets: &[&str], base: u64, size: usize) -> Vec<u8> {
    let entry = |word: &&str| number(word).wrapping_sub(base).to_le_bytes()[..size].to_vec();
    targets.iter().flat_map(entry).collect()
}

fn number(word: &str) -> u64 {
    let parsed = match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => word.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("{word} is no number"))
}

fn shape(word: &str) -> Shape {
    Shape::ALL.into_iter().find(|shape| shape.name() == word).unwrap_or_else(|| panic!("{word} is no shape"))
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
