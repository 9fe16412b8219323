//! `struct kdetour` of `kdetour_nt.h`: one detour, in the driver's own memory.

use super::Running;
use alloc::vec::Vec;
use core::ffi::{CStr, c_char, c_void};
use core::ptr;
use kdetour::host::windows_kernel::{Ntoskrnl, WindowsKernel};
use kdetour::{AtomicAddress, Attach, Error, Handle, Session, State};

/// One detour.
#[repr(C)]
#[derive(Debug)]
pub struct Detour {
    symbol: *const c_char,
    target: *mut c_void,
    detour: *mut c_void,
    original: *mut *mut c_void,
    /// A `LONG`.
    in_flight: *mut i32,
    reserved: *mut c_void,
    handle: u64,
}

const _: () = assert!(size_of::<Detour>() == 6 * size_of::<usize>() + 8);

/// What is asked of a session.
pub(super) enum Request {
    Attach(Attach),
    /// One that was drained has let go of its places: they are told anew.
    Again {
        handle: Handle,
        target: u64,
        places: Option<Places>,
    },
}

/// Where the calls of a detour are counted, and where its original is kept.
#[derive(Clone, Copy)]
pub(super) struct Places {
    in_flight: u64,
    cell: Option<&'static AtomicAddress>,
}

impl Request {
    pub(super) const fn target(&self) -> u64 {
        match self {
            Self::Attach(attach) => attach.target,
            Self::Again { target, .. } => *target,
        }
    }

    /// Tells the places before the session begins.
    ///
    /// # Safety
    /// As for [`Kdetour::set_places`](kdetour::Kdetour::set_places).
    pub(super) unsafe fn place(&self, running: &mut Running) -> Result<(), Error> {
        match *self {
            Self::Again { handle, places: Some(Places { in_flight, cell }), .. } => {
                // SAFETY: by the caller's word.
                unsafe { running.set_places(handle, in_flight, cell) }
            }
            _ => Ok(()),
        }
    }

    /// The session has failed: they are let go again.
    pub(super) fn take_back(&self, running: &mut Running) {
        if let Self::Again { handle, places: Some(_), .. } = *self {
            // SAFETY: it is as it was when it had been drained; if it should be attached, nothing is done.
            let _ = unsafe { running.set_places(handle, 0, None) };
        }
    }

    /// # Safety
    /// As for [`Session::attach`].
    pub(super) unsafe fn add_to<'a>(
        &self,
        session: Session<'a, WindowsKernel<Ntoskrnl>>,
    ) -> Session<'a, WindowsKernel<Ntoskrnl>> {
        match *self {
            // SAFETY: by the caller's word.
            Self::Attach(attach) => unsafe { session.attach(attach) },
            // SAFETY: as above.
            Self::Again { handle, .. } => unsafe { session.reattach(handle, 0) },
        }
    }
}

impl Detour {
    /// Its handle, if it has one.
    pub(super) const fn handle(&self) -> Option<Handle> {
        if self.handle == 0 { None } else { Some(Handle::from_raw(self.handle)) }
    }

    /// It is attached.
    pub(super) fn is_attached(&mut self, target: u64, handle: Handle) {
        self.target = ptr::with_exposed_provenance_mut(usize::try_from(target).unwrap_or(0));
        self.handle = handle.as_raw();
    }

    /// What its client asks for: one that was attached before is attached again as it was, if it still says the same.
    ///
    /// # Safety
    /// The symbol is null or a string; the place for the original and the counter are null, or stay until the detour was drained.
    pub(super) unsafe fn request(&self, running: &Running) -> Result<Request, Error> {
        let target = if self.symbol.is_null() {
            self.target
        } else {
            // SAFETY: by the caller's word.
            let found = find(unsafe { CStr::from_ptr(self.symbol) });
            if found.is_null() {
                return Err(Error::UnknownSymbol);
            }
            found
        };
        if target.is_null() || self.detour.is_null() {
            return Err(Error::Null);
        }
        let (target, detour) = (target.addr() as u64, self.detour.addr() as u64);
        let known = self.handle().and_then(|handle| running.record(handle));
        match known {
            Some(record) if record.state == State::Attached => return Err(Error::AlreadyDetoured { target }),
            _ => {}
        }
        let again = known.filter(|record| record.target == target && record.detour == detour);
        // Whoever was not drained yet is counted, and reads his original, where he was told.
        if let Some(record) = again.filter(|record| record.in_flight != 0 || record.cell.is_some()) {
            return Ok(Request::Again { handle: record.handle, target, places: None });
        }
        let cell = self.original.cast::<usize>();
        for (is_aligned, address) in
            [(cell.is_aligned(), cell.addr()), (self.in_flight.is_aligned(), self.in_flight.addr())]
        {
            if !is_aligned {
                return Err(Error::Misaligned { address: address as u64 });
            }
        }
        // SAFETY: by the caller's word; it is aligned.
        let cell = (!cell.is_null()).then(|| unsafe { AtomicAddress::from_ptr(cell) });
        let in_flight = self.in_flight.addr() as u64;
        if let Some(record) = again {
            let places = Some(Places { in_flight, cell });
            return Ok(Request::Again { handle: record.handle, target, places });
        }
        Ok(Request::Attach(Attach { target, detour, cell, in_flight, chain: true, ..Attach::default() }))
    }
}

/// `UNICODE_STRING` (ntdef.h).
#[repr(C)]
struct UnicodeString {
    length: u16,
    maximum_length: u16,
    buffer: *const u16,
}

// As wdm.h declares it: `PASSIVE_LEVEL`.
unsafe extern "system" {
    fn MmGetSystemRoutineAddress(name: *const UnicodeString) -> *mut c_void;
}

/// An exported function by its name; null if there is none.
pub(super) fn find(name: &CStr) -> *mut c_void {
    let mut wide: Vec<u16> = Vec::new();
    let bytes = name.to_bytes();
    if wide.try_reserve_exact(bytes.len()).is_err() {
        return ptr::null_mut();
    }
    wide.extend(bytes.iter().map(|&byte| u16::from(byte)));
    let Ok(length) = u16::try_from(2 * wide.len()) else { return ptr::null_mut() };
    let string = UnicodeString { length, maximum_length: length, buffer: wide.as_ptr() };
    // SAFETY: the string is one, and the caller is at `PASSIVE_LEVEL`.
    unsafe { MmGetSystemRoutineAddress(&raw const string) }
}
