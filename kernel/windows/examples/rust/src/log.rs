//! What the driver tells, by `DbgPrint`.

use core::ffi::{c_char, c_int};
use core::fmt::{self, Write as _};
use kdetour::SessionError;
use kdetour_nt::status;

// As wdm.h declares it: any level up to `DIRQL`, but for wide characters.
unsafe extern "C" {
    fn DbgPrint(format: *const c_char, ...) -> c_int;
}

/// A line, closed by a zero, and cut at its end.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The last stays zero.
        let room = self.bytes.len() - 1 - self.len;
        let text = text.as_bytes();
        let text = text.get(..room.min(text.len())).unwrap_or(text);
        if let Some(to) = self.bytes.get_mut(self.len..self.len + text.len()) {
            to.copy_from_slice(text);
            self.len += text.len();
        }
        Ok(())
    }
}

/// Prints a line.
pub(crate) fn tell(what: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; 256], len: 0 };
    let _ = line.write_fmt(what);
    // SAFETY: both are strings, and the first asks for one.
    unsafe { DbgPrint(c"KD: %s\n".as_ptr(), line.bytes.as_ptr()) };
}

/// Prints what something ended with.
pub(crate) fn told<T>(what: &str, outcome: Result<T, SessionError>) -> Result<T, SessionError> {
    match &outcome {
        Ok(_) => tell(format_args!("{what}: ok")),
        Err(failure) => tell(format_args!("{what}: status {:08x}: {failure}", status(&failure.error))),
    }
    outcome
}
