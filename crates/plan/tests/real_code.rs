//! Surveys and plans every function of the C library that this very test is linked to, or of the library that the
//! environment variable `KDETOUR_LIBRARY` names.
#![expect(clippy::expect_used, reason = "a test: it may fail")]

mod oracle;

use kdetour_plan::{Code, Context, MAX_SLOT, Plan, Slot, Survey};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};
use std::collections::{BTreeMap, BTreeSet};
use std::{env, fs};

/// Where the library is taken to be loaded.
const BASE: u64 = 0x7f00_0000_0000;

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

#[test]
fn every_function_of_libc() {
    let path = library();
    let data = fs::read(&path).expect("the library can be read");
    let file = object::File::parse(&*data).expect("the library is an object file");

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

    let next_of = |address: u64| functions.range(address + 1..).next().map(|(next, _)| BASE + next);
    let mut accepted = 0;
    let mut refused: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut shapes: BTreeMap<&str, usize> = BTreeMap::new();
    let mut disagreements = Vec::new();
    for (&address, (name, size)) in &functions {
        let text = file.sections().find(|section| {
            section.kind() == SectionKind::Text
                && (section.address()..section.address() + section.size()).contains(&address)
        });
        let text = text.expect("a function lies in a text section");
        let bytes = text.data().expect("a text section has bytes");
        let offset = usize::try_from(address - text.address()).expect("an offset in the section");
        let length = usize::try_from(*size).expect("a length");
        // Some bytes behind the end too, where fill is looked for.
        let bytes = &bytes[offset..bytes.len().min(offset + length + 32)];
        let entry = BASE + address;
        let code = Code::new(entry, bytes).with_length(length);
        let context = Context { next_symbol: next_of(address), ..Context::default() };
        let slot = Slot { address: BASE + 0x1000_0000, capacity: MAX_SLOT };
        // Every other one over a relay.
        let far = accepted % 2 == 1;
        let detour = if far { 0x5500_0000_0000 } else { BASE + 0x2000_0000 };
        let survey = Survey::of(&code, &context);
        let plan = survey.and_then(|survey| Ok((Plan::new(&survey, slot, detour)?, survey)));
        match plan {
            Ok((plan, survey)) => {
                accepted += 1;
                *shapes.entry(survey.shape().name()).or_default() += 1;
                let given = oracle::Given { entry, bytes, length: Some(length), detour, landing_pad: false };
                if let Err(why) = oracle::check(&given, &survey, &plan) {
                    disagreements.push(format!("{name}: {why}"));
                }
            }
            Err(refusal) => refused.entry(refusal.name()).or_default().push(format!("{name}: {refusal}")),
        }
    }

    println!("{path}: {} functions, {accepted} accepted {shapes:?}", functions.len());
    for (reason, names) in &refused {
        println!("  {:4} {reason}, such as {}", names.len(), names[0]);
    }
    assert!(disagreements.is_empty(), "the oracle disagrees:\n{}", disagreements.join("\n"));
    assert!(accepted * 10 > functions.len() * 9, "only {accepted} of {} accepted", functions.len());
}
