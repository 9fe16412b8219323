//! What lies on a thread's stack: every word from the stack pointer, and what the ABI allows a function to keep below
//! it, to the end of the mapping.
//!
//! A signal handler may run on an alternate stack. The kernel's frame there says where the thread was interrupted:
//! such frames are recognised, and the stack that they lead to is searched too. They also say where an alternate stack
//! ends, which may lie in the middle of a heap.
//!
//! glibc puts a thread's control block on top of its stack, and the kernel joins the stack's mapping with what happens to
//! lie above. Where that block is recognised the stack ends: what follows is other people's data, and might name the
//! places that are looked for.

use super::super::arch::{self, RED_ZONE};
use super::super::maps::Mappings;
use super::raw::{self, value};
use crate::Error;
use crate::address::{narrow, widen};
use core::mem::MaybeUninit;
use std::boxed::Box;
use std::vec::Vec;

const WORD: u64 = arch::WORD as u64;
/// How many stacks may lead to one another.
const STACKS: usize = 8;

/// What is mapped, for finding where a stack ends.
#[derive(Debug)]
pub(super) struct Regions(Box<[Region]>);

#[derive(Clone, Copy, Debug)]
struct Region {
    start: u64,
    end: u64,
    /// Where the last of the mappings of the same name ends that follow without a gap: locking or advising part of
    /// a stack splits its mapping.
    reach: u64,
}

impl Regions {
    pub(super) fn read() -> Result<Self, Error> {
        let mappings = Mappings::read()?;
        let mut regions: Vec<Region> = Vec::new();
        regions.try_reserve_exact(mappings.iter().count())?;
        let mut next = mappings.iter().skip(1);
        for mapping in mappings.iter() {
            let (start, end) = (mapping.start, mapping.end);
            let goes_on = next.next().is_some_and(|next| next.start == end && next.path == mapping.path);
            regions.push(Region { start, end, reach: if goes_on { u64::MAX } else { end } });
        }
        let mut reach = 0;
        for region in regions.iter_mut().rev() {
            if region.reach == u64::MAX {
                region.reach = reach;
            }
            reach = region.reach;
        }
        Ok(Self(regions.into_boxed_slice()))
    }

    fn of(&self, sp: u64) -> Option<&Region> {
        let index = self.0.partition_point(|region| region.end <= sp);
        self.0.get(index).filter(|region| region.start <= sp)
    }

    /// Where the mapping ends that holds a stack pointer; 0 if there is none.
    pub(super) fn end(&self, sp: u64) -> u64 {
        self.of(sp).map_or(0, |region| region.end)
    }
}

/// A stack to be searched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack {
    /// Whose it is.
    pub(super) thread: i32,
    pub(super) sp: u64,
    /// First and one-past-last address of the thread's alternate stack; both 0 if that is not known.
    pub(super) alternate: (u64, u64),
}

/// What was found on a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing that was looked for.
    Clean,
    /// This word.
    Word(u64),
    /// It could not be read to its end.
    Unclear,
}

/// Searches a stack, and those that it leads to, `N` words at a time: a power of two, not more than a page. `sought` is told a
/// word, and whether it lies below the stack pointer.
pub(super) fn search<const N: usize>(
    regions: &Regions,
    stack: Stack,
    sought: impl Fn(u64, bool) -> bool + Copy,
) -> Seen {
    let mut stack = stack;
    let mut left = STACKS;
    while left > 0 {
        left = left.wrapping_sub(1);
        match search_one::<N>(regions, stack, sought) {
            Ok(Some(outer)) => stack.sp = outer,
            Ok(None) => return Seen::Clean,
            Err(seen) => return seen,
        }
    }
    Seen::Unclear
}

/// Searches one stack; says where the thread was interrupted on another one.
fn search_one<const N: usize>(
    regions: &Regions,
    stack: Stack,
    sought: impl Fn(u64, bool) -> bool,
) -> Result<Option<u64>, Seen> {
    const {
        assert!(N.is_power_of_two() && N <= 512, "a page is readable as a whole, or not at all");
    }
    let Some(region) = regions.of(stack.sp) else { return Err(Seen::Unclear) };
    let mut end = region.reach;
    if stack.alternate.0 <= stack.sp && stack.sp < stack.alternate.1 {
        end = end.min(stack.alternate.1);
    }
    let mut outer = None;
    let mut buffer = MaybeUninit::<[usize; N]>::uninit();
    let mut at = stack.sp.saturating_sub(RED_ZONE).max(region.start) & !(WORD - 1);
    while at < end {
        // Up to the next multiple of the buffer's size: never across the border of a page.
        let size = const { N as u64 * WORD };
        let len = size.wrapping_sub(at & size.wrapping_sub(1));
        let chunk = at.wrapping_add(len);
        // SAFETY: `len` is at most the size of the buffer.
        if !unsafe { raw::read(at, buffer.as_mut_ptr().cast(), narrow(len)) } {
            // Behind the mapping a guard page may follow.
            return if at < region.end { Err(Seen::Unclear) } else { Ok(outer) };
        }
        let mut word = buffer.as_ptr().cast::<usize>();
        while at < chunk && at < end {
            // SAFETY: `len` bytes have been read into the buffer, and `at` is as far before `chunk` as this is before
            // their end.
            let found = unsafe { *word };
            if sought(widen(found), at < stack.sp) {
                return Err(Seen::Word(widen(found)));
            }
            if widen(found) == at && is_control_block(at, stack.thread) {
                return Ok(outer);
            }
            if let Some(frame) = arch::frame(found, at, word_at) {
                if frame.alternate.0 <= at && at < frame.alternate.1 {
                    end = end.min(frame.alternate.1);
                }
                // A thread that keeps something else in its stack pointer has no stack to be searched.
                if (frame.sp < at || end <= frame.sp) && regions.of(frame.sp).is_some() {
                    outer = Some(frame.sp);
                }
            }
            at = at.wrapping_add(WORD);
            word = word.wrapping_add(1);
        }
    }
    Ok(outer)
}

/// Whether glibc's control block of this thread is here: `tcb` and `self`, which both are its own address, and `tid`.
fn is_control_block(address: u64, thread: i32) -> bool {
    word_at(address.wrapping_add(arch::CONTROL_SELF)) == Some(address)
        && value::<i32>(address.wrapping_add(arch::CONTROL_THREAD)) == Some(thread)
}

fn word_at(address: u64) -> Option<u64> {
    value::<usize>(address).map(widen)
}

/// Whether what lies before an address ends in a call: whether it may be a return address.
pub(super) fn follows_call(address: u64) -> bool {
    // The longest call has an FF, a ModRM byte, a SIB byte and four bytes of displacement.
    let Some(bytes) = value::<[u8; 7]>(address.wrapping_sub(7)) else { return false };
    let indirect = |opcode, modrm: u8| opcode == 0xff && modrm & 0x38 == 0x10;
    let [a, b, c, d, e, f, g] = bytes;
    c == 0xe8 || indirect(a, b) || indirect(b, c) || indirect(d, e) || indirect(e, f) || indirect(f, g)
}
