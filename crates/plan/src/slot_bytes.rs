//! The bytes of a slot, as they are written one after the other.

use crate::plan::MAX_SLOT;
use crate::refusal::Refusal;
use arrayvec::ArrayVec;

/// Bytes written one after the other into a slot.
#[derive(Clone, Debug)]
pub(crate) struct SlotBytes(ArrayVec<u8, MAX_SLOT>);

impl SlotBytes {
    pub(crate) const fn none() -> Self {
        Self(ArrayVec::new_const())
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let needed = self.0.len() + bytes.len();
        self.0.try_extend_from_slice(bytes).map_err(|_| Refusal::SlotTooSmall { needed, capacity: MAX_SLOT })
    }

    pub(crate) fn change(&mut self, at: usize, change: impl Fn(u8) -> u8) {
        if let Some(byte) = self.0.get_mut(at) {
            *byte = change(*byte);
        }
    }
}
