//! kdetour in a Windows process of its own: every test detours functions of this very program, or of the system's libraries.
#![cfg(all(feature = "windows-process", windows, any(target_arch = "x86_64", target_arch = "x86")))]

#[cfg(test)]
#[cfg(target_arch = "x86")]
mod again;
#[cfg(test)]
mod beside;
#[cfg(test)]
#[cfg(target_arch = "x86")]
mod conventions;
#[cfg(test)]
mod exchange;
#[cfg(test)]
mod exports;
#[cfg(test)]
mod float;
#[cfg(test)]
#[cfg(target_arch = "x86")]
mod handlers;
#[cfg(test)]
mod late;
#[cfg(test)]
#[cfg(target_arch = "x86")]
mod panics;
#[cfg(test)]
mod parked;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod support;
#[cfg(test)]
mod thunks;
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod unwind;
#[cfg(test)]
mod waited;
