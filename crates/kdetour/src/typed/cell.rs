//! Where the originals of detours are kept.

use crate::AtomicAddress;
use core::sync::atomic::Ordering;
use std::boxed::Box;
use std::sync::{Mutex, PoisonError};
use std::vec::Vec;

/// The address of an original. A session writes it for as long as the detour exists, which may be longer than
/// whoever attached it: so it lives for ever, and is used again.
pub(super) type Cell = &'static AtomicAddress;

static FREE: Mutex<Vec<Cell>> = Mutex::new(Vec::new());

/// A cell that nobody uses.
pub(super) fn new() -> Cell {
    let free = FREE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    free.unwrap_or_else(|| Box::leak(Box::new(AtomicAddress::new(0))))
}

/// Gives a cell back that no detour and nobody else uses any more.
pub(super) fn give_back(cell: Cell) {
    cell.store(0, Ordering::Relaxed);
    FREE.lock().unwrap_or_else(PoisonError::into_inner).push(cell);
}
