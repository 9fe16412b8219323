//! `struct kdetour_patch`: what a plan says is to be written, as plain data.

use kdetour::host::{Host as _, Span, Text as _};
use kdetour::typed::with_process;
use kdetour::{Error, Handle};

/// The most instructions that can begin in a window.
const BOUNDARIES: usize = 14;

/// `struct kdetour_patch` of `kdetour.h`.
#[repr(C)]
#[derive(Debug)]
pub struct PatchRecord {
    pub(super) address: u64,
    pub(super) trampoline: u64,
    pub(super) detour: u64,
    pub(super) resume: [u64; BOUNDARIES],
    pub(super) boundary: [u8; BOUNDARIES],
    pub(super) shape: u8,
    pub(super) length: u8,
    pub(super) expected_length: u8,
    pub(super) boundary_count: u8,
    pub(super) expected: [u8; 30],
    pub(super) patched: [u8; 16],
}

const _: () = assert!(size_of::<PatchRecord>() == 3 * 8 + BOUNDARIES * 9 + 4 + 30 + 16);

fn copy(to: &mut [u8], from: &[u8]) -> u8 {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
    u8::try_from(from.len()).unwrap_or(u8::MAX)
}

impl PatchRecord {
    const EMPTY: Self = Self {
        address: 0,
        trampoline: 0,
        detour: 0,
        resume: [0; BOUNDARIES],
        boundary: [0; BOUNDARIES],
        shape: 0,
        length: 0,
        expected_length: 0,
        boundary_count: 0,
        expected: [0; 30],
        patched: [0; 16],
    };

    /// Takes down the patch of a detour.
    pub(super) fn fill(&mut self, handle: Handle) -> Result<(), Error> {
        let patch = with_process(|kdetour| {
            kdetour.record(handle).and_then(|record| record.patch).ok_or(Error::NotAttached)
        })?;
        *self = Self::EMPTY;
        self.address = patch.address();
        self.trampoline = patch.trampoline();
        self.detour = patch.detour();
        self.shape = patch.shape() as u8;
        self.expected_length = copy(&mut self.expected, patch.original_bytes());
        self.length = copy(&mut self.patched, patch.new_bytes());
        for (resume, (offset, address)) in
            patch.boundaries().zip(self.boundary.iter_mut().zip(&mut self.resume))
        {
            (*offset, *address) = (resume.offset, resume.address);
            self.boundary_count += 1;
        }
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
