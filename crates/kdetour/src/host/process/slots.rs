//! The memory for slots, as a process's detours take it.

use super::Arena;
use crate::host::Span;
use crate::slots::SlotMemory;
use alloc::sync::Arc;
use kdetour_plan::{Reach, Relays};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The memory for slots, as a process's detours take it.
#[derive(Debug)]
pub struct ProcessSlots(pub(in crate::host) Arc<Mutex<Arena>>);

impl SlotMemory for ProcessSlots {
    fn near(&mut self, len: usize, reach: Reach) -> Option<Span> {
        lock(&self.0).near(len, reach)
    }

    fn at(&mut self, len: usize, relays: Relays, reach: Reach) -> Option<Span> {
        lock(&self.0).at(len, relays, reach)
    }

    fn trim(&mut self, slot: Span, len: usize) -> Span {
        lock(&self.0).trim(slot, len)
    }

    fn free(&mut self, slot: Span) {
        lock(&self.0).free(slot);
    }
}

/// Locks, whoever panicked meanwhile: what these locks guard is valid after every single statement.
pub(in crate::host) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
