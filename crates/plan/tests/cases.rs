//! Runs the cases of `tests/cases/*.txt`, which say in their first lines how they are written.
//!
//! A case that does not hold prints what was found, in the file's own notation.

mod notation;

use notation::found::outcome;
use notation::parse;
use std::fmt::Write as _;
use std::panic::catch_unwind;

macro_rules! files {
    ($($name:ident)+) => {
        $(
            #[test]
            fn $name() {
                run(include_str!(concat!("cases/", stringify!($name), ".txt")));
            }
        )+
    };
}

files! {
    branches operands calls entries bounds slots shapes far tables returns
    branches_32 operands_32 calls_32
}

fn run(file: &str) {
    let mut failures = String::new();
    let cases = parse(file);
    assert!(!cases.is_empty(), "the file holds no case");
    for (index, case) in cases.iter().enumerate() {
        assert!(case.why, "case {} does not say why it matters", case.name);
        let earlier = cases.iter().take(index).any(|earlier| earlier.name == case.name);
        assert!(!earlier, "two cases are called {}", case.name);
        let Ok(found) = catch_unwind(|| outcome(case)) else {
            let _ = writeln!(failures, "\ncase {}\nsee above", case.name);
            continue;
        };
        if found != case.expected {
            let _ = write!(failures, "\ncase {}\nfound:\n", case.name);
            for line in &found {
                let _ = writeln!(failures, "{line}");
            }
            let _ = writeln!(failures, "expected:\n{}", case.expected.join("\n"));
        }
    }
    assert!(failures.is_empty(), "{failures}");
}
