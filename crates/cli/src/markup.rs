//! Text of others where it can do harm: in XML and HTML, and on a terminal.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

/// Text that does not control a terminal. Names in a file may hold anything.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) {
        return Cow::Owned(text.replace(char::is_control, "\u{fffd}"));
    }
    Cow::Borrowed(text)
}

/// Text that can stand between tags and in quoted attributes.
pub(crate) struct Escaped<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| match c {
            '&' => self.0.write_str("&amp;"),
            '<' => self.0.write_str("&lt;"),
            '>' => self.0.write_str("&gt;"),
            '"' => self.0.write_str("&quot;"),
            '\'' => self.0.write_str("&#39;"),
            // XML has no way to write these.
            '\0'..='\u{8}'
            | '\u{b}'
            | '\u{c}'
            | '\u{e}'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{fffe}'
            | '\u{ffff}' => self.0.write_char(char::REPLACEMENT_CHARACTER),
            c => self.0.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_does_not_control_the_terminal() {
        assert_eq!(printable("\u{1b}[31mé\n"), "\u{fffd}[31mé\u{fffd}");
        assert!(matches!(printable("main"), Cow::Borrowed("main")));
    }

    #[test]
    fn nothing_breaks_out() {
        let text = Escaped("<a href=\"x\">&'\u{1b}[0m\u{0}é").to_string();
        assert_eq!(text, "&lt;a href=&quot;x&quot;&gt;&amp;&#39;\u{fffd}[0m\u{fffd}é");
    }
}
