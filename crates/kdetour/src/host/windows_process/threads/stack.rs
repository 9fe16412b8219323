//! What lies on a thread's stack.

use super::super::arch::WORD;
use super::super::nt::Nt;
use super::super::regions::Region;
use super::Seen;
use crate::Error;
use std::vec::Vec;

/// So many bytes are read at a time: all of most stacks. A system may ask another process for each read (Wine), while a thread is suspended.
const AT_A_TIME: usize = 64 << 10;

/// Where a part of a stack is read to. Made before anybody is suspended; and not on the stack of whoever looks, where what others have called would
/// be found by the next look.
pub(super) struct Room(Vec<u8>);

impl Room {
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn new() -> Result<Self, Error> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(AT_A_TIME)?;
        bytes.resize(AT_A_TIME, 0);
        Ok(Self(bytes))
    }
}

/// The part of a stack that is in use: from a stack pointer to the end of what was allocated with that. It makes no difference whose it is: the
/// system's for a thread, or one that the program has made for a fiber.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack {
    sp: u64,
    region: Region,
}

impl Stack {
    /// None if nothing is there.
    pub(super) fn of(nt: &Nt, sp: u64) -> Option<Self> {
        Some(Self { sp, region: Region::of(nt, sp).filter(Region::is_there)? })
    }

    /// Looks for a word. What is sought is asked with where it lies, and with the word.
    pub(super) fn search(&self, nt: &Nt, room: &mut Room, sought: impl Fn(u64, u64) -> bool) -> Seen {
        let mut at = self.sp & !(WORD as u64 - 1);
        let mut region = self.region;
        loop {
            match search(nt, at, region.end, room, &sought) {
                Seen::Clean => {}
                other => return other,
            }
            // Somebody may have given pages in the middle another protection.
            loop {
                at = region.end;
                match Region::of(nt, at) {
                    Some(next) if next.allocation == self.region.allocation => region = next,
                    _ => return Seen::Clean,
                }
                if region.is_there() {
                    break;
                }
            }
        }
    }
}

fn search(nt: &Nt, mut at: u64, end: u64, room: &mut Room, sought: impl Fn(u64, u64) -> bool) -> Seen {
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(usize::MAX);
        let Some(part) = room.0.get_mut(..left.min(AT_A_TIME)) else { return Seen::Unclear };
        if nt.read(at, part).is_err() {
            return Seen::Unclear;
        }
        let words = part.as_chunks::<WORD>().0.iter().map(|&word| widen(word));
        let mut placed = (at..).step_by(WORD).zip(words);
        if let Some((_, found)) = placed.find(|&(place, word)| sought(place, word)) {
            return Seen::Inside(found);
        }
        at = at.saturating_add(part.len() as u64);
    }
    Seen::Clean
}

fn widen(word: [u8; WORD]) -> u64 {
    crate::address::widen(usize::from_le_bytes(word))
}

/// Whether the bytes in front of an address may be a call: else no return address leads there.
pub(super) fn follows_call(nt: &Nt, address: u64) -> bool {
    // The longest call has an FF, a ModRM byte, a SIB byte and four bytes of displacement.
    let mut bytes = [0; 7];
    if nt.read(address.wrapping_sub(7), &mut bytes).is_err() {
        return false;
    }
    let indirect = |opcode, modrm: u8| opcode == 0xff && modrm & 0x38 == 0x10;
    let [a, b, c, d, e, f, g] = bytes;
    c == 0xe8 || indirect(a, b) || indirect(b, c) || indirect(d, e) || indirect(e, f) || indirect(f, g)
}
