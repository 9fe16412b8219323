//! `struct kdetour_patch`: what a plan says is to be written, as plain data.

use kdetour::plan::Patch;

/// The most instructions that can begin in a window.
const BOUNDARIES: usize = 14;

/// `struct kdetour_patch` of `kdetour.h`.
#[repr(C)]
#[derive(Debug)]
pub struct PatchRecord {
    pub(crate) address: u64,
    pub(crate) trampoline: u64,
    pub(crate) detour: u64,
    pub(crate) resume: [u64; BOUNDARIES],
    pub(crate) boundary: [u8; BOUNDARIES],
    pub(crate) shape: u8,
    pub(crate) length: u8,
    pub(crate) expected_length: u8,
    pub(crate) boundary_count: u8,
    pub(crate) expected: [u8; 30],
    pub(crate) patched: [u8; 16],
}

// No gaps: a record that was kept is compared byte by byte.
const _: () = assert!(size_of::<PatchRecord>() == 3 * 8 + BOUNDARIES * 9 + 4 + 30 + 16);

/// Copies as much as there is room for; how much there was.
pub(crate) fn copy(to: &mut [u8], from: &[u8]) -> u8 {
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

    /// Takes down a patch.
    pub(crate) fn of(patch: &Patch) -> Self {
        let mut record = Self {
            address: patch.address(),
            trampoline: patch.trampoline(),
            detour: patch.detour(),
            shape: patch.shape() as u8,
            ..Self::EMPTY
        };
        record.expected_length = copy(&mut record.expected, patch.original_bytes());
        record.length = copy(&mut record.patched, patch.new_bytes());
        for (resume, (offset, address)) in
            patch.boundaries().zip(record.boundary.iter_mut().zip(&mut record.resume))
        {
            (*offset, *address) = (resume.offset, resume.address);
            record.boundary_count += 1;
        }
        record
    }
}
