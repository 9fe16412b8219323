//! Runs the functions of `cases64.txt` and `cases32.txt` on the real processor, as they are and detoured, in every
//! shape that the survey offers: see `runner.c` for what is compared.
#![expect(clippy::expect_used, reason = "a test: it may fail")]

use kdetour_plan::{
    Code, Context, Mode, Options, Plan, Refusal, Region, Returns, Shape, Shapes, Survey, Traps,
};
use kdetour_tests::case::{BASE, Case, ENTRY, PAGE, parse};
use kdetour_tests::item::Item;
use kdetour_tests::places::Places;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const CASES_64: &str = include_str!("cases64.txt");
const CASES_32: &str = include_str!("cases32.txt");

#[test]
fn prologues_64() {
    all(Mode::Bits64, CASES_64);
}

#[test]
fn prologues_32() {
    all(Mode::Bits32, CASES_32);
}

/// A test that cannot fail proves nothing.
#[test]
fn wrong_plans_are_found_out() {
    for (mode, file) in [(Mode::Bits64, CASES_64), (Mode::Bits32, CASES_32)] {
        let cases = parse(mode, file);
        let case = cases.iter().find(|case| case.name == "push-mov-push").expect("the plainest case");
        let mut items = Vec::new();
        for item in planned(case, &mut BTreeMap::new()).iter().filter(|item| item.is_stepped()) {
            items.extend(spoilt(item));
        }
        assert!(items.len() > 10, "only {} wrong plans", items.len());
        let output = run(mode, "wrong", &items);
        for item in &items {
            let failed = |line: &str| line.starts_with(&format!("FAIL {} ", item.name));
            assert!(output.lines().any(failed), "not found out: {}\n{output}", item.name);
        }
    }
}

/// The ways in which the plan of a simple function can be wrong.
fn spoilt(item: &Item) -> Vec<Item> {
    let mut all = Vec::new();
    let mut add = |what: &str, spoil: &dyn Fn(&mut Item)| {
        let mut item = item.clone();
        item.name = format!("{}/{what}/{}", item.name, item.shape());
        spoil(&mut item);
        all.push(item);
    };
    let in_slot = |address: u64| (address - item.slot_address) as usize;
    let at = in_slot(item.map[0].1);
    add("first-copy", &|item| item.slot[at] = 0x90); // nop for push: the stack differs
    let back = in_slot(item.map.last().expect("a way back").1);
    if item.map.len() > item.displaced {
        add("back", &|item| item.slot[back + 2] ^= 1); // a jump to another address, relative or not
    }
    if item.patch.len() == 5 {
        add("patch", &|item| item.patch[1] ^= 1);
        add("patch-kept", &|item| item.patch[4] ^= 1);
    }
    if item.map.len() > 2 {
        // A thread on the second instruction would run the first one again.
        let boundary = item.map[1].0 - item.map[0].0;
        if item.patch.get(boundary as usize).is_none_or(|byte| *byte == 0xcc) && item.patch.len() > 1 {
            add("map", &|item| item.map[1].1 = item.map[0].1);
        }
    }
    all
}

/// Every case of a file in every shape, and that nothing is left out unseen.
fn all(mode: Mode, file: &str) {
    let cases = parse(mode, file);
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "two cases have the same name");
    let mut items = Vec::new();
    let mut shapes: BTreeMap<Shape, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut left_out = Vec::new();
    for case in &cases {
        if let Some(feature) = case.needs.as_deref().filter(|feature| !processor_has(feature)) {
            left_out.push(format!("{} (no {feature})", case.name));
            continue;
        }
        let mut reasons = BTreeMap::new();
        let mut planned = planned(case, &mut reasons);
        for shape in planned.iter().map(|item| item.shape()).collect::<BTreeSet<_>>() {
            *shapes.entry(shape).or_default() += 1;
        }
        let refused_for = |name: &str| reasons.values().any(|refusal| reason(refusal) == name);
        match &case.refused {
            Some(name) if planned.is_empty() && refused_for(name) => {}
            None if !planned.is_empty() => {}
            _ => wrong.push(format!(
                "{}: {} plans, refused: {reasons:?}, expected: {:?}",
                case.name,
                planned.len(),
                case.refused
            )),
        }
        items.append(&mut planned);
    }
    let output = run(mode, "all", &items);
    for line in output.lines().filter(|line| !line.starts_with("ok ")) {
        println!("{line}");
    }
    println!("{} cases, {} plans: {shapes:?}; left out: {left_out:?}", cases.len(), items.len());
    let ok = output.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!output.contains("FAIL ") && ok == items.len(), "{ok} of {} are right", items.len());
}

