//! A function by the name of its module and its own.

use super::exports::Exports;
use super::image::{Elf, Image};
use super::loaded::{self, Handle, Kind, Module};
use crate::detours::modules::memory::add;
use crate::detours::windows::{Long, MOD_NOT_FOUND, PROC_NOT_FOUND};
use alloc::borrow::ToOwned as _;
use alloc::vec::Vec;
use core::ffi::CStr;
use object::elf::STT_FUNC;
use object::read::elf::ElfFile;
use object::{Object as _, ObjectSymbol, ReadCache, SymbolFlags};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;

/// The loaded module of a name: its path, its file's name, or the name that it has for the loader.
pub(super) fn called(name: &CStr) -> Option<Module> {
    let name = name.to_bytes();
    let mut modules = loaded::modules();
    modules.retain(|module| module.kind != Kind::Kernel);
    let position = modules.iter().position(|module| match name.contains(&b'/') {
        true => path(module) == name,
        false => path(module).rsplit(|&byte| byte == b'/').next() == Some(name),
    });
    let by_soname =
        || modules.iter().position(|module| soname(module).is_some_and(|(_, soname)| soname == name));
    let position = position.or_else(by_soname)?;
    Some(modules.swap_remove(position))
}

/// The path of a module's file.
pub(super) fn path(module: &Module) -> Vec<u8> {
    match module.kind {
        Kind::Program => {
            let link = std::fs::read_link("/proc/self/exe").unwrap_or_default();
            link.into_os_string().as_bytes().to_owned()
        }
        _ => module.path.to_bytes().to_owned(),
    }
}

/// The name that a module has for those that need it, and where it is.
pub(super) fn soname(module: &Module) -> Option<(u64, Vec<u8>)> {
    let image = Image::open(module.base).ok()?;
    let dynamic = image.dynamic().ok()?;
    let strings = super::symbols::Strings::of(&image, &dynamic).ok()?;
    let (at, name) = strings.get(dynamic.get(object::elf::DT_SONAME)?).ok()?;
    Some((at, name.to_bytes().to_owned()))
}

/// The module of a name, which is loaded if it is not, and stays then.
fn module_called(name: &CStr) -> Option<Module> {
    if let Some(module) = called(name) {
        return Some(module);
    }
    let handle = Handle::load(name)?;
    let module = loaded::containing(handle.address()?)?;
    handle.keep();
    Some(module)
}

/// Where a module, which is loaded if it is not, has something under a name: for others, or as a function of its own that its file still
/// has the name of.
pub(in super::super) fn find(module: &CStr, function: &CStr) -> Result<u64, Long> {
    module_called(module).ok_or(MOD_NOT_FOUND).and_then(|module| find_in(&module, function))
}

fn find_in(module: &Module, name: &CStr) -> Result<u64, Long> {
    let image = Image::open(module.base)?;
    // A program that is linked statically has no table.
    let exported = Exports::of(&image, Some(module)).and_then(|exports| exports.find(name));
    match exported {
        Ok(Some(place)) => Ok(place),
        _ => in_file(module, name).ok_or(PROC_NOT_FOUND),
    }
}

/// The function of a name in the symbol table of the module's file. None if there are several: which one is meant nobody says.
fn in_file(module: &Module, name: &CStr) -> Option<u64> {
    let cache = ReadCache::new(file_of(module)?);
    let elf = ElfFile::<Elf, _>::parse(&cache).ok()?;
    let functions = elf.symbols().filter(|symbol| is_function(symbol, name));
    let mut places: Vec<u64> = functions.map(|symbol| symbol.address()).collect();
    places.sort_unstable();
    places.dedup();
    match *places {
        [place] => Some(add(module.bias, place)),
        _ => None,
    }
}

fn is_function<'data>(symbol: &impl ObjectSymbol<'data>, name: &CStr) -> bool {
    let SymbolFlags::Elf { st_info, .. } = symbol.flags() else { return false };
    st_info.st_type() == STT_FUNC && symbol.is_definition() && symbol.name_bytes() == Ok(name.to_bytes())
}

/// The file that a module was loaded from, if it is still there under its path.
fn file_of(module: &Module) -> Option<File> {
    let maps = std::fs::read("/proc/thread-self/maps").ok()?;
    let start = alloc::format!("{:x}-", module.base);
    // 7f3c2a1c9000-7f3c2a31f000 r--p 00000000 fe:01 1835129                    /usr/lib/libc.so.6
    let is_it = |line: &&[u8]| line.starts_with(start.as_bytes());
    let line = maps.split(|&byte| byte == b'\n').find(is_it)?;
    let mut words = line.splitn(6, |&byte| byte == b' ');
    let device = core::str::from_utf8(words.nth(3)?).ok()?;
    let inode: u64 = core::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let (major, minor) = device.split_once(':')?;
    let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let file = File::open(OsStr::from_bytes(words.next()?.trim_ascii_start())).ok()?;
    let about = file.metadata().ok()?;
    let its_device = (libc::major(about.dev()), libc::minor(about.dev()));
    ((its_device, about.ino()) == (device, inode)).then_some(file)
}
