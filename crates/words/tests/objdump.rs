//! What a compiler makes is told as objdump tells it: how long it is, what it is called, where it leads.
#![cfg(target_os = "linux")]

use kdetour_words::{Line, words};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

/// As many instructions of this program's own text.
const WANTED: usize = 60_000;

/// Other names for the same: objdump's, and ours.
const NAMES: [(&str, &str); 2] = [("movabs", "mov"), ("fwait", "wait")];

/// An instruction as objdump prints it: its address, its bytes, its text.
fn parse(line: &str) -> Option<(u64, Vec<u8>, &str)> {
    let mut parts = line.split('\t');
    let address = u64::from_str_radix(parts.next()?.trim().strip_suffix(':')?, 16).ok()?;
    let bytes = parts
        .next()?
        .split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect::<Option<_>>()?;
    Some((address, bytes, parts.next()?.trim()))
}

/// The first word that is no prefix.
fn name(text: &str) -> &str {
    let prefixes = [
        "rep", "repe", "repz", "repne", "repnz", "lock", "notrack", "bnd", "data16", "cs", "ds", "es", "ss",
        "fs", "gs",
    ];
    text.split_whitespace().find(|word| !prefixes.contains(word)).unwrap_or(text)
}

/// Where a direct branch leads.
fn target(text: &str, name: &str) -> Option<u64> {
    let is_branch = name.starts_with('j') || name.starts_with("call") || name.starts_with("loop");
    let operand = text.split_once(name)?.1.split_whitespace().next()?;
    is_branch.then(|| u64::from_str_radix(operand.trim_start_matches("0x"), 16).ok()).flatten()
}

#[test]
fn what_a_compiler_makes_is_told_as_objdump_tells_it() {
    let mut objdump = Command::new("objdump")
        .args(["-d", "-w", "-M", "intel", "-j", ".text"])
        .arg(std::env::current_exe().unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut line, mut others, mut count, mut branches) = (Line::new(), BTreeMap::new(), 0, 0);
    for text in BufReader::new(objdump.stdout.take().unwrap()).lines() {
        let text = text.unwrap();
        let Some((address, bytes, theirs)) = parse(&text) else { continue };
        // From behind a function up to the next, whose padding is all kinds of NOP.
        if theirs.contains("nop") || theirs.starts_with("xchg") {
            continue;
        }
        let (length, ours) = words(&bytes, address, &mut line).unwrap();
        assert_eq!(length, bytes.len(), "{text}: {ours}");
        let (their_name, our_name) = (name(theirs), name(ours));
        // Which comparison it is objdump tells in the name, and we by the operand behind.
        let compares = ["cmpps", "cmppd", "cmpss", "cmpsd"].contains(&our_name)
            && their_name.starts_with("cmp")
            && their_name.ends_with(our_name.trim_start_matches("cmp"));
        let same = NAMES.contains(&(their_name, our_name)) || compares || our_name == their_name;
        // String instructions have their size at the end, where objdump has it at the operand.
        if !same && our_name.strip_suffix(['b', 'w', 'd', 'q']) != Some(their_name) {
            *others.entry((their_name.to_owned(), our_name.to_owned())).or_insert(0) += 1;
        }
        assert_eq!(target(ours, our_name), target(theirs, their_name), "{text}: {ours}");
        branches += usize::from(target(ours, our_name).is_some());
        count += 1;
        if count == WANTED {
            break;
        }
    }
    objdump.kill().ok();
    objdump.wait().unwrap();
    assert!(others.is_empty(), "objdump's names, ours, and how often: {others:?}");
    assert!(count > WANTED / 4 && branches > count / 20, "only {count} instructions, {branches} branches");
}
