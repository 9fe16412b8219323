//! What cargo's tests say of themselves.

/// How many tests, or scenarios of the stress suite, are said to have passed.
pub(super) fn passed(said: &str) -> usize {
    let of_line = |line: &str| match line.strip_prefix("test result: ok. ") {
        Some(tests) => tests.split_once(" passed")?.0.parse().ok(),
        None => line.split_once(" scenarios, 0 failed")?.0.parse::<usize>().ok(),
    };
    said.lines().filter_map(of_line).sum()
}

/// The tests that passed, by name.
pub(super) fn names(said: &str) -> impl Iterator<Item = &str> {
    said.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... ok"))
}

/// A test that was not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ignored {
    /// Its name.
    pub(super) name: String,
    /// The reason that stands beside it.
    pub(super) why: String,
}

/// The tests that were not run.
pub(super) fn ignored(said: &str) -> impl Iterator<Item = Ignored> {
    said.lines().filter_map(|line| {
        let (name, why) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
        let why = why.strip_prefix(", ").unwrap_or("no reason is given");
        Some(Ignored { name: name.to_owned(), why: why.to_owned() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_passed_is_counted() {
        let said = "running 2 tests\ntest result: ok. 2 passed; 0 failed\n\
                    test result: ok. 78 passed; 0 failed; 1 ignored\n";
        assert_eq!(passed(said), 80);
        assert_eq!((passed("22 scenarios, 0 failed \n"), passed("22 scenarios, 1 failed chain\n")), (22, 0));
        assert_eq!(passed("nothing"), 0);
    }

    #[test]
    fn what_was_not_run_has_its_reason() {
        let said = "test elf::symbols ... ok\ntest kernel::sites ... ignored, needs kernels: see `images`\n\
                    test slow ... ignored\ntest pe::exports ... FAILED\n";
        assert_eq!(names(said).collect::<Vec<_>>(), ["elf::symbols"]);
        let ignored: Vec<_> = ignored(said).map(|test| (test.name, test.why)).collect();
        let expected = [("kernel::sites", "needs kernels: see `images`"), ("slow", "no reason is given")];
        assert_eq!(ignored, expected.map(|(name, why)| (name.to_owned(), why.to_owned())));
    }
}
