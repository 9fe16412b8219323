//! What the guest's script reports: lines `demo.KEY=VALUE`.

use anyhow::{Context as _, Result};
use std::collections::BTreeMap;

/// The reported values by key.
#[derive(Debug, Default)]
pub(super) struct Facts(BTreeMap<String, String>);

impl Facts {
    /// Takes a line of the script's output when it is a report.
    pub(super) fn take(&mut self, line: &str) -> bool {
        let Some((key, value)) = line.strip_prefix("demo.").and_then(|rest| rest.split_once('=')) else {
            return false;
        };
        self.0.insert(key.trim().to_owned(), value.trim().to_owned());
        true
    }

    /// The value of `key`, or nothing.
    pub(super) fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    /// The value of `key` as a number: `0x` marks hexadecimal.
    pub(super) fn number(&self, key: &str) -> Result<u64> {
        let text = self.needed(key)?;
        let number = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        };
        number.with_context(|| format!("the guest reported demo.{key}={text}, which is no number"))
    }

    /// The value of `key` as bytes: hexadecimal digits, blanks allowed.
    pub(super) fn bytes(&self, key: &str) -> Result<Vec<u8>> {
        let text = self.needed(key)?;
        bytes(text).with_context(|| format!("the guest reported demo.{key}={text}, which are no hex bytes"))
    }

    fn needed(&self, key: &str) -> Result<&str> {
        self.0.get(key).map(String::as_str).with_context(|| format!("the guest did not report demo.{key}"))
    }
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> =
        text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty()
        .then(|| pairs.iter().filter_map(|[high, low]| u8::try_from(high << 4 | low).ok()).collect())
}

/// Bytes as `f3 0f 1e fa`.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_by_kind() {
        let mut facts = Facts::default();
        assert!(facts.take("demo.target=0xffffffff81000000"));
        assert!(facts.take("demo.before=f30f 1efa"));
        assert!(facts.take("demo.version_before=Linux version 6.1 (gcc a=b)"));
        assert!(!facts.take("step attach"));
        assert_eq!(facts.number("target").unwrap(), 0xffff_ffff_8100_0000);
        assert_eq!(facts.bytes("before").unwrap(), [0xf3, 0x0f, 0x1e, 0xfa]);
        assert_eq!(facts.text("version_before"), "Linux version 6.1 (gcc a=b)");
        assert!(facts.bytes("target").is_err() && facts.number("calls").is_err());
        assert_eq!(hex(&[0xf3, 0x0f]), "f3 0f");
    }
}
