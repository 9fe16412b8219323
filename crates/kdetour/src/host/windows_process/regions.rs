//! What is mapped where, asked of the kernel one region at a time.

use super::memory;
use super::nt::Nt;
use crate::address::widen;
use crate::host::image::{self, Read};

// winnt.h.
const COMMITTED: u32 = 0x1000;
const RESERVED: u32 = 0x2000;
const FREE: u32 = 0x1_0000;
const IMAGE: u32 = 0x100_0000;
const PRIVATE: u32 = 0x2_0000;
const NO_ACCESS: u32 = 0x01;
const EXECUTABLE: u32 = 0xf0;
/// Writable, or copied when it is written; and not executable.
const WRITABLE: u32 = 0x04 | 0x08;
const GUARD: u32 = 0x100;

/// Whether a page of this protection can be executed.
pub(super) const fn is_executable(protection: u32) -> bool {
    protection & EXECUTABLE != 0
}

/// Pages that follow each other and have the same properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// The first byte.
    pub(super) start: u64,
    /// One past the last byte.
    pub(super) end: u64,
    /// Where what they were allocated with begins: an image's base.
    pub(super) allocation: u64,
    state: u32,
    protection: u32,
    kind: u32,
}

impl Region {
    /// The one that holds an address; none where there can be no memory.
    pub(super) fn of(nt: &Nt, address: u64) -> Option<Self> {
        let found = nt.query(address)?;
        let start = widen(found.BaseAddress.addr());
        Some(Self {
            start,
            end: start.saturating_add(widen(found.RegionSize)),
            allocation: widen(found.AllocationBase.addr()),
            state: found.State,
            protection: found.Protect,
            kind: found.Type,
        })
    }

    /// Whether nothing is there.
    pub(super) const fn is_free(&self) -> bool {
        self.state == FREE
    }

    /// Whether something is there, or nothing: who wants it has to try. Wine says so of all that lies outside of its own areas in a 32-bit program.
    /// What is reserved has no protection otherwise.
    pub(super) const fn may_be_free(&self) -> bool {
        self.state == RESERVED && self.protection == NO_ACCESS
    }

    /// Whether memory is there, whatever it allows.
    pub(super) const fn is_committed(&self) -> bool {
        self.state == COMMITTED
    }

    /// Whether memory is there that can be accessed in some way.
    pub(super) const fn is_there(&self) -> bool {
        self.state == COMMITTED && self.protection & (NO_ACCESS | GUARD) == 0
    }

    /// Whether it can be written as it is.
    pub(super) const fn is_writable(&self) -> bool {
        self.is_there() && self.protection & WRITABLE != 0
    }

    /// Whether code can run there.
    pub(super) const fn is_code(&self) -> bool {
        self.is_there() && is_executable(self.protection)
    }

    /// Whether it is part of a program or a library.
    pub(super) const fn is_image(&self) -> bool {
        self.kind == IMAGE
    }

    /// Whether other processes may see the bytes at `address`, which is in it: it shows a section that is no image, or one of an image that says
    /// so. None if it is of an image that has lost its headers.
    pub(super) fn is_shared(&self, nt: &Nt, address: u64) -> Option<bool> {
        self.is_shared_by(&|at, bytes| memory::read(nt, at, bytes), address)
    }

    /// The same where `read` reads the headers.
    pub(super) fn is_shared_by(&self, read: Read<'_>, address: u64) -> Option<bool> {
        match self.kind {
            PRIVATE => Some(false),
            IMAGE => image::is_shared(read, self.allocation, address),
            _ => Some(true),
        }
    }
}
