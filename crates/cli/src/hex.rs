//! Addresses and bytes as text, in both directions.

use anyhow::{Context as _, Result, bail, ensure};
use std::fmt::{self, Write as _};

/// An address as it is written everywhere: `0x` and lower-case digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) u64);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl serde::Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Bytes as lower-case digits without spaces.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl serde::Serialize for Bytes<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Bytes with a space between them.
pub(crate) fn spaced(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 3);
    for (index, byte) in bytes.iter().enumerate() {
        let gap = if index == 0 { "" } else { " " };
        let _ = write!(text, "{gap}{byte:02x}");
    }
    text
}

/// Reads an address: hexadecimal with `0x`, or decimal.
pub(crate) fn address(text: &str) -> Result<u64> {
    let digits = text.trim().replace('_', "");
    let parsed = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) if !hex.starts_with('+') => u64::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None if digits.starts_with('+') => None,
        None => digits.parse().ok(),
    };
    parsed.with_context(|| format!("{text:?} is no address: write it as 0x401000 (64 bits at most)"))
}

/// Reads bytes: two hexadecimal digits each, with or without spaces, commas, `0x` or `\x` between them.
pub(crate) fn bytes(text: &str) -> Result<Vec<u8>> {
    let cleaned = text.replace("\\x", " ").replace("0x", " ");
    let mut bytes = Vec::with_capacity(cleaned.len() / 2);
    for group in cleaned.split(|c: char| c.is_whitespace() || matches!(c, ',' | ':' | ';')) {
        if let Some(wrong) = group.chars().find(|c| !c.is_ascii_hexdigit()) {
            bail!("{wrong:?} is no hexadecimal digit: write the bytes as 554889e5 or \"55 48 89 e5\"");
        }
        ensure!(
            group.len().is_multiple_of(2),
            "{group:?} has an odd number of digits: every byte takes two, as in \"05\""
        );
        let digit =
            |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(0);
        bytes.extend(group.as_bytes().chunks_exact(2).filter_map(|pair| match pair {
            [high, low] => Some(digit(*high) << 4 | digit(*low)),
            _ => None,
        }));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_in_every_spelling() {
        for text in [
            "554889e5",
            "55 48 89 e5",
            "55,48,89,E5",
            "0x55 0x48 0x89 0xe5",
            r"\x55\x48\x89\xe5",
            " 5548\n89e5 ",
        ] {
            assert_eq!(bytes(text).unwrap(), [0x55, 0x48, 0x89, 0xe5], "{text:?}");
        }
        assert!(bytes("").unwrap().is_empty());
        for text in ["5", "5g", "55 4", "é0"] {
            assert!(bytes(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn addresses_are_read_in_both_bases() {
        assert_eq!(address("0x401000").unwrap(), 0x0040_1000);
        assert_eq!(address("0xffffffff_81000000").unwrap(), 0xffff_ffff_8100_0000);
        assert_eq!(address("4096").unwrap(), 4096);
        for text in ["", "0x", "401g", "-1", "+1", "0x+1", "0x10000000000000000"] {
            assert!(address(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn addresses_and_bytes_are_written_in_lower_case() {
        assert_eq!(Address(0xABC).to_string(), "0xabc");
        assert_eq!(Bytes(&[0xAB, 1]).to_string(), "ab01");
        assert_eq!(spaced(&[0xAB, 1]), "ab 01");
    }
}
