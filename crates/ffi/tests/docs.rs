//! The manual of the C interface, `docs/kernel/`, against what it is about: `kdetour.h` and the module's C half.
//!
//! Each check names what has no page, no row, or the wrong one. So a code, a call or a counter that is added asks for its
//! line here.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test: it may fail")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const SECTIONS: [&str; 8] =
    ["NAME", "SYNOPSIS", "DESCRIPTION", "CONTEXT", "RETURN VALUE", "NOTES", "EXAMPLE", "SEE ALSO"];
const CONTEXTS: [&str; 7] = [
    "process context",
    "softirq, hardirq",
    "NMI",
    "may sleep",
    "locks taken",
    "must not be held",
    "from a detour",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// `kdetour.h` as a module sees it.
fn header() -> String {
    let text = read("crates/ffi/include/kdetour.h").replace("KDETOUR_INLINE int", "static inline int");
    let mut kept = String::new();
    // For each condition that is open, whether it holds.
    let mut open: Vec<bool> = Vec::new();
    for line in text.lines() {
        let word = line.split_whitespace().next().unwrap_or_default();
        match word {
            "#ifdef" | "#ifndef" => {
                let defined = line.ends_with("__KERNEL__");
                open.push(defined == (word == "#ifdef"));
            }
            // What only C++ has.
            "#if" => open.push(false),
            "#else" => *open.last_mut().unwrap() ^= true,
            "#endif" => drop(open.pop().unwrap()),
            _ if open.iter().all(|&holds| holds) => kept.extend([line, "\n"]),
            _ => {}
        }
    }
    assert!(open.is_empty(), "kdetour.h: a condition is not closed");
    kept
}

/// The numbers of codes that only a process can meet.
const PROCESSES_ONLY: std::ops::Range<u32> = 24..32;
/// Codes from here on are met by Windows drivers only, whose manual is docs/windows-kernel.md.
const DRIVERS_ONLY: u32 = 34;

/// Every manual page: its sections by title, by its file's name.
fn pages() -> BTreeMap<String, BTreeMap<String, String>> {
    let folder = fs::read_dir(root().join("docs/kernel")).unwrap();
    let names = folder.map(|file| file.unwrap().file_name().into_string().unwrap());
    let all = names.map(|name| (name.clone(), sections(&read(&format!("docs/kernel/{name}")))));
    all.filter(|(_, sections)| sections.contains_key("NAME")).collect()
}

fn sections(page: &str) -> BTreeMap<String, String> {
    let parts = page.split("\n## ").skip(1).filter_map(|part| part.split_once('\n'));
    parts.map(|(title, text)| (title.to_owned(), text.to_owned())).collect()
}

/// All white space as one blank.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The cells of the row in whose first cell `key` stands in backticks.
fn row(text: &str, key: &str) -> Option<Vec<String>> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix('|'));
    let mut cells = rows.map(|line| line.split(" | ").map(|cell| cell.trim().to_owned()).collect::<Vec<_>>());
    let wanted = format!("`{key}`");
    cells.find(|cells| cells.first().is_some_and(|first| first.split(", ").any(|one| one == wanted)))
}

/// The first string behind each `before`.
fn quoted<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.split('"').nth(1))
}

/// The prototypes of `kdetour.h` and `kdetour_words.h`: up to the closing parenthesis, by name.
fn functions() -> BTreeMap<String, String> {
    let header = header() + &read("crates/words/include/kdetour_words.h");
    let mut found = BTreeMap::new();
    for (at, _) in header.match_indices("\n") {
        let rest = &header[at + 1..];
        let Some((head, _)) = rest.split_once('(') else { continue };
        let Some(name) = head.rsplit([' ', '*']).next().filter(|name| name.starts_with("kdetour_")) else {
            continue;
        };
        let on_one_line = head.starts_with(|first: char| first.is_ascii_lowercase()) && !head.contains('\n');
        if let Some((whole, _)) = rest.split_once(')').filter(|_| on_one_line) {
            found.insert(name.to_owned(), flat(&format!("{whole})")));
        }
    }
    found
}

/// The enumerators of `enum NAME`, with their numbers.
fn enumerators(name: &str) -> Vec<(String, u32)> {
    let header = header();
    let (_, body) = header.split_once(&format!("enum {name} {{")).unwrap();
    let (body, _) = body.split_once("};").unwrap();
    let lines = body.lines().filter_map(|line| line.trim().strip_prefix("KDETOUR_")?.split_once(" = "));
    let number = |rest: &str| rest.split([',', '\t', ' ']).next().unwrap().parse().unwrap();
    lines.map(|(name, rest)| (format!("KDETOUR_{name}"), number(rest))).collect()
}

