//! `struct kdetour_patch` in a program: filled in from a plan, and written.

use crate::patch::{PatchRecord, copy};
use kdetour::host::{Host as _, Span, Text as _};
use kdetour::typed::with_process;
use kdetour::{Error, Handle};

impl PatchRecord {
    /// Takes down the patch of a detour.
    pub(super) fn fill(&mut self, handle: Handle) -> Result<(), Error> {
        let patch = with_process(|kdetour| {
            kdetour.record(handle).and_then(|record| record.patch).ok_or(Error::NotAttached)
        })?;
        *self = Self::of(&patch);
        Ok(())
    }

    /// Compares, and writes.
    pub(super) fn write(&self, back: bool) -> Result<(), Error> {
        let cut =
            |bytes: &[u8], len: u8| bytes.get(..usize::from(len)).map(<[u8]>::to_vec).ok_or(Error::Null);
        let original = cut(&self.expected, self.expected_length)?;
        let mut patched = original.clone();
        copy(patched.get_mut(..usize::from(self.length)).ok_or(Error::Null)?, &self.patched);
        let (from, to) = if back { (patched, original) } else { (original, patched) };
        with_process(|kdetour| {
            let host = kdetour.host();
            let mut text = host.open_text(&[Span { address: self.address, len: from.len() }])?;
            same(&mut text, self.address, &from)?;
            let len = usize::from(self.length);
            text.write(self.address, to.get(..len).unwrap_or(&to))?;
            host.sync_cores();
            Ok(())
        })
    }
}

fn same(text: &mut impl kdetour::host::Text, address: u64, expected: &[u8]) -> Result<(), Error> {
    let mut found = alloc::vec![0; expected.len()];
    text.read(address, &mut found)?;
    match expected.iter().zip(&found).enumerate().find(|(_, (expected, found))| expected != found) {
        None => Ok(()),
        Some((at, (&expected, &found))) => {
            Err(Error::Changed { address: address.wrapping_add(at as u64), expected, found })
        }
    }
}
