//! A short run over the library that every program has, and what must be true of its numbers.

use serde_json::Value;
use std::process::Command;

/// The C library of this process.
fn libc() -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    let mut libraries = paths.filter(|path| path.contains("/libc.so") || path.contains("/libc-"));
    libraries.next().map(str::to_owned)
}

#[test]
fn the_numbers_of_a_short_run() {
    let json = std::env::temp_dir().join(format!("kdetour-benches-test-{}.json", std::process::id()));
    let library = libc().expect("no C library is loaded");
    let output = Command::new(env!("CARGO_BIN_EXE_kdetour-benches"))
        .args(["engine", "--rounds", "1", "--library", &library, "--json"])
        .arg(&json)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    std::fs::remove_file(&json).unwrap();

    let own = &figures["files"][0];
    let functions = own["functions"].as_u64().unwrap();
    assert!(functions > 1000, "{functions} functions in {library}");
    assert_eq!(own["accepted"].as_u64().unwrap() + own["refused"].as_u64().unwrap(), functions);
    // After the first use nothing takes memory from the heap.
    assert_eq!(own["heap"]["survey_allocations"], 0);
    assert_eq!(own["heap"]["plan_allocations"], 0);

    let peers = figures["peers"].as_array().unwrap();
    let names: Vec<_> = peers.iter().map(|one| one["peer"].as_str().unwrap()).collect();
    assert_eq!(names, ["kdetour", "kdetour-anywhere", "kdetour-window", "retour", "ilhook"]);
    for one in peers {
        let name = &one["peer"];
        let number = |what: &str| one[what].as_u64().unwrap();
        let sum = number("accepted") + number("refused") + number("panicked") + number("crashed");
        assert_eq!(sum, functions, "{name}");
        // Every trampoline of the others is understood, or the emulator would not see it.
        assert!(one["refusals"].get("trampoline not understood").is_none(), "{name}");
        assert!(one["timing"]["dropped_per_second"].as_f64().unwrap() > 0.0, "{name}");
        if name == "kdetour" || name == "kdetour-anywhere" {
            for what in ["panicked", "crashed", "jumps_into_window", "overwrites_neighbour"] {
                assert_eq!(number(what), 0, "{name} {what}");
            }
        }
    }
}
