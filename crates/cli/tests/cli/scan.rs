//! `kdetour scan`: the counts agree with each other and with the plans.

use crate::command::{Run, kdetour, libc};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;

fn sum(counts: &Value) -> u64 {
    counts.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
}

fn scan<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Run {
    kdetour(["scan"].into_iter().chain(arguments))
}

#[test]
fn the_counts_are_those_of_the_plans() {
    let libc = libc();
    let libc = libc.to_str().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let plans = directory.path().join("plans.jsonl");
    let run = scan([libc, "--json", "--plans", plans.to_str().unwrap()]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let report = run.json();
    let [file] = report["files"].as_array().unwrap().as_slice() else { panic!("{report}") };
    for key in ["path", "mode", "functions", "accepted", "refused", "shapes", "seconds"] {
        assert!(!file[key].is_null(), "{key}: {file}");
    }
    assert_eq!(file["path"], libc);
    assert_eq!(file["mode"], 64);
    let functions = file["functions"].as_u64().unwrap();
    assert!(functions > 1000, "{functions}");
    assert_eq!(sum(&file["shapes"]), file["accepted"].as_u64().unwrap());
    assert_eq!(sum(&file["shapes"]) + sum(&file["refused"]), functions);
    assert_eq!(file["shapes"].as_object().unwrap().len(), 7);

    let text = fs::read_to_string(&plans).unwrap();
    let mut shapes: BTreeMap<String, u64> = BTreeMap::new();
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    let mut entries = Vec::new();
    for line in text.lines() {
        let plan: Value = serde_json::from_str(line).unwrap();
        match plan["shape"].as_str() {
            Some(shape) => *shapes.entry(shape.to_owned()).or_default() += 1,
            None => *reasons.entry(plan["refusal"]["reason"].as_str().unwrap().to_owned()).or_default() += 1,
        }
        entries.push(u64::from_str_radix(&plan["entry"].as_str().unwrap()[2..], 16).unwrap());
    }
    assert_eq!(entries.len() as u64, functions);
    assert!(entries.is_sorted());
    for (shape, count) in file["shapes"].as_object().unwrap() {
        assert_eq!(shapes.get(shape).copied().unwrap_or(0), count.as_u64().unwrap(), "{shape}");
    }
    for (reason, count) in file["refused"].as_object().unwrap() {
        assert_eq!(reasons.get(reason).copied().unwrap_or(0), count.as_u64().unwrap(), "{reason}");
    }

    // The same with any number of threads.
    for jobs in ["1", "5"] {
        let again = scan([libc, "--plans", "-", "--jobs", jobs]);
        assert!(again.stdout == text, "{jobs} threads: another result");
    }
    let limited = scan([libc, "--limit", "10", "--plans", "-"]);
    let first: Vec<&str> = text.lines().take(10).collect();
    assert_eq!(limited.stdout.lines().collect::<Vec<_>>(), first);
}

#[test]
fn a_line_of_a_scan_is_what_inspect_says() {
    let libc = libc();
    let libc = libc.to_str().unwrap();
    let plans = scan([libc, "--plans", "-"]).stdout;
    let line = plans.lines().find(|line| line.contains("\"name\":\"malloc\"")).unwrap();
    assert_eq!(kdetour(["inspect", libc, "malloc", "--json"]).stdout.trim_end(), line);
}

#[test]
fn what_cannot_be_read_does_not_end_the_scan() {
    let libc = libc();
    let libc = libc.to_str().unwrap();
    let run = scan(["/nonexistent", "/etc/passwd", libc, "--limit", "1", "--json"]);
    assert_eq!(run.code, 1);
    let report = run.json();
    let [missing, text, good] = report["files"].as_array().unwrap().as_slice() else { panic!("{report}") };
    for bad in [missing, text] {
        assert!(bad["error"].as_str().unwrap().contains(bad["path"].as_str().unwrap()), "{bad}");
        assert_eq!(bad["functions"], 0);
    }
    assert_eq!(good["functions"], 1);
    let words = scan(["/nonexistent", libc, "--limit", "1"]);
    assert_eq!(words.code, 1);
    assert!(words.stderr.contains("/nonexistent"), "{}", words.stderr);
    assert!(words.stdout.contains("of 1 functions accepted"), "{}", words.stdout);
}

#[test]
fn files_that_are_cut_off_never_panic() {
    let whole = fs::read(libc()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (index, length) in [0, 1, 4, 16, 52, 63, 64, 100, 1000, 4096, 65536, whole.len() / 2, whole.len() - 1]
        .into_iter()
        .enumerate()
    {
        let path = directory.path().join(format!("cut{index}"));
        fs::write(&path, &whole[..length]).unwrap();
        files.push(path.to_str().unwrap().to_owned());
    }
    // And one whose headers are noise.
    let mut noise = whole[..65536].to_vec();
    for (index, byte) in noise.iter_mut().enumerate().skip(16) {
        *byte = ((index * 7919) >> 3) as u8;
    }
    let path = directory.path().join("noise");
    fs::write(&path, noise).unwrap();
    files.push(path.to_str().unwrap().to_owned());
    let run = scan(files.iter().map(String::as_str).chain(["--json"]));
    assert!(run.code == 0 || run.code == 1, "{}", run.stderr);
    assert_eq!(run.json()["files"].as_array().unwrap().len(), files.len());
}

#[test]
fn the_page_is_well_formed() {
    let libc = libc();
    let libc = libc.to_str().unwrap();
    let directory = tempfile::tempdir().unwrap();
    // A name that would break out of the page.
    let odd = directory.path().join("<b>&\"'é.so");
    fs::copy(libc, &odd).unwrap();
    let page = directory.path().join("out.html");
    let run = scan([libc, odd.to_str().unwrap(), "/nonexistent<i>", "--html", page.to_str().unwrap()]);
    assert_eq!(run.code, 1);
    let text = fs::read_to_string(&page).unwrap();
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
    let page = roxmltree::Document::parse_with_options(&text, options).unwrap();
    let sections = page.descendants().filter(|node| node.has_tag_name("section")).count();
    assert_eq!(sections, 3);
    let bars = page.descendants().filter(|node| node.attribute("class") == Some("bar")).count();
    assert_eq!(bars, 2);
    for forbidden in ["script", "link", "img"] {
        assert!(!page.descendants().any(|node| node.has_tag_name(forbidden)), "{forbidden}");
    }
    assert!(text.contains("prefers-color-scheme"));
}

#[test]
fn one_thing_goes_to_standard_output() {
    let libc = libc();
    let libc = libc.to_str().unwrap();
    let run = scan([libc, "--json", "--plans", "-"]);
    assert!(run.code == 1 && run.stderr.contains("standard output"), "{}", run.stderr);
    let run = scan([libc, "--plans", "/nonexistent/plans"]);
    assert!(run.code == 1 && run.stderr.contains("/nonexistent/plans"), "{}", run.stderr);
}
