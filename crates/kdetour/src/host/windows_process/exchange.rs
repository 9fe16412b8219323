//! Bytes of several pages are replaced at one moment.
//!
//! As a page is written while it cannot be executed, so are all of a set ([`flip`](super::flip)): whoever comes there waits until the last of
//! them is as it will be. Nobody is suspended and nobody meets a breakpoint.

use super::flip::{Page, Write, write_pages};
use super::guarded::Guarded;
use super::memory::{self, ProcessText, page_down};
use super::nt::Nt;
use super::{PAGE, WindowsProcess, arch};
use crate::Error;
use crate::address::narrow;
use crate::host::Span;
use crate::host::process::seen::Seen;
use core::marker::PhantomData;
use std::vec::Vec;

/// Bytes that are ready to take the place of others.
#[derive(Debug)]
pub struct Prepared<'a> {
    nt: &'static Nt,
    flags: u32,
    /// Sorted, each once.
    pages: Vec<Page>,
    writes: Vec<Write>,
    /// What the writes have their bytes from: it stays if the thread is ended while it writes.
    after: Vec<u8>,
    /// What was there before: where [`back`](Self::back) has its bytes from.
    before: Vec<u8>,
    /// What takes the writes back, the last one first.
    back: Vec<Write>,
    borrowed: PhantomData<&'a [u8]>,
}

impl<'a> Prepared<'a> {
    /// # Errors
    /// As [`Exchange::prepare`](crate::commit::Exchange::prepare).
    pub(super) fn new(host: &WindowsProcess, writes: &[(u64, &'a [u8])]) -> Result<Self, Error> {
        let WindowsProcess { nt, ref guarded, flags, .. } = *host;
        // Whoever came there would not wait.
        if let Some(&(address, _)) = writes.first().filter(|_| !arch::can_lose_execution()) {
            return Err(Error::NotExchangeable { address });
        }
        check(nt, guarded, flags, writes)?;
        let mut prepared = Self {
            nt,
            flags,
            pages: Vec::new(),
            writes: Vec::new(),
            after: Vec::new(),
            before: Vec::new(),
            back: Vec::new(),
            borrowed: PhantomData,
        };
        prepared.find_pages(writes)?;
        prepared.read(writes)?;
        Ok(prepared)
    }

    fn find_pages(&mut self, writes: &[(u64, &[u8])]) -> Result<(), Error> {
        let mut pages = Vec::new();
        for &(address, bytes) in writes {
            let end = address.saturating_add(bytes.len() as u64);
            let mut page = page_down(address);
            while page < end {
                pages.try_reserve(1)?;
                pages.push(page);
                page = page.saturating_add(PAGE);
            }
        }
        pages.sort_unstable();
        pages.dedup();
        self.pages.try_reserve_exact(pages.len())?;
        self.pages.extend(pages.into_iter().map(Page::at));
        Ok(())
    }

    /// Reads what is there, for the way back.
    fn read(&mut self, writes: &[(u64, &'a [u8])]) -> Result<(), Error> {
        let all = writes.iter().map(|(_, bytes)| bytes.len()).sum();
        self.after.try_reserve_exact(all)?;
        writes.iter().for_each(|(_, bytes)| self.after.extend_from_slice(bytes));
        self.before.try_reserve_exact(all)?;
        self.before.resize(all, 0);
        self.writes.try_reserve_exact(writes.len())?;
        self.back.try_reserve_exact(writes.len())?;
        let (mut new, mut rest) = (self.after.as_slice(), self.before.as_mut_slice());
        let mut seen = Seen::new();
        for &(address, bytes) in writes {
            let Some((part, behind)) = rest.split_at_mut_checked(bytes.len()) else { break };
            let Some((bytes, others)) = new.split_at_checked(bytes.len()) else { break };
            seen.read(address, part, |address, bytes| memory::read(self.nt, address, bytes))?;
            let to = narrow(address);
            self.writes.push(Write { to, from: bytes.as_ptr(), len: bytes.len() });
            self.back.push(Write { to, from: part.as_ptr(), len: part.len() });
            (new, rest) = (others, behind);
        }
        // Two may overlap.
        self.back.reverse();
        Ok(())
    }

    /// Replaces the bytes.
    ///
    /// # Errors
    /// [`Error::Host`] with what the kernel answered; nothing is replaced then.
    pub(super) fn exchange(mut self) -> Result<(), Error> {
        if self.writes.is_empty() {
            return Ok(());
        }
        // SAFETY: the writes lie in these pages, which `check` has found to be text of this process; their bytes are in `after`. All
        // of this is on the heap. The handler was installed when the host was made.
        let outcome = unsafe { write_pages(self.nt, &mut self.pages, &self.writes, self.flags) };
        let Err(failed) = outcome else { return Ok(()) };
        if failed.written {
            // A page has lost its execution for ever; what others hold becomes what it was.
            // SAFETY: the same pages; the bytes are in `before`, which has not changed since.
            let _ = unsafe { write_pages(self.nt, &mut self.pages, &self.back, self.flags) };
        }
        Err(failed.into())
    }
}

/// Whether all these bytes are text that may be written.
fn check(nt: &'static Nt, guarded: &Guarded, flags: u32, writes: &[(u64, &[u8])]) -> Result<(), Error> {
    let mut spans = Vec::new();
    spans.try_reserve_exact(writes.len())?;
    spans.extend(writes.iter().map(|&(address, bytes)| Span { address, len: bytes.len() }));
    ProcessText::open(nt, guarded, flags, &spans).map(drop)
}
