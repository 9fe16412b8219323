//! Whether the pages can be exchanged, found out before anything changes.

use super::scratch::pointer;
use super::{FRESH, MAX_MAPPINGS, SPARE_MAPPINGS};
use crate::Error;
use crate::host::linux_process::maps::{Mapping, Mappings};
use crate::host::linux_process::{file, refused};
use rustix::io::Errno;
use rustix::mm::{MprotectFlags, ProtFlags, mprotect};
use std::sync::Mutex;
use std::time::Instant;

/// The protection of pages, and which mapping has their file: none if it is not one file.
pub(super) fn kind(mappings: &Mappings, start: u64, end: u64) -> Result<(ProtFlags, Option<usize>), Error> {
    let position = mappings.position(start).ok_or(Error::Unreadable { address: start })?;
    let mut found: Option<ProtFlags> = None;
    let mut file = Some(position);
    let mut at = start;
    for (index, mapping) in mappings.within(start, end).enumerate() {
        if mapping.start > at {
            break;
        }
        let protection = protection(mapping).ok_or(Error::NotExchangeable { address: at })?;
        if found.is_some_and(|found| found != protection) {
            return Err(Error::NotExchangeable { address: at });
        }
        found = Some(protection);
        if !same_file(mappings, file, Some(position + index)) {
            file = None;
        }
        at = mapping.end;
    }
    if at < end {
        return Err(Error::Unreadable { address: at });
    }
    Ok((found.unwrap_or(ProtFlags::empty()), file))
}

/// Whether two mappings, given by their positions, show one file with the same distance between address and offset.
pub(super) fn same_file(mappings: &Mappings, one: Option<usize>, other: Option<usize>) -> bool {
    let get = |position: Option<usize>| position.and_then(|position| mappings.get(position));
    let (Some(one), Some(other)) = (get(one), get(other)) else { return one == other };
    let bias = |mapping: &Mapping| mapping.start.wrapping_sub(mapping.offset);
    one.inode != 0 && one.is_of_the_same_file(other) && bias(one) == bias(other)
}

/// The protection of a mapping that can be exchanged; none if it cannot.
fn protection(mapping: &Mapping) -> Option<ProtFlags> {
    // Names in brackets are the kernel's own pages and stacks; but anonymous memory may have been given one by its owner.
    let named = [&b"["[..], b"anon_inode:", b"/anon_hugepage"];
    let named = named.iter().any(|name| mapping.path.starts_with(name));
    let anonymous = mapping.path.starts_with(b"[anon:") || mapping.path == b"[heap]";
    // What is written there while the page is copied would be lost.
    if mapping.shared || mapping.writable || named && !anonymous {
        return None;
    }
    let mut protection = ProtFlags::empty();
    protection.set(ProtFlags::READ, mapping.readable);
    protection.set(ProtFlags::EXEC, mapping.executable);
    Some(protection)
}

/// A sealed mapping (mseal(2)) refuses even to be given the protection that it has. Only what lies between `start` and `end`
/// is asked for: who gets what it has is not split.
pub(super) fn is_unsealed(mapping: &Mapping, start: u64, end: u64) -> Result<(), Error> {
    let mut protection = MprotectFlags::empty();
    protection.set(MprotectFlags::READ, mapping.readable);
    protection.set(MprotectFlags::EXEC, mapping.executable);
    let start = start.max(mapping.start);
    let len = usize::try_from(end.min(mapping.end).wrapping_sub(start)).unwrap_or_default();
    // SAFETY: this is the protection that it has, so nothing changes; if it was unmapped meanwhile it is an error.
    unsafe { mprotect(pointer(start), len, protection) }.map_err(|error| failure(error, start))
}

/// How many mappings there were, and when.
#[derive(Clone, Copy, Debug)]
struct Counted {
    mappings: usize,
    at: Instant,
}

/// Nobody waits for the lock: in the child of a `fork` its holder may be missing.
static COUNTED: Mutex<Option<Counted>> = Mutex::new(None);

/// Whether so many groups may become mappings of their own, and so what follows each. The mappings are counted, unless
/// that was done a moment ago, and only half of what is allowed was there: nobody makes so many so soon.
pub(super) fn has_room(count: Option<usize>, groups: usize) -> Result<(), Error> {
    let most = file::contents(c"/proc/sys/vm/max_map_count").ok();
    let most = most.as_deref().and_then(|text| core::str::from_utf8(text).ok()?.trim().parse().ok());
    let most = most.unwrap_or(MAX_MAPPINGS);
    let needed = groups.saturating_mul(2).saturating_add(SPARE_MAPPINGS);
    let mut counted = COUNTED.try_lock().ok();
    if count.is_none()
        && let Some(Some(counted)) = counted.as_deref_mut()
        && counted.at.elapsed() < FRESH
        && counted.mappings.saturating_add(needed) <= most / 2
    {
        counted.mappings = counted.mappings.saturating_add(groups.saturating_mul(2));
        return Ok(());
    }
    let at = Instant::now();
    let mappings = match count {
        Some(count) => count,
        None => Mappings::read()?.iter().count(),
    };
    if let Some(counted) = &mut counted {
        **counted = Some(Counted { mappings: mappings.saturating_add(groups.saturating_mul(2)), at });
    }
    if mappings.saturating_add(needed) > most { Err(Error::OutOfMemory) } else { Ok(()) }
}

/// What the kernel's error means for the page at `address`.
pub(super) fn failure(error: Errno, address: u64) -> Error {
    match error {
        Errno::NOMEM | Errno::AGAIN => Error::OutOfMemory,
        Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::FAULT => Error::NotExchangeable { address },
        _ => refused(error),
    }
}
