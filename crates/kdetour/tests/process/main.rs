//! kdetour in a process of its own: every test detours functions of this very program, or of libc.
#![cfg(all(
    feature = "linux-process",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "x86")
))]

#[cfg(test)]
mod again;
#[cfg(test)]
mod beside;
#[cfg(test)]
mod host;
#[cfg(test)]
mod imports;
#[cfg(test)]
mod lent;
#[cfg(test)]
mod life;
#[cfg(test)]
mod methods;
#[cfg(test)]
mod mid;
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
mod stripped;
#[cfg(test)]
mod support;
#[cfg(test)]
mod unwind;
