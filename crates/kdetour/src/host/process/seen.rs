//! The page that was read last: asking the system for each few bytes costs more than all else, and the next who asks is often a neighbour.

use super::PAGE;
use crate::Error;
use core::fmt;

/// A page of memory as it was when it was read. Whoever keeps one decides for how long that is good enough: what is to be written
/// is compared with the memory itself once more, by a text that was opened later.
pub(crate) struct Seen {
    page: Option<u64>,
    bytes: [u8; PAGE as usize],
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen").field("page", &self.page).finish_non_exhaustive()
    }
}

impl Seen {
    /// None yet.
    pub(crate) const fn new() -> Self {
        Self { page: None, bytes: [0; PAGE as usize] }
    }

    /// Something may have been written since.
    pub(crate) const fn forget(&mut self) {
        self.page = None;
    }

    /// Reads bytes, by `memory` if the page is another one, or if they are of two.
    ///
    /// # Errors
    /// What `memory` answers.
    pub(crate) fn read(
        &mut self,
        address: u64,
        bytes: &mut [u8],
        memory: impl Fn(u64, &mut [u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let page = address & !(PAGE - 1);
        let from = usize::try_from(address - page).unwrap_or(usize::MAX);
        if from.saturating_add(bytes.len()) > self.bytes.len() {
            return memory(address, bytes);
        }
        if self.page != Some(page) {
            self.page = None;
            if memory(page, &mut self.bytes).is_err() {
                // Which address it is that cannot be read is for the caller to know.
                return memory(address, bytes);
            }
            self.page = Some(page);
        }
        for (to, from) in bytes.iter_mut().zip(self.bytes.iter().skip(from)) {
            *to = *from;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    #[test]
    fn a_page_is_read_once_until_it_is_forgotten() {
        let (mut seen, reads) = (Seen::new(), Cell::new(0));
        let memory = |address: u64, bytes: &mut [u8]| {
            reads.set(reads.get() + 1);
            (address..).zip(bytes).for_each(|(address, byte)| *byte = address as u8 ^ reads.get());
            if address >= 0x9000 { Err(Error::Unreadable { address }) } else { Ok(()) }
        };
        let read = |seen: &mut Seen, address, len| {
            let mut bytes = [0; 4];
            seen.read(address, &mut bytes[..len], memory).map(|()| bytes)
        };
        assert_eq!(read(&mut seen, 0x1010, 2), Ok([0x11, 0x10, 0, 0]));
        assert_eq!(read(&mut seen, 0x1ffc, 4), Ok([0xfd, 0xfc, 0xff, 0xfe]));
        assert_eq!(reads.get(), 1);
        assert_eq!(read(&mut seen, 0x1ffe, 4), Ok([0xfc, 0xfd, 2, 3]), "of two pages");
        assert_eq!(read(&mut seen, 0x1010, 1), Ok([0x11, 0, 0, 0]));
        seen.forget();
        assert_eq!(read(&mut seen, 0x1010, 1), Ok([0x13, 0, 0, 0]));
        assert_eq!(read(&mut seen, 0x9010, 1), Err(Error::Unreadable { address: 0x9010 }));
        assert_eq!(read(&mut seen, 0x9020, 1), Err(Error::Unreadable { address: 0x9020 }), "again");
        assert_eq!(reads.get(), 7);
    }
}
