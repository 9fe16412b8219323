//! The story of a failure, for C.

use crate::code::code;
use crate::text::put_text;
use kdetour::SessionError;

/// `struct kdetour_error` of `kdetour.h`.
#[repr(C)]
#[derive(Debug)]
pub struct ErrorRecord {
    pub(crate) code: i32,
    pub(crate) index: u32,
    pub(crate) address: u64,
    pub(crate) text: [u8; 176],
}

const _: () = assert!(size_of::<ErrorRecord>() == 192);

impl ErrorRecord {
    /// Writes down what failed.
    pub(crate) fn tell(&mut self, failure: &SessionError) {
        self.code = code(&failure.error);
        self.index = u32::try_from(failure.index).unwrap_or(u32::MAX);
        self.address = failure.error.address();
        put_text(&mut self.text, failure.error);
    }
}
