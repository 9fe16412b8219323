//! Where a thread that meets a breakpoint goes on.
//!
//! The table is read in a trap handler: at any moment, with interrupts off, on any processor. So it is never
//! changed in place: a new one is built, sorted and published by one store, and the old one is kept until no
//! handler can still be reading it. A boundary stays in the table until its detour has been drained, since
//! hits can arrive late.
//!
//! Where a drain cannot see who has trapped and has not come to the handler yet, a boundary is never forgotten: when nothing
//! else is to be said of it, whoever met it goes on there, in front of the instruction that has come back.

use crate::Error;
use crate::host::Quiesce;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

/// A breakpoint's address, and where a thread that meets it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// Where the INT3 is, or was.
    pub at: u64,
    /// Where the thread goes on.
    pub resume: u64,
    /// Whether the detour is attached. Where one address is named twice, by detours that are being drained and by a
    /// new one, the attached one counts, and else the youngest: the others may be reclaimed first.
    pub attached: bool,
    /// The greater, the younger.
    pub rank: u64,
}

/// The boundaries that are answered. One per environment, for ever.
#[derive(Debug, Default)]
pub struct Breakpoints {
    table: AtomicPtr<Vec<Boundary>>,
    /// Whether none is forgotten.
    remembering: bool,
}

/// A table that handlers may still be reading.
#[derive(Debug)]
#[must_use = "it is to be freed by `free`"]
pub struct Retired(*mut Vec<Boundary>);

// SAFETY: the pointer is the only owner of a table that nobody writes any more.
unsafe impl Send for Retired {}

impl Breakpoints {
    /// No boundaries.
    pub const fn new() -> Self {
        Self { table: AtomicPtr::new(ptr::null_mut()), remembering: false }
    }

    /// No boundaries yet, and every one that will have been answered is answered for ever: by its own address, once nothing else is
    /// known of it. The trap handler then makes sure that no INT3 is there any more.
    pub const fn remembering() -> Self {
        Self { table: AtomicPtr::new(ptr::null_mut()), remembering: true }
    }

    /// Whether none is forgotten.
    #[cfg(any(feature = "linux-process", all(windows, feature = "windows-process")))]
    pub(crate) const fn is_remembering(&self) -> bool {
        self.remembering
    }

    /// Where a thread goes on that has met a breakpoint at `at`; none if it is not ours. Legal in any context:
    /// reads memory, and nothing else.
    pub fn resume(&self, at: u64) -> Option<u64> {
        let table = self.table.load(Ordering::SeqCst);
        // SAFETY: a table is freed only by `free`, which waits for all handlers that could have loaded it; until
        // then it is not changed.
        let table = unsafe { table.as_ref() }?;
        let index = table.binary_search_by_key(&at, |boundary| boundary.at).ok()?;
        table.get(index).map(|boundary| boundary.resume)
    }

    /// Publishes a table in place of the present one, and gives that back; none if the answers are the same. One caller
    /// at a time.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; the present table stays.
    pub fn publish(&self, mut boundaries: Vec<Boundary>) -> Result<Option<Retired>, Error> {
        // SAFETY: a table is not changed, and freed only after it was replaced here.
        let present = unsafe { self.table.load(Ordering::SeqCst).as_ref() }.map_or(&[][..], Vec::as_slice);
        if self.remembering {
            boundaries.try_reserve(present.len())?;
            // Whatever else is said of the address comes in front of this.
            let gone =
                |&Boundary { at, .. }: &Boundary| Boundary { at, resume: at, attached: false, rank: 0 };
            boundaries.extend(present.iter().map(gone));
        }
        boundaries.sort_unstable_by_key(|boundary| {
            (boundary.at, !boundary.attached, boundary.resume == boundary.at, Reverse(boundary.rank))
        });
        boundaries.dedup_by_key(|boundary| boundary.at);
        let same = |(one, other): (&Boundary, &Boundary)| (one.at, one.resume) == (other.at, other.resume);
        if present.len() == boundaries.len() && present.iter().zip(&boundaries).all(same) {
            return Ok(None);
        }
        let mut holder = Vec::new();
        holder.try_reserve_exact(1)?;
        holder.push(boundaries);
        let holder: Box<[Vec<Boundary>]> = holder.into_boxed_slice();
        let table = Box::into_raw(holder).cast::<Vec<Boundary>>();
        Ok(Some(Retired(self.table.swap(table, Ordering::SeqCst))))
    }
}

