//! What drivers print, against what they should.

use anyhow::{Result, bail};

/// What is in front of every line of a driver.
const FRONT: &str = "KD: ";

/// Whether a kernel that guards itself lets its functions be detoured: only with a debugger. A 32-bit one does not guard itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    Guarded,
    Open,
}

/// A driver's lines among others.
fn lines(said: &str) -> Vec<&str> {
    said.lines().filter_map(|line| line.split_once(FRONT)).map(|(_, line)| line.trim_end()).collect()
}

/// The lines of the two that do the same: how many there are.
pub(super) fn hello(said: &str, kernel: Kernel) -> Result<usize> {
    let (refused, more) = match kernel {
        Kernel::Guarded => (true, 0),
        Kernel::Open => (false, 1),
    };
    let attach = if refused {
        "attach KeQueryTimeIncrement: status c0000022"
    } else {
        "attach KeQueryTimeIncrement: ok"
    };
    let expected = [
        "price(7) is 21, 0 calls came by".to_owned(),
        "attach price: ok".to_owned(),
        "price(7) is 42, 1 calls came by".to_owned(),
        attach.to_owned(),
        "the clock is as it was: yes".to_owned(),
        "detach price: ok".to_owned(),
        format!("price(7) is 21, {} calls came by", 1 + more),
        "attach price again: ok".to_owned(),
        format!("price(7) is 42, {} calls came by", 2 + more),
        "unload: ok".to_owned(),
        format!("price(7) is 21, {} calls came by", 2 + more),
    ];
    let found = lines(said);
    let same = |(expected, found): (&String, &&str)| {
        let is_attach = *expected == attach && refused;
        if is_attach {
            found.starts_with(attach) && found.contains("patch protection")
        } else {
            found == expected
        }
    };
    if found.len() != expected.len() || !expected.iter().zip(&found).all(same) {
        bail!(
            "the driver printed\n  {}\nand should have printed\n  {}",
            found.join("\n  "),
            expected.join("\n  ")
        );
    }
    Ok(found.len())
}

/// The lines of the one that is wrong on purpose: how many checks passed.
pub(super) fn bad(said: &str, least: usize) -> Result<usize> {
    let found = lines(said);
    let failed: Vec<&str> = found.iter().copied().filter(|line| line.starts_with("FAIL")).collect();
    let passed = found.iter().filter(|line| line.starts_with("ok ")).count();
    let end = format!("{passed} good, 0 failed");
    if !failed.is_empty() || passed < least || found.last() != Some(&end.as_str()) {
        bail!(
            "{passed} checks passed, of at least {least}; these did not:\n  {}\nthe last line: {}",
            failed.join("\n  "),
            found.last().unwrap_or(&"none")
        );
    }
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_fails_fails_the_suite() {
        let good = "x KD: ok a\nx KD: ok b\nKD: 2 good, 0 failed\r\n";
        assert_eq!(bad(good, 2).unwrap(), 2);
        bad(good, 3).unwrap_err();
        bad("KD: ok a\n", 1).unwrap_err();
        bad("KD: ok a\nKD: FAIL b: why\nKD: 1 good, 1 failed\n", 1).unwrap_err();
        bad("KD: ok a\nKD: FAIL IRQL: call at 2\nKD: 1 good, 0 failed\n", 1).unwrap_err();
        hello("KD: price(7) is 21, 0 calls came by\n", Kernel::Open).unwrap_err();
    }
}
