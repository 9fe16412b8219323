//! Modules: what is loaded, and what its tables say.
//!
//! ```text
//!   memory     this process's memory, read so that a bad address is an error
//!   image      an ELF image in memory: headers, segments, dynamic table
//!   symbols    its dynamic symbols: names, versions
//!   loaded     the modules that the loader has
//!   exports    what a module has for others
//!   imports    what it wants of others: the slots of its table, and who fills them
//!   enumerate  the same for the caller's functions
//!   find       a function by its module's name and its own
//!   library    GetProcAddress and its like
//! ```
//!
//! A module's handle is the address of its ELF header. It may be any address: what is there is looked at before it is believed.

mod enumerate;
mod exports;
mod find;
mod image;
mod imports;
mod library;
mod loaded;
mod memory;
mod symbols;

pub use enumerate::{
    DetourEnumerateImports, DetourEnumerateImportsEx, DetourIsFunctionImported, FileCallback,
    FunctionCallback, SlotCallback,
};
pub use exports::{DetourEnumerateExports, ExportCallback};
pub use find::DetourFindFunction;
pub use library::{
    kdetour_free_module, kdetour_load_module, kdetour_module_called, kdetour_module_path, kdetour_procedure,
};

use super::windows::{BAD_EXE_FORMAT, EXE_MARKED_INVALID, Long, answer};
use core::ffi::c_void;
use core::ptr;
use image::Image;
use loaded::{Kind, Module};

pub(super) use imports::function_through;
pub(super) use memory::{add, pointer, read, wide};

/// The image of a handle, null being the program's; and what the loader knows of it, if anything.
fn handle_of(module: *mut c_void) -> Result<(Image, Option<Module>), Long> {
    let modules = loaded::modules();
    let base = match module.expose_provenance() as u64 {
        0 => modules.iter().find(|module| module.kind == Kind::Program).ok_or(BAD_EXE_FORMAT)?.base,
        base => base,
    };
    let known = modules.into_iter().find(|module| module.base == base);
    Ok((Image::open(base)?, known))
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
pub extern "C" fn DetourGetContainingModule(address: *mut c_void) -> *mut c_void {
    let module = loaded::containing(address.addr() as u64);
    pointer_to(outcome(module.map(|module| module.base).ok_or(BAD_EXE_FORMAT)))
}

/// The module behind an address, in the order of their addresses; null begins, and ends.
#[unsafe(no_mangle)]
pub extern "C" fn DetourEnumerateModules(last: *mut c_void) -> *mut c_void {
    let last = last.addr() as u64;
    let behind = |module: &Module| module.base > last && module.kind != Kind::Kernel;
    let next = loaded::modules().into_iter().filter(behind).map(|module| module.base).min();
    match next {
        Some(next) => pointer_to(outcome(Ok(next))),
        None => ptr::null_mut(),
    }
}

/// Where a module is entered, as its file says; null if it does not say.
#[unsafe(no_mangle)]
pub extern "C" fn DetourGetEntryPoint(module: *mut c_void) -> *mut c_void {
    let entry = handle_of(module).and_then(|(image, _)| image.entry());
    pointer_to(outcome(entry).unwrap_or(0))
}

/// How many bytes of addresses a module takes.
#[unsafe(no_mangle)]
pub extern "C" fn DetourGetModuleSize(module: *mut c_void) -> u32 {
    let size = handle_of(module).map(|(image, _)| image.size());
    outcome(size.and_then(|size| u32::try_from(size).map_err(|_| EXE_MARKED_INVALID)))
}
