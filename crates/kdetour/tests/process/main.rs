//! kdetour in a process of its own: every test detours functions of this very program, or of libc.
//!
//! What is not compiled for Windows asks Linux: files below `/proc`, signals, ELF's tables, its unwinder; or detours inside functions, which
//! Windows does not have yet. The suite `windows` names these.
#![cfg(all(
    any(all(feature = "linux-process", target_os = "linux"), all(feature = "windows-process", windows)),
    any(target_arch = "x86_64", target_arch = "x86")
))]

#[cfg(test)]
mod again;
#[cfg(test)]
mod beside;
#[cfg(test)]
#[cfg(not(windows))]
mod cold;
#[cfg(test)]
#[cfg(not(windows))]
mod host;
#[cfg(test)]
#[cfg(not(windows))]
mod imports;
#[cfg(test)]
#[cfg(not(windows))]
mod left;
#[cfg(test)]
mod lent;
#[cfg(test)]
mod life;
#[cfg(test)]
mod methods;
#[cfg(test)]
#[cfg(not(windows))]
mod mid;
#[cfg(test)]
#[cfg(windows)]
mod modules;
#[cfg(test)]
mod pe;
#[cfg(test)]
mod pointers;
#[cfg(test)]
mod prologues;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod sets;
#[cfg(test)]
#[cfg(not(windows))]
mod stripped;
#[cfg(test)]
mod support;
#[cfg(test)]
#[cfg(not(windows))]
mod unwind;
