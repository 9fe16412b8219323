//! `kdetour draw`: pictures of every shape are sound.

use crate::command::{kdetour, libc};

/// Bytes whose detour has that shape.
const SHAPES: [(&str, &[&str]); 7] = [
    // mov eax, 1 / ret
    ("WholeInstruction", &["b801000000c3", "--length", "6"]),
    // push rbp / mov rbp, rsp / sub rsp, 16 / mov rax, [rip+0x1000] / ret
    ("Jump5Kept", &["554889e54883ec10488b0500100000c3", "--length", "16"]),
    ("Jump5Trapped", &["554889e54883ec10488b0500100000c3", "--length", "16", "--address", "0x7f0000000000"]),
    // mov edi, edi / push ebp / mov ebp, esp / pop ebp / ret
    ("ShortJump", &["8bff558bec5dc3", "--length", "7", "--mode", "32", "--before", "cccccccccccccccc"]),
    ("Jump5", &["554889e54883ec10488b0500100000c3", "--length", "16"]),
    ("Jump14", &["554889e54883ec10488b0500100000c3", "--length", "16"]),
    // jmp to itself
    ("Breakpoint", &["ebfe", "--length", "2"]),
];

fn texts(svg: &str) -> Vec<String> {
    let picture = roxmltree::Document::parse(svg).unwrap();
    assert_eq!(picture.root_element().tag_name().name(), "svg");
    let width: f64 = picture.root_element().attribute("width").unwrap().parse().unwrap();
    let height: f64 = picture.root_element().attribute("height").unwrap().parse().unwrap();
    let mut boxes: Vec<(f64, f64, f64, String)> = Vec::new();
    for text in picture.descendants().filter(|node| node.has_tag_name("text")) {
        let number = |name: &str| text.attribute(name).unwrap().parse::<f64>().unwrap();
        let (x, y, words) = (number("x"), number("y"), text.text().unwrap_or("").to_owned());
        let letters = words.chars().count() as f64;
        let (start, end) = match text.attribute("class").unwrap() {
            "m" => (x, x + letters * 7.85),
            "s" => (x, x + letters * 6.9),
            "t" => (x, x + letters * 8.0),
            "b" => (x - 8.0, x + 8.0),
            "n" => (x - 6.0, x + 6.0),
            _ => (x - letters * 6.7, x),
        };
        assert!(
            start >= 0.0 && end <= width && y <= height,
            "{words:?} is at {start}..{end}, {y} of {width}, {height}"
        );
        boxes.push((start, end, y, words));
    }
    for (index, one) in boxes.iter().enumerate() {
        for other in &boxes[..index] {
            let apart = one.0 >= other.1 || other.0 >= one.1 || (one.2 - other.2).abs() >= 11.0;
            assert!(apart, "{:?} lies over {:?}", one.3, other.3);
        }
    }
    boxes.into_iter().map(|text| text.3).collect()
}

#[test]
fn every_shape_is_drawn() {
    for (shape, arguments) in SHAPES {
        let mut line = vec!["draw", "--shape", shape, "-o", "-", "--bytes"];
        line.extend(arguments);
        let run = kdetour(line);
        assert_eq!(run.code, 0, "{shape}: {}", run.stderr);
        let texts = texts(&run.stdout);
        let has = |what: &str| texts.iter().any(|text| text.contains(what));
        assert!(has(&format!("{shape}:")), "{texts:?}");
        assert!(has("The detour") && has("The slot") && has("call code"));
        assert_eq!(has("The cave"), shape == "ShortJump");
        assert_eq!(
            has("the relay,"),
            ["Jump5Kept", "Jump5Trapped", "Jump5", "WholeInstruction"].contains(&shape),
            "{shape}"
        );
    }
}

#[test]
fn functions_of_a_file_are_drawn() {
    let libc = libc();
    let libc = libc.to_str().unwrap();
    let plans = kdetour(["scan", libc, "--plans", "-"]).stdout;
    let mut names: Vec<String> = plans
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|plan| plan["accepted"] == true)
        .map(|plan| plan["entry"].as_str().unwrap().to_owned())
        .collect();
    assert!(names.len() > 1000);
    names = names.into_iter().step_by(97).collect();
    for name in names {
        let run = kdetour(["draw", libc, &name, "-o", "-"]);
        assert_eq!(run.code, 0, "{name}: {}", run.stderr);
        texts(&run.stdout);
    }
}

#[test]
fn what_is_refused_is_not_drawn() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.svg");
    let run = kdetour(["draw", "--bytes", "cc", "-o", path.to_str().unwrap()]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("Breakpoint"), "{}", run.stderr);
    assert!(!path.exists());
    let run = kdetour(["draw", "--bytes", "554889e54157c3", "-o", "/nonexistent/out.svg"]);
    assert!(run.code == 1 && run.stderr.contains("/nonexistent/out.svg"), "{}", run.stderr);
}