/// The members of `struct NAME`.
fn members(name: &str) -> Vec<String> {
    let header = header();
    let (_, body) = header.split_once(&format!("\nstruct {name} {{")).unwrap();
    let (body, _) = body.split_once("};").unwrap();
    let declarations =
        body.lines().filter(|line| line.contains(';')).filter_map(|line| line.split([';', '[']).next());
    declarations
        .filter_map(|declaration| declaration.rsplit([' ', '\t', '*']).next())
        .map(str::to_owned)
        .collect()
}

/// What `errno_of` in `report.c` answers for each code.
fn errnos() -> BTreeMap<String, String> {
    let source = read("kernel/linux/report.c");
    let (_, body) = source.split_once("static int errno_of(int code)").unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    let mut waiting = Vec::new();
    let mut found = BTreeMap::new();
    for line in body.lines() {
        let Some((label, rest)) = line.trim().split_once(':') else { continue };
        waiting.push(label.trim_start_matches("case ").to_owned());
        if let Some(errno) = rest.trim().strip_prefix("return ").and_then(|rest| rest.strip_suffix(';')) {
            found.extend(waiting.drain(..).map(|label| (label, errno.to_owned())));
        }
    }
    let other = found.remove("default").unwrap();
    for (code, _) in enumerators("kdetour_code") {
        found.entry(code).or_insert_with(|| other.clone());
    }
    found
}

#[test]
fn every_call_has_a_page() {
    let (pages, functions) = (pages(), functions());
    let contexts = read("docs/kernel/README.md");
    assert!(functions.len() >= 6 && functions.contains_key("kdetour_survey"), "found only {functions:?}");
    for (name, prototype) in &functions {
        let page = pages.iter().find(|(_, page)| page["NAME"].contains(&format!("`{name}`")));
        let (file, page) = page.unwrap_or_else(|| panic!("no page of docs/kernel has `{name}` in its NAME"));
        let synopsis = flat(&page["SYNOPSIS"]);
        assert!(
            synopsis.contains(&format!("{prototype};")),
            "docs/kernel/{file}: SYNOPSIS should have: {prototype};"
        );
        assert!(row(&contexts, name).is_some(), "docs/kernel/README.md has no row for {name}");
    }
    for name in ["KDETOUR", "KDETOUR_VOID"] {
        assert!(header().contains(&format!("#define {name}(")));
        assert!(pages.values().any(|page| page["NAME"].contains(&format!("`{name}`"))), "{name} has no page");
    }
}

#[test]
fn every_export_is_in_the_header() {
    let functions = functions();
    // What kdetour's own modules call of each other; another style of calls, which has a table of its own.
    let between = read("kernel/linux/room.h") + &read("crates/ffi/include/kernel_detours.h");
    let mut exports = 0;
    for file in fs::read_dir(root().join("kernel/linux")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "c") {
            for export in fs::read_to_string(&path).unwrap().split("EXPORT_SYMBOL_GPL(").skip(1) {
                let name = export.split(')').next().unwrap();
                if !between.contains(&format!(" {name}(")) {
                    assert!(functions.contains_key(name), "{}: {name} is in no header", path.display());
                    exports += 1;
                }
            }
        }
    }
    assert!(exports >= 4);
}

/// Calls and macros of `kernel_detours.h`.
#[test]
fn every_call_of_kernel_detours_has_a_row() {
    let (header, table) =
        (read("crates/ffi/include/kernel_detours.h"), read("docs/kernel/kernel_detours.md"));
    let lines = header.lines().filter(|line| !line.starts_with(' ') && line.contains('('));
    let heads = lines.filter_map(|line| line.strip_prefix("#define ").unwrap_or(line).split('(').next());
    let names: BTreeSet<&str> = heads
        .filter_map(|head| head.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("Detour") || name.starts_with("DETOUR_"))
        .collect();
    assert!(names.len() >= 9, "found only {names:?}");
    for name in names {
        assert!(row(&table, name).is_some(), "docs/kernel/kernel_detours.md has no row for {name}");
    }
}

