//! Surveys and plans every function of the C library that this very test is linked to, or of the library that the
//! environment variable `KDETOUR_LIBRARY` names, of 32 or 64 bits: in every shape that is offered, each in a slot that
//! a model allocator gives for it. The oracle reads every plan.
#![expect(clippy::expect_used, reason = "a test: it may fail")]

use kdetour_oracle::Given;
use kdetour_plan::{
    Allocator, Code, Context, Mode, Options, Plan, Reach, Refusal, Region, Relays, Returns, Shape, Slot,
    Survey,
};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};
use std::collections::{BTreeMap, BTreeSet};
use std::{env, fs};

/// The file behind the mapping whose name has `libc` in it, or any other shared library.
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
    let any = libc.or(paths.first());
    any.expect("this test is linked to a shared library").to_string()
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

/// What came of the functions.
#[derive(Default)]
struct Results {
    accepted: usize,
    /// How often each shape was offered, and how often it was the best one.
    offered: BTreeMap<Shape, usize>,
    best: BTreeMap<Shape, usize>,
    refused: BTreeMap<&'static str, Vec<String>>,
    disagreements: Vec<String>,
}

impl Results {
    fn function(&mut self, name: &str, given: &Given<'_>) {
        let survey = match Survey::of(&given.code, &given.context) {
            Ok(survey) => survey,
            Err(refusal) => {
                self.refused.entry(refusal.name()).or_default().push(format!("{name}: {refusal}"));
                return;
            }
        };
        let mut best = None;
        for offer in survey.offers(&given.options) {
            let shape = offer.shape();
            let options = Options { shapes: kdetour_plan::Shapes::only(shape), ..given.options };
            *self.offered.entry(shape).or_default() += 1;
            match Plan::best(&survey, &mut Anywhere, given.detour, options) {
                Ok(plan) => {
                    let slot = Slot { address: plan.slot(), capacity: offer.need() };
                    if let Err(why) =
                        kdetour_oracle::check(&Given { slot, options, ..*given }, &survey, &plan)
                    {
                        self.disagreements.push(format!("{name}, {shape}: {why}"));
                    }
                    best = best.or(Some(shape));
                }
                // There may be no address with the right bytes at the ends of the address space, and the first one
                // that there is may lie on the function.
                Err(Refusal::NoSlot { .. } | Refusal::SlotOverlaps { .. }) => {}
                Err(refusal) => self.disagreements.push(format!("{name}, {shape}: {refusal}")),
            }
        }
        match best {
            Some(shape) => {
                self.accepted += 1;
                *self.best.entry(shape).or_default() += 1;
            }
            None => {
                let refusal =
                    survey.best(&given.options).map_or_else(|refusal| refusal.to_string(), |_| String::new());
                self.refused.entry("in every shape").or_default().push(format!("{name}: {refusal}"));
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
    // Where the library is taken to be loaded.
    let base: u64 = if file.is_64() { 0x7f00_0000_0000 } else { 0xf700_0000 };

    // Functions by address; a name and the greatest size for each.
    let mut functions: BTreeMap<u64, (String, u64)> = BTreeMap::new();
    for symbol in file.symbols().chain(file.dynamic_symbols()) {
        if symbol.kind() == SymbolKind::Text && symbol.is_definition() && symbol.size() > 0 {
            let name = symbol.name().unwrap_or("?").to_string();
            let function = functions.entry(symbol.address()).or_insert((name, 0));
            function.1 = function.1.max(symbol.size());
        }
    }
    assert!(functions.len() > 100, "{path} has {} function symbols: nothing to test with", functions.len());
    let mut tables: Vec<Region<'_>> = file
        .sections()
        .filter(|section| section.kind() == SectionKind::ReadOnlyData)
        .filter_map(|section| Some(Region { address: base + section.address(), bytes: section.data().ok()? }))
        .collect();
    tables.sort_by_key(|region| region.address);
    let got = file.section_by_name(".got.plt").or_else(|| file.section_by_name(".got"));
    let got = got.map(|section| base + section.address());

    let mut results = Results::default();
    for (index, (&address, (name, size))) in functions.iter().enumerate() {
        let text = file.sections().find(|section| {
            section.kind() == SectionKind::Text
                && (section.address()..section.address() + section.size()).contains(&address)
        });
        let text = text.expect("a function lies in a text section");
        let bytes = text.data().expect("a text section has bytes");
        let offset = usize::try_from(address - text.address()).expect("an offset in the section");
        let length = usize::try_from(*size).expect("a length");
        let end_of_previous = functions.range(..address).next_back().map(|(start, (_, size))| start + size);
        let before = end_of_previous.and_then(|end| usize::try_from(end.checked_sub(text.address())?).ok());
        let before = before.and_then(|before| bytes.get(before..offset)).unwrap_or(&[]);
        // Some bytes behind the end too, where fill is looked for.
        let bytes = &bytes[offset..bytes.len().min(offset + length + 32)];
        let next = functions.range(address + 1..).next().map(|(next, _)| base + next);
        let context = Context { next_symbol: next, before, data: &tables, got, ..Context::default() };
        // Every other one over a relay, with the other policy, and so on.
        let far = if mode == Mode::Bits64 { 0x5500_0000_0000 } else { 0x5500_0000 };
        let options = Options {
            landing_pad: index % 3 == 1,
            returns: if index % 5 == 1 { Returns::Slot } else { Returns::Original },
            ..Options::default()
        };
        let given = Given {
            code: Code::in_mode(mode, base + address, bytes).with_length(length),
            context,
            slot: Slot { address: 0, capacity: 0 },
            detour: if index % 2 == 1 { far } else { base - 0x10_0000 },
            options,
        };
        results.function(name, &given);
    }

    let Results { accepted, offered, best, refused, disagreements } = results;
    println!("{path}: {mode:?}, {} functions, {accepted} accepted", functions.len());
    println!("  offered {offered:?}\n  best    {best:?}");
    for (reason, names) in &refused {
        println!("  {:4} {reason}, such as {}", names.len(), names[0]);
    }
    assert!(disagreements.is_empty(), "{} disagreements:\n{}", disagreements.len(), disagreements.join("\n"));
    assert!(accepted * 100 > functions.len() * 99, "only {accepted} of {} accepted", functions.len());
}
