//! ELF images, and what the loader says of them.
//!
//! ```text
//!   image      an ELF image in memory: headers, segments, dynamic table
//!   symbols    its dynamic symbols: names, versions
//!   loaded     the modules that the loader has
//!   exports    what a module has for others
//!   imports    what it wants of others: the slots of its table, and who fills them
//!   find       a function by its module's name and its own
//!   library    GetProcAddress and its like
//! ```

mod exports;
mod find;
mod image;
mod imports;
mod library;
mod loaded;
mod symbols;

pub use library::{
    kdetour_free_module, kdetour_load_module, kdetour_module_called, kdetour_module_path, kdetour_procedure,
};

use super::{Export, Imports};
use crate::detours::windows::{BAD_EXE_FORMAT, Long};
use alloc::vec::Vec;
use exports::Exports;
use image::Image;
use loaded::{Kind, Module};

pub(super) use find::find;
pub(in crate::detours) use imports::function_through;
pub(super) use loaded::Handle;

/// The image of a handle, 0 being the program's.
pub(super) fn open(module: u64) -> Result<Image, Long> {
    known(module).map(|(image, _)| image)
}

/// The same, and what the loader knows of it, if anything.
fn known(module: u64) -> Result<(Image, Option<Module>), Long> {
    let modules = loaded::modules();
    let base = match module {
        0 => modules.iter().find(|module| module.kind == Kind::Program).ok_or(BAD_EXE_FORMAT)?.base,
        base => base,
    };
    let known = modules.into_iter().find(|module| module.base == base);
    Ok((Image::open(base)?, known))
}

/// The module that an address is in.
pub(super) fn containing(address: u64) -> Option<u64> {
    loaded::containing(address).map(|module| module.base)
}

/// The first module behind an address.
pub(super) fn next(last: u64) -> Option<u64> {
    let behind = |module: &Module| module.base > last && module.kind != Kind::Kernel;
    loaded::modules().into_iter().filter(behind).map(|module| module.base).min()
}

/// What a module has for others, in the order of its table. It stays loaded as long as what is given beside that.
pub(super) fn exports(module: u64) -> Result<(Vec<Export>, Option<Handle>), Long> {
    let (image, module) = known(module)?;
    let table = Exports::of(&image, module.as_ref())?;
    Ok((table.all()?, table.loader))
}

/// What a module wants of others.
pub(super) fn imports(module: u64) -> Result<Imports, Long> {
    let (image, module) = known(module)?;
    imports::imports(&image, module.as_ref())
}