#[test]
fn pages_have_every_section_in_order() {
    for (file, page) in pages() {
        let text = read(&format!("docs/kernel/{file}"));
        let mut at = 0;
        for section in SECTIONS {
            let found = text.find(&format!("\n## {section}\n")).filter(|&found| found >= at);
            at = found.unwrap_or_else(|| panic!("docs/kernel/{file}: {section} is missing or misplaced"));
            assert!(!page[section].trim().is_empty(), "docs/kernel/{file}: {section} is empty");
        }
        for context in CONTEXTS {
            let answer =
                page["CONTEXT"].lines().find_map(|line| line.strip_prefix(&format!("| {context} | ")));
            let stated = answer.is_some_and(|answer| answer.trim_end_matches('|').trim().len() > 1);
            assert!(stated, "docs/kernel/{file}: CONTEXT says nothing about: {context}");
        }
    }
}

#[test]
fn every_code_has_its_row_and_its_errno() {
    let (table, stats, header) =
        (read("docs/kernel/codes.md"), read("kernel/linux/stats.c"), flat(&header()));
    let (errnos, pages, codes) = (errnos(), pages(), enumerators("kdetour_code"));
    assert!(codes.len() >= 19);
    assert!(codes.iter().any(|&(_, number)| number == PROCESSES_ONLY.start));
    let of_modules = |number: &u32| !PROCESSES_ONLY.contains(number) && *number < DRIVERS_ONLY;
    for (code, number) in codes.into_iter().filter(|(_, number)| of_modules(number)) {
        let cells =
            row(&table, &code).unwrap_or_else(|| panic!("docs/kernel/codes.md has no row for {code}"));
        let errno = &errnos[&code];
        assert_eq!(cells[1..3], [number.to_string(), errno.clone()], "docs/kernel/codes.md: {code}");
        if number == 0 {
            continue;
        }
        let said = format!("{code} = {number}, /* {errno}");
        assert!(header.contains(&said), "kdetour.h should say: {said}");
        // At least one call lists it, under the errno that it really returns.
        let mut told = 0;
        for (file, page) in &pages {
            for line in page["RETURN VALUE"].lines().filter(|line| line.contains(&format!("`{code}`"))) {
                assert!(line.starts_with(&format!("| {errno} | ")), "docs/kernel/{file}: {code} is {errno}");
                told += 1;
            }
        }
        assert!(told > 0, "no RETURN VALUE in docs/kernel lists {code}");
        let entry = format!("[{code}] = \"{}\",", code.trim_start_matches("KDETOUR_").to_lowercase());
        assert!(stats.contains(&entry), "kernel/linux/stats.c should have: {entry}");
    }
}

#[test]
fn every_member_and_constant_has_a_row() {
    let (table, header) = (read("docs/kernel/structs.md"), header());
    let enums = ["kdetour_protocol", "kdetour_method"].into_iter().flat_map(enumerators);
    let mut names: Vec<String> = enums.map(|(name, _)| name).collect();
    for name in ["kdetour", "kdetour_error", "kdetour_patch"] {
        let members = members(name);
        assert!(members.len() >= 4, "struct {name}: found only {members:?}");
        names.extend(members);
    }
    let constants = header.lines().filter_map(|line| line.strip_prefix("#define ")?.split_once(' '));
    let constants =
        constants.map(|(name, _)| name).filter(|name| name.starts_with("KDETOUR_") && !name.contains('('));
    // What the header needs for itself.
    let constants = constants.filter(|name| !name.ends_with('_') && *name != "KDETOUR_INLINE");
    names.extend(constants.map(str::to_owned));
    assert!(names.iter().any(|name| name == "KDETOUR_NO_WAIT"), "found only {names:?}");
    for name in names {
        assert!(row(&table, &name).is_some(), "docs/kernel/structs.md has no row for {name}");
    }
}

#[test]
fn every_parameter_has_its_default() {
    let source = read("kernel/linux/main.c") + &read("kernel/linux/report.c");
    let table = read("docs/kernel/parameters.md");
    let parameters = source.split("\nmodule_param(").skip(1).filter_map(|rest| rest.split(',').next());
    let names: BTreeSet<&str> = parameters.collect();
    assert!(names.contains("quiet") && names.contains("attempts"));
    for name in names {
        let cells =
            row(&table, name).unwrap_or_else(|| panic!("docs/kernel/parameters.md has no row for {name}"));
        let (_, said) = source.split_once(&format!("MODULE_PARM_DESC({name}, ")).unwrap();
        let default = said.split("(default: ").nth(1).and_then(|rest| rest.split(')').next());
        assert_eq!(Some(cells[1].as_str()), default, "docs/kernel/parameters.md: {name}");
    }
}

