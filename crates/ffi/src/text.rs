//! Text in C's buffers.

use core::fmt::{self, Write};

/// Text in a C buffer: cut at its end, always closed by a zero.
pub(crate) struct Text<'a> {
    to: &'a mut [u8],
    len: usize,
}

impl<'a> Text<'a> {
    pub(crate) fn new(to: &'a mut [u8]) -> Self {
        if let Some(first) = to.first_mut() {
            *first = 0;
        }
        Self { to, len: 0 }
    }

    /// How long it is, without the zero.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }
}

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.len + 1 >= self.to.len() {
                break;
            }
            if let Some(place) = self.to.get_mut(self.len..self.len + 2) {
                place.copy_from_slice(&[byte, 0]);
                self.len += 1;
            }
        }
        Ok(())
    }
}

/// Writes what something looks like.
pub(crate) fn put_text(to: &mut [u8], what: impl fmt::Display) {
    let _ = write!(Text::new(to), "{what}");
}
