//! `struct kdetour`: one detour, in its client's memory.

use super::find::find;
use super::{Failure, misuse};
use crate::{code, method};
use alloc::vec::Vec;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;
use kdetour::typed::set::{self, Member};
use kdetour::typed::with_process;
use kdetour::{AtomicAddress, Error, Handle, SessionError, State};

/// `struct kdetour` of `kdetour.h`.
#[repr(C)]
#[derive(Debug)]
pub struct Detour {
    pub(super) symbol: *const c_char,
    pub(super) target: *mut c_void,
    pub(super) detour: *mut c_void,
    pub(super) original: *mut *mut c_void,
    pub(super) method: c_int,
    pub(super) handle: u64,
}

impl Detour {
    /// One that has not been attached yet. `original` is null, or receives the address of the original.
    pub const fn new(target: *mut c_void, detour: *mut c_void, original: *mut *mut c_void) -> Self {
        Self { symbol: ptr::null(), target, detour, original, method: 0, handle: 0 }
    }

    /// Its handle, if it has one.
    pub(super) const fn handle(&self) -> Option<Handle> {
        if self.handle == 0 { None } else { Some(Handle::from_raw(self.handle)) }
    }

    /// What its handle names.
    pub(super) fn state(&self) -> Result<Option<(Handle, State)>, Error> {
        let Some(handle) = self.handle() else { return Ok(None) };
        Ok(set::state(handle)?.map(|state| (handle, state)))
    }

    /// Whether it was attached once, and has been drained since.
    pub(super) fn is_over(&self) -> Result<bool, Error> {
        let handle = Handle::from_raw(self.handle);
        with_process(|kdetour| Ok(kdetour.is_over(handle)))
    }

    /// The session has attached it, or planned it.
    pub(super) fn is_attached(&mut self, target: u64, handle: Handle) {
        self.target = ptr::with_exposed_provenance_mut(usize::try_from(target).unwrap_or(0));
        self.handle = handle.as_raw();
    }

    /// It has been drained.
    pub(super) const fn is_gone(&mut self) {
        self.handle = 0;
    }

    pub(super) fn target_address(&self) -> u64 {
        self.target.addr() as u64
    }
}

/// What is asked for, in the library's terms.
///
/// # Safety
/// The symbols are strings; the places for originals are writable until the detours have been drained.
pub(super) unsafe fn members(detours: &[&mut Detour]) -> Result<Vec<Member>, Failure> {
    let mut members = Vec::new();
    members.try_reserve_exact(detours.len()).map_err(Error::from)?;
    for (index, detour) in detours.iter().enumerate() {
        let failed = |error| Failure::from(SessionError { index, error });
        let again = match detour.state().map_err(failed)? {
            Some((_, State::Attached)) => {
                return Err(failed(Error::AlreadyDetoured { target: detour.target_address() }));
            }
            Some((handle, State::Draining)) => Some(handle),
            None => None,
        };
        let Some(method) = method::of(detour.method) else {
            return Err(misuse(code::ARGUMENT, index, 0, "there is no such method"));
        };
        let target = if detour.symbol.is_null() {
            detour.target
        } else {
            // SAFETY: by the caller's word.
            find(unsafe { CStr::from_ptr(detour.symbol) })
        };
        if target.is_null() && !detour.symbol.is_null() {
            return Err(failed(Error::UnknownSymbol));
        }
        let cell = detour.original.cast::<usize>();
        if !cell.is_aligned() {
            let address = cell.addr() as u64;
            return Err(misuse(code::ARGUMENT, index, address, "the place for the original is not aligned"));
        }
        // SAFETY: by the caller's word; it is aligned.
        let cell = (!cell.is_null()).then(|| unsafe { AtomicAddress::from_ptr(cell) });
        let (target, detour) = (target.addr() as u64, detour.detour.addr() as u64);
        let member = Member { method, target, detour, cell, again, loose: false };
        if !set::says_the_same(&member).map_err(failed)? {
            let text = "this struct kdetour drains, or is planned, and says something else now; detach it with waiting first";
            return Err(misuse(code::ARGUMENT, index, member.target, text));
        }
        members.push(member);
    }
    Ok(members)
}