#[test]
fn every_counter_has_a_row() {
    let (stats, list) = (read("kernel/linux/stats.h"), read("kernel/linux/list.c"));
    let table = sections(&read("docs/kernel/debugfs.md")).remove("stats").unwrap();
    let mut names = ["breakpoint_hits", "failed_NAME", "refused_NAME"].map(str::to_owned).to_vec();
    let (_, counters) = stats.split_once("#define KD_COUNTERS(X)").unwrap();
    let (counters, times) = counters.split_once("#define KD_TIMES(X)").unwrap();
    let (times, _) = times.split_once("\n#define").unwrap();
    names.extend(quoted(counters, "\tX(").map(str::to_owned));
    names.extend(
        quoted(times, "\tX(").flat_map(|time| [format!("{time}_ns_last"), format!("{time}_ns_longest")]),
    );
    let (_, show) = list.split_once("static int stats_show").unwrap();
    let (show, _) = show.split_once("\n}").unwrap();
    let literals = quoted(show, "seq_printf(file, ").filter_map(|format| format.split(' ').next());
    names.extend(literals.filter(|name| !name.contains('%')).map(str::to_owned));
    assert!(names.len() >= 20, "found only {names:?}");
    for name in names {
        assert!(row(&table, &name).is_some(), "docs/kernel/debugfs.md has no row for {name}");
    }
}

#[test]
fn every_key_of_the_log_has_a_row() {
    let (source, page) = (read("kernel/linux/log.c"), read("docs/kernel/log.md"));
    let words = source.split([' ', '"', '\\']).filter_map(|word| word.split_once('='));
    let is_key = |key: &str| !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let keys: BTreeSet<&str> = words.map(|(key, _)| key).filter(|key| is_key(key)).collect();
    assert!(
        ["event", "slot_len", "call", "text"].iter().all(|key| keys.contains(key)),
        "found only {keys:?}"
    );
    for key in keys {
        assert!(row(&page, key).is_some(), "docs/kernel/log.md has no row for {key}");
    }
}

/// What a program meets: each code has the errno that the library gives, and where it is about something else than in a
/// module, or is met by programs only, a row of its own.
#[test]
fn codes_of_programs_have_their_errno() {
    let (table, header) = (read("docs/c.md"), flat(&read("crates/ffi/include/kdetour.h")));
    let drivers = read("docs/windows-kernel.md");
    let names = [
        "", "EPERM", "ENOENT", "EIO", "EAGAIN", "ENOMEM", "EFAULT", "EBUSY", "EEXIST", "EINVAL", "ENOSPC",
        "EDEADLK",
    ];
    let numbers = [0, 1, 2, 5, 11, 12, 14, 16, 17, 22, 28, 35];
    let more = [("ENOTUNIQ", 76), ("EOPNOTSUPP", 95), ("ESTALE", 116)];
    let known: BTreeMap<i32, &str> =
        numbers.into_iter().zip(names).chain(more.map(|(name, number)| (number, name))).collect();
    for (code, number) in enumerators("kdetour_code").into_iter().filter(|&(_, number)| number > 0) {
        let errno = known[&kdetour_ffi::code::errno(i32::try_from(number).unwrap())];
        let said = [format!("{code} = {number}, /* -{errno}"), format!("{code} = {number} /* -{errno}")];
        assert!(said.iter().any(|said| header.contains(said)), "kdetour.h should say: {}", said[0]);
        if number >= DRIVERS_ONLY {
            assert!(row(&drivers, &code).is_some(), "docs/windows-kernel.md has no row for {code}");
            continue;
        }
        let row = row(&table, &code);
        assert!(number < PROCESSES_ONLY.start || row.is_some(), "docs/c.md has no row for {code}");
        if let Some(cells) = row {
            assert_eq!(cells[1], format!("-{errno}"), "docs/c.md: {code}");
        }
    }
}

/// Calls that only modules have.
const MODULES_ONLY: [&str; 2] = ["kdetour_next", "kdetour_length"];

#[test]
fn every_call_of_a_program_has_a_row() {
    let (table, header) = (read("docs/c.md"), read("crates/ffi/include/kdetour.h"));
    let words = header.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let calls: BTreeSet<&str> = words
        .filter(|word| header.contains(&format!(" {word}(")) || header.contains(&format!("*{word}(")))
        .filter(|word| word.starts_with("kdetour_") && !MODULES_ONLY.contains(word))
        .collect();
    assert!(calls.len() >= 8, "found only {calls:?}");
    for call in calls {
        assert!(table.contains(&format!("| `{call}(")), "docs/c.md has no row for {call}");
    }
}
