//! What the C half lists in debugfs beside its own counters: what is in use, and why surveys refused.
//!
//! Called with the module's mutex held, as everything in `linux_kernel`.

use crate::linux_kernel::with;
use crate::text::put_text;
use alloc::vec::Vec;
use core::cell::UnsafeCell;

/// How often each reason to refuse was given.
struct Refusals(UnsafeCell<Vec<(&'static str, u64)>>);

// SAFETY: every access is from a function of this file, and those are called with the module's mutex held.
unsafe impl Sync for Refusals {}

static REFUSALS: Refusals = Refusals(UnsafeCell::new(Vec::new()));

/// `struct kd_usage` of `kernel/linux/rust.h`.
#[repr(C)]
#[derive(Debug)]
pub struct Usage {
    attached: u64,
    draining: u64,
    slot_bytes: u64,
}

/// `struct kd_refusal`.
#[repr(C)]
#[derive(Debug)]
pub struct Refused {
    count: u64,
    name: [u8; 24],
}

/// Counts a refusal by its name. Without memory for a name that is new it is not counted.
///
/// # Safety
/// The mutex is held.
pub(crate) unsafe fn count_refusal(name: &'static str) {
    // SAFETY: the mutex makes this the only access.
    let refusals = unsafe { &mut *REFUSALS.0.get() };
    if let Some((_, count)) = refusals.iter_mut().find(|(known, _)| *known == name) {
        *count += 1;
    } else if refusals.try_reserve(1).is_ok() {
        refusals.push((name, 1));
    }
}

/// Gives the memory back.
///
/// # Safety
/// The mutex is held.
pub(crate) unsafe fn forget_refusals() {
    // SAFETY: the mutex makes this the only access.
    drop(core::mem::take(unsafe { &mut *REFUSALS.0.get() }));
}

/// The reason at `position`, and how often it was given; false if there are fewer.
///
/// # Safety
/// `refused` is a writable `struct kd_refusal`; the mutex is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_refusal(position: usize, refused: *mut Refused) -> bool {
    // SAFETY: the mutex makes this the only access.
    let refusals = unsafe { &*REFUSALS.0.get() };
    let Some(&(name, count)) = refusals.get(position) else { return false };
    let mut described = Refused { count, name: [0; 24] };
    put_text(&mut described.name, name);
    // SAFETY: by the caller's word.
    unsafe { refused.write(described) };
    true
}

/// What is in use now.
///
/// # Safety
/// `usage` is a writable `struct kd_usage`; the mutex is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_usage(usage: *mut Usage) {
    // SAFETY: the mutex is held.
    let found = unsafe {
        with(|kdetour| {
            let (all, draining) = (kdetour.len(), kdetour.draining());
            Usage {
                attached: all.saturating_sub(draining) as u64,
                draining: draining as u64,
                slot_bytes: kdetour.slots().bytes_in_use() as u64,
            }
        })
    };
    if let Some(found) = found {
        // SAFETY: by the caller's word.
        unsafe { usage.write(found) };
    }
}