/// Frees tables once nobody can be reading them any more. Those that cannot be freed stay.
///
/// # Errors
/// What the quiesce found; all tables stay then.
pub fn free<H: Quiesce>(tables: &mut Vec<Retired>, host: &H) -> Result<(), Error> {
    host.quiesce(&[])?;
    for Retired(table) in tables.drain(..) {
        if !table.is_null() {
            // SAFETY: made by `Box::into_raw` from a boxed slice of length 1 in `publish`, which gave it away only
            // once. It was replaced before the quiesce, and a trap handler that had loaded it has finished since.
            drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(table, 1)) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::simulated::{Faults, Machine};
    use alloc::vec;

    #[test]
    fn one_that_is_remembered_leads_to_where_it_was() {
        let breakpoints = Breakpoints::remembering();
        let boundary = |at, resume, attached| Boundary { at, resume, attached, rank: 0 };
        let mut old = Vec::new();
        old.extend(breakpoints.publish(vec![boundary(7, 1, true), boundary(3, 2, false)]).unwrap());
        assert_eq!((breakpoints.resume(7), breakpoints.resume(3)), (Some(1), Some(2)));
        old.extend(breakpoints.publish(vec![boundary(3, 2, false)]).unwrap());
        assert_eq!((breakpoints.resume(7), breakpoints.resume(3)), (Some(7), Some(2)));
        assert!(breakpoints.publish(vec![boundary(3, 2, false)]).unwrap().is_none(), "the same answers");
        old.extend(breakpoints.publish(Vec::new()).unwrap());
        assert_eq!((breakpoints.resume(7), breakpoints.resume(3)), (Some(7), Some(3)));
        // It is attached again; or drains again.
        old.extend(breakpoints.publish(vec![boundary(7, 9, true), boundary(3, 5, false)]).unwrap());
        assert_eq!((breakpoints.resume(7), breakpoints.resume(3)), (Some(9), Some(5)));
        assert_eq!(breakpoints.resume(5), None);
        old.extend(breakpoints.publish(Vec::new()).unwrap());
        assert_eq!(free(&mut old, &Machine::new(&[])), Ok(()));
    }

    #[test]
    fn of_several_answers_the_attached_and_then_the_youngest_counts() {
        let breakpoints = Breakpoints::new();
        assert_eq!(breakpoints.resume(7), None);
        let table = vec![
            Boundary { at: 7, resume: 1, attached: false, rank: 4 },
            Boundary { at: 3, resume: 2, attached: false, rank: 1 },
            Boundary { at: 3, resume: 4, attached: false, rank: 2 },
            Boundary { at: 7, resume: 3, attached: true, rank: 3 },
        ];
        let old = breakpoints.publish(table.clone()).unwrap().unwrap();
        assert!(breakpoints.publish(table).unwrap().is_none(), "the same answers");
        assert_eq!(breakpoints.resume(7), Some(3));
        assert_eq!(breakpoints.resume(3), Some(4));
        assert_eq!(breakpoints.resume(5), None);
        assert!(old.0.is_null());
        let old = breakpoints.publish(Vec::new()).unwrap().unwrap();
        assert_eq!(breakpoints.resume(7), None);
        let machine = Machine::new(&[]);
        let mut old = vec![old];
        machine.fail(Faults { quiesce: true, ..Faults::default() });
        assert_eq!(free(&mut old, &machine), Err(Error::ThreadNotReached { thread: 1 }));
        assert_eq!(old.len(), 1);
        machine.fail(Faults::default());
        assert_eq!(free(&mut old, &machine), Ok(()));
        assert!(old.is_empty());
    }
}
