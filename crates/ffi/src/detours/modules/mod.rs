//! Modules: what is loaded, and what its tables say.
//!
//! ```text
//!   memory     this process's memory, read so that a bad address is an error
//!   enumerate  exports and imports, told to the caller's functions
//!   elf        ELF images, and the loader of Linux
//!   pe         PE images, and that of Windows
//! ```
//!
//! A module's handle is the address of its header. It may be any address: what is there is looked at before it is believed.

#[cfg(not(windows))]
mod elf;
mod enumerate;
mod memory;
#[cfg(windows)]
mod pe;

#[cfg(not(windows))]
use elf as this;
#[cfg(windows)]
use pe as this;

#[cfg(not(windows))]
pub use elf::{
    kdetour_free_module, kdetour_load_module, kdetour_module_called, kdetour_module_path, kdetour_procedure,
};
pub use enumerate::{
    DetourEnumerateExports, DetourEnumerateImports, DetourEnumerateImportsEx, DetourIsFunctionImported,
    ExportCallback, FileCallback, FunctionCallback, SlotCallback,
};

use super::windows::{BAD_EXE_FORMAT, EXE_MARKED_INVALID, INVALID_PARAMETER, Long, answer, set_last_error};
use alloc::vec::Vec;
use core::ffi::{CStr, c_char, c_void};
use core::ptr;

#[cfg(not(windows))]
pub(super) use memory::wide;
pub(super) use memory::{add, pointer, read};
#[cfg(windows)]
pub(crate) use pe::{imported_from, is_of_the_program};
pub(super) use this::function_through;

/// Something that a module has for others.
#[derive(Clone, Copy, Debug)]
struct Export {
    /// Its number in the table.
    ordinal: u32,
    /// Where its name is; 0 if it has none.
    name: u64,
    /// Where its code or its data is; 0 if there is no such place.
    code: u64,
}

/// What a module wants of others.
#[derive(Debug, Default)]
struct Imports {
    files: Vec<File>,
    functions: Vec<Import>,
    /// They stay loaded while their names are given out.
    #[cfg(not(windows))]
    kept: Vec<this::Handle>,
}

/// A file with functions.
#[derive(Clone, Copy, Debug)]
struct File {
    /// Its module; 0 if it is not loaded.
    module: u64,
    /// Where its name is.
    name: u64,
}

/// A function.
#[derive(Clone, Copy, Debug)]
struct Import {
    /// The position of its file.
    file: usize,
    /// Its number, if it is wanted by that; else 0.
    ordinal: u32,
    /// Where its name is; 0 if it has none.
    name: u64,
    /// Where the loader keeps its address.
    slot: u64,
    /// Its address; 0 if nobody has it.
    function: u64,
}

/// The address that a handle is; 0 is the program.
fn base_of(module: *mut c_void) -> u64 {
    module.expose_provenance() as u64
}

/// An address as a pointer.
fn pointer_to(address: u64) -> *mut c_void {
    ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0))
}

/// The last error that an outcome leaves, and its value.
fn outcome<T: Default>(outcome: Result<T, Long>) -> T {
    answer(outcome.as_ref().map(|_| ()).map_err(|&error| error));
    outcome.unwrap_or_default()
}

/// The module that an address is in: code or data.
#[unsafe(no_mangle)]
pub extern "system" fn DetourGetContainingModule(address: *mut c_void) -> *mut c_void {
    pointer_to(outcome(this::containing(address.addr() as u64).ok_or(BAD_EXE_FORMAT)))
}

/// The module behind an address, in the order of their addresses; null begins, and ends.
#[unsafe(no_mangle)]
pub extern "system" fn DetourEnumerateModules(last: *mut c_void) -> *mut c_void {
    match this::next(last.addr() as u64) {
        Some(next) => pointer_to(outcome(Ok(next))),
        None => ptr::null_mut(),
    }
}

/// Where a module is entered, as its file says; null if it does not say.
#[unsafe(no_mangle)]
pub extern "system" fn DetourGetEntryPoint(module: *mut c_void) -> *mut c_void {
    let entry = this::open(base_of(module)).and_then(|image| image.entry());
    pointer_to(outcome(entry).unwrap_or(0))
}

/// How many bytes of addresses a module takes.
#[unsafe(no_mangle)]
pub extern "system" fn DetourGetModuleSize(module: *mut c_void) -> u32 {
    let size = this::open(base_of(module)).map(|image| image.size());
    outcome(size.and_then(|size| u32::try_from(size).map_err(|_| EXE_MARKED_INVALID)))
}

/// A function of a module, which is loaded if it is not, and stays then. A success leaves the last error as it was.
///
/// # Safety
/// Both are null or strings. A module that is loaded runs its constructors.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn DetourFindFunction(
    module: *const c_char,
    function: *const c_char,
) -> *mut c_void {
    let found = if module.is_null() || function.is_null() {
        Err(INVALID_PARAMETER)
    } else {
        // SAFETY: the caller's word.
        this::find(unsafe { CStr::from_ptr(module) }, unsafe { CStr::from_ptr(function) })
    };
    match found {
        Ok(place) => pointer_to(place),
        Err(error) => {
            set_last_error(error);
            ptr::null_mut()
        }
    }
}