/// A refusal's name; for what cannot be moved, why not.
fn reason(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Unsupported { why, .. } => format!("{why:?}"),
        other => other.name().into(),
    }
}

/// The case under every plan: each shape, near and far, low and high.
fn planned(case: &Case, reasons: &mut BTreeMap<Shape, Refusal>) -> Vec<Item> {
    let high = if case.mode == Mode::Bits32 { 0xd000_0000 } else { 0x5a00_0000_0000 };
    let mut items = Vec::new();
    for base in [BASE, high] {
        if case.low && base != BASE {
            continue;
        }
        let near = base + 0x20_0000;
        for detour in [near, far_of(case)] {
            // Single steps take their time: not in every combination.
            let mut case = case.clone();
            case.no_steps |= (base == high) != (detour != near);
            let case = &case;
            for traps in [Traps::Int3, Traps::Invalid] {
                let invalid = traps == Traps::Invalid;
                let variant = [(base == high, "@high"), (detour != near, "+far"), (invalid, "+invalid")];
                let variant: String = variant.iter().filter(|one| one.0).map(|one| one.1).collect();
                for shape in Shape::ALL {
                    if traps == Traps::Invalid && shape != Shape::Jump5Trapped {
                        continue;
                    }
                    let options = Options {
                        shapes: Shapes::only(shape),
                        landing_pad: detour != near,
                        reentry: case.reentry,
                        traps,
                        returns: if case.returns_slot { Returns::Slot } else { Returns::Original },
                        ..Options::default()
                    };
                    match plan(case, base, detour, options) {
                        Ok(plan) => items.push(Item::new(case, base, &variant, &plan)),
                        Err(refusal) => {
                            reasons.insert(shape, refusal);
                        }
                    }
                }
            }
        }
    }
    items
}

/// A detour that no jump of a 64-bit case reaches.
fn far_of(case: &Case) -> u64 {
    if case.mode == Mode::Bits32 { 0xc123_4560 } else { 0x6b12_3456_7890 }
}

fn plan(case: &Case, base: u64, detour: u64, options: Options) -> Result<Plan, Refusal> {
    let entry = base + ENTRY as u64;
    let bytes = &case.code[ENTRY..];
    let code = Code::in_mode(case.mode, entry, bytes).with_length(case.length);
    let data = case.data_at(base);
    let data = [Region { address: base + PAGE as u64, bytes: &data }];
    let context = Context {
        next_symbol: case.next.map(|next| base + next as u64),
        before: &case.code[ENTRY - case.before..ENTRY],
        data: &data,
        ..Context::default()
    };
    let survey = Survey::of(&code, &context)?;
    let taken = [(base, base + 2 * PAGE as u64), (detour & !0xfff, (detour & !0xfff) + 0x1000)];
    let mut places = Places::new(case.mode, base + 0x10_0000, &taken);
    Plan::best(&survey, &mut places, detour, options)
}

/// Builds the runner, gives it the items, and returns what it says.
fn run(mode: Mode, what: &str, items: &[Item]) -> String {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let runner = build(mode, &folder, what);
    let file = folder.join(format!("items{}-{what}", mode.bits()));
    let mut bytes = Vec::new();
    items.iter().for_each(|item| item.write(&mut bytes));
    fs::write(&file, bytes).expect("the items can be written");
    let output = Command::new(&runner).arg(&file).output().expect("the runner runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code().is_some(), "the runner was killed: {}\n{text}", output.status);
    text
}

fn build(mode: Mode, folder: &Path, what: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("native/runner.c");
    let runner = folder.join(format!("runner{}-{what}", mode.bits()));
    let compiler = env::var("CC").unwrap_or_else(|_| "gcc".into());
    let built = Command::new(compiler)
        .arg(format!("-m{}", mode.bits()))
        .args(["-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror"])
        .args(["-nostdlib", "-ffreestanding", "-static", "-no-pie", "-fno-pic", "-fno-builtin"])
        .args(["-fno-tree-loop-distribute-patterns", "-fcf-protection=none", "-fno-stack-protector"])
        .args(["-fno-asynchronous-unwind-tables", "-Wl,-Ttext-segment=0x60000000", "-Wl,-z,noexecstack"])
        .arg("-o")
        .args([&runner, &source])
        .output()
        .expect("a C compiler runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    runner
}

/// Whether the processor has what a case needs.
fn processor_has(feature: &str) -> bool {
    let all = fs::read_to_string("/proc/cpuinfo").expect("/proc/cpuinfo can be read");
    let flags = all.lines().find(|line| line.starts_with("flags")).unwrap_or("");
    flags.split_whitespace().any(|flag| flag == feature)
}
