//! Writes plan records of every function of ELF files, in every shape that the survey offers, for `run.py`. (The
//! command `kdetour scan --plans` writes only the best shape, but knows far more about files.)
//!
//! ```text
//! cargo run -p kdetour-tests --example records -- [--base ADDRESS] FILE... > plans.jsonl
//! cargo run -p kdetour-tests --example records -- --random COUNT SEED > plans.jsonl
//! ```
//!
//! `--random` makes functions up: instructions that are hard to move, in any order, and bytes of no meaning.
#![expect(clippy::expect_used, reason = "a program for tests: it may fail")]

mod made_up;

use kdetour_plan::{Code, Context, Mode, Options, Plan, Shape, Shapes, Survey, Traps};
use kdetour_tests::places::Places;
use kdetour_tests::record;
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};
use std::collections::BTreeMap;
use std::io::{BufWriter, Write, stdout};
use std::{env, fs};

fn main() {
    let mut arguments = env::args().skip(1).peekable();
    let mut base = None;
    if arguments.next_if(|word| word == "--base").is_some() {
        let word = arguments.next().expect("--base has an address");
        base = Some(u64::from_str_radix(word.trim_start_matches("0x"), 16).expect("an address in hex"));
    }
    let mut out = BufWriter::new(stdout().lock());
    if arguments.next_if(|word| word == "--random").is_some() {
        let mut number = || arguments.next().and_then(|word| word.parse().ok()).expect("a number");
        made_up::functions(number(), number(), &mut out);
        return;
    }
    for path in arguments {
        file(&path, base, &mut out);
    }
}

fn file(path: &str, base: Option<u64>, out: &mut impl Write) {
    let data = fs::read(path).expect("the file can be read");
    let file = object::File::parse(&*data).expect("the file is an object file");
    let mode = if file.is_64() { Mode::Bits64 } else { Mode::Bits32 };
    let base = base.unwrap_or(if file.is_64() { 0x7f00_0000_0000 } else { 0xb000_0000 });

    // Functions by address; a name and the greatest size for each.
    let mut functions: BTreeMap<u64, (String, u64)> = BTreeMap::new();
    for symbol in file.symbols().chain(file.dynamic_symbols()) {
        if symbol.kind() == SymbolKind::Text && symbol.is_definition() && symbol.size() > 0 {
            let name = symbol.name().unwrap_or("?").to_string();
            let function = functions.entry(symbol.address()).or_insert((name, 0));
            function.1 = function.1.max(symbol.size());
        }
    }
    for (index, (&address, (name, size))) in functions.iter().enumerate() {
        let text = file.sections().find(|section| {
            section.kind() == SectionKind::Text
                && (section.address()..section.address() + section.size()).contains(&address)
        });
        let Some(text) = text else { continue };
        let bytes = text.data().expect("a text section has bytes");
        let offset = usize::try_from(address - text.address()).expect("an offset in the section");
        let length = usize::try_from(*size).expect("a length");
        let previous = functions.range(..address).next_back().map_or(address, |(at, one)| at + one.1);
        let gap = usize::try_from(address.saturating_sub(previous)).expect("a length").min(offset).min(64);
        let context = Context {
            next_symbol: functions.range(address + 1..).next().map(|(next, _)| mode.wrap(base + next)),
            before: &bytes[offset - gap..offset],
            ..Context::default()
        };
        let entry = mode.wrap(base + address);
        let bytes = &bytes[offset..bytes.len().min(offset + length + 32)];
        let code = Code::in_mode(mode, entry, bytes).with_length(length);
        // Every other one over a relay, with a landing pad.
        let far = index % 2 == 1;
        let detour = if far { far_of(mode, entry) } else { mode.wrap(entry + 0x2000_0000) };
        let options = Options {
            landing_pad: far,
            reentry: true,
            traps: if far { Traps::Invalid } else { Traps::Int3 },
            ..Options::default()
        };
        for line in lines(name, &code, &context, detour, options) {
            writeln!(out, "{line}").expect("the record can be written");
        }
    }
}

fn far_of(mode: Mode, entry: u64) -> u64 {
    if mode == Mode::Bits32 { mode.wrap(entry.wrapping_add(0x6543_2100)) } else { 0x2345_6789_abc0 }
}

/// A record for each shape, or for the refusal of all.
fn lines(name: &str, code: &Code<'_>, context: &Context<'_>, detour: u64, options: Options) -> Vec<String> {
    let (mode, entry) = (code.mode(), code.address());
    let survey = match Survey::of(code, context) {
        Ok(survey) => survey,
        Err(why) => return vec![record::refused(name, mode, entry, why.name(), why.address())],
    };
    let near = (entry & !0xfff, (entry & !0xfff).saturating_add(0x2000));
    let mut places = Places::new(
        mode,
        mode.wrap(entry.wrapping_add(0x1000_0000)),
        &[near, (detour, detour.saturating_add(64))],
    );
    let mut lines = Vec::new();
    let mut last = None;
    for shape in Shape::ALL {
        let options = Options { shapes: Shapes::only(shape), ..options };
        match Plan::best(&survey, &mut places, detour, options) {
            Ok(plan) => lines.push(record::accepted(name, mode, entry, &plan)),
            Err(why) => last = Some(why),
        }
    }
    if let Some(why) = last.filter(|_| lines.is_empty()) {
        lines.push(record::refused(name, mode, entry, why.name(), why.address()));
    }
    lines
}
