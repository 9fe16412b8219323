//! A model of the commits, explored exhaustively.
//!
//! What a commit does comes from the commit itself, run on the [simulated](super::simulated) machine: its list of
//! writes, exchanges, syncs and quiesces. What the rest of the world does is the model:
//!
//! * between any two steps a thread may call the target, go on by one instruction, or stay where it is for ever;
//! * a processor that has not synchronised since a byte was written may see any value that the byte had since, for
//!   each byte by itself: torn writes and stale fetches are both in that;
//! * of what was exchanged at one moment it sees, whenever it fetches an instruction, all old or all new bytes; and
//!   who has fetched new bytes reads new data;
//! * a thread that met a breakpoint is answered at any time from then on, by the answers that are published then;
//! * a quiesce is over when no thread stands on one of its boundaries; a drain, when none is in the slot, in the cave, in
//!   the detour or about to be answered;
//! * while others are parked, a non-maskable interrupt may still call the target, with a fresh look at the memory;
//! * what was freed after it must not be run any more.
//!
//! A thread crashes when what it fetches is neither the instruction that was there nor the one that will be, or when
//! nobody answers its breakpoint. And when a commit has returned, a new call has to get where it should, without a
//! breakpoint. The
//! [tests](shown) show that no order of events leads astray, and that one does as soon as a step is left out.

mod scenario;
mod shown;

use super::change::INT3;
use super::simulated::Event;
use super::sites::{Site, T};
use kdetour_plan::Shape;
use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;
use std::vec::Vec;

/// One step, as the world sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Did(Event),
    /// From now on breakpoints are answered like this: where a thread goes on that met the one at an address.
    Answer(BTreeMap<u64, u64>),
    /// From now on every new call gets here: to a detour, or to [`ORIGINAL`].
    Expect(u64),
    /// Waits until nobody is in what will be freed.
    Drain,
    /// This detour is no more.
    FreeDetour(u64),
    /// The slot is no more, and nothing is answered.
    FreeSlot,
}

/// Where a call gets that is not detoured.
const ORIGINAL: u64 = 0;

/// A thread that runs the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thread {
    /// It has not called yet, or it is elsewhere.
    Outside,
    /// It stands here: on a boundary of the window, on the cave or on the relay.
    At(u64),
    /// It met the breakpoint here, and the handler has not looked yet.
    Trapped(u64),
    /// It stands on the copy of this displaced instruction.
    Copy(usize),
    /// It is in this detour.
    Detour(u64),
}

/// The memory as one processor may see it: for each byte every value that it may fetch.
type Image = BTreeMap<u64, Vec<u8>>;

/// Jumps, or the bytes of pointers, by where they are.
type Known = BTreeSet<(u64, Vec<u8>)>;

struct World {
    /// The displaced instructions: where each is, and its bytes.
    original: Vec<(u64, Vec<u8>)>,
    /// Where their copies are.
    copies: Vec<u64>,
    /// Whole jumps that are there at some time: in the window, in the cave, at the relay.
    jumps: Known,
    /// The pointers of those that have one.
    pointers: Known,
    detours: BTreeSet<u64>,
    relay: Option<u64>,
    /// Whether the patch itself is a breakpoint.
    breakpoint: bool,
    /// The memory before the first step.
    before: Image,
}

/// The memory, the answers, and what there still is.
struct Now {
    /// Oldest first. Before an exchange and after it are two.
    images: Vec<Image>,
    answers: BTreeMap<u64, u64>,
    freed: BTreeSet<u64>,
    slot_freed: bool,
    parked: bool,
}

/// What was fetched.
enum Fetched {
    Breakpoint,
    Original,
    JumpTo(u64),
}

impl World {
    /// The world of one site, whose patch becomes these one after the other.
    fn new(site: &Site, patches: &[Site]) -> Self {
        let (mut jumps, mut pointers) = (Known::new(), Known::new());
        let mut add = |at: u64, jump: &[u8]| {
            if let Some(pointer) = jump.strip_prefix(&[0xff, 0x25, 0, 0, 0, 0]) {
                pointers.insert((at + 6, pointer.to_vec()));
                jumps.insert((at, jump[..6].to_vec()));
            } else if jump != [INT3] {
                jumps.insert((at, jump.to_vec()));
            }
        };
        for Site { patch, .. } in patches {
            add(patch.address(), patch.new_bytes());
            let lead = patch.lead();
            add(lead.address, lead.bytes());
            if let Some(cave) = patch.cave() {
                add(cave.cave.address, &cave.new);
            }
        }
        let memory = site.memory.iter();
        let bytes =
            memory.flat_map(|(address, bytes)| (*address..).zip(bytes.iter().map(|byte| [*byte].to_vec())));
        // Of the slot only the relay is fetched from.
        let relay = site.patch.relay();
        let in_relay = |at: u64| relay.is_some_and(|relay| at.wrapping_sub(relay) < 14);
        let code = site.memory[0].0..site.memory[1].0 + site.memory[1].1.len() as u64;
        let bytes = bytes.filter(|(at, _)| code.contains(at) || in_relay(*at));
        // The copies of the boundaries are told by the patch; of those behind the window nobody asks.
        let copies = site.patch.boundaries().map(|boundary| boundary.address).collect();
        Self {
            original: site.instructions.clone(),
            copies,
            jumps,
            pointers,
            detours: patches.iter().map(|site| site.patch.detour()).collect(),
            relay,
            breakpoint: site.patch.shape() == Shape::Breakpoint,
            before: bytes.collect(),
        }
    }

    /// Follows every thread through all steps, or tells the way to a crash.
    fn explore(&self, steps: &[Step]) -> Result<(), String> {
        let mut now = Now {
            images: [self.before.clone()].to_vec(),
            answers: BTreeMap::new(),
            freed: BTreeSet::new(),
            slot_freed: false,
            parked: false,
        };
        let mut threads = BTreeSet::from([Thread::Outside]);
        self.run(&mut threads, &now).map_err(|crash| format!("before the first step: {crash}"))?;
        for (number, step) in steps.iter().enumerate() {
            let done = self.step(step, &mut now, &mut threads).and_then(|()| self.run(&mut threads, &now));
            done.map_err(|crash| format!("after step {number}, {step:x?}: {crash}"))?;
        }
        Ok(())
    }

    fn step(&self, step: &Step, now: &mut Now, threads: &mut BTreeSet<Thread>) -> Result<(), String> {
        match step {
            Step::Did(Event::Write { address, bytes }) if now.parked => {
                for (at, &byte) in (*address..).zip(bytes) {
                    now.images = [now.images.pop().unwrap()].to_vec();
                    now.images[0].insert(at, [byte].to_vec());
                    self.interrupt(now)?;
                }
            }
            Step::Did(event) => self.event(event, now, threads),
            Step::Answer(answers) => now.answers.clone_from(answers),
            Step::Expect(wanted) => {
                let reached = self.reached(now)?;
                if reached != BTreeSet::from([*wanted]) {
                    return Err(format!("calls get to {reached:x?} instead of {wanted:x}"));
                }
            }
            Step::Drain => threads.retain(|thread| match *thread {
                Thread::Outside => true,
                Thread::At(at) => self.original.iter().any(|(boundary, _)| *boundary == at),
                Thread::Trapped(_) | Thread::Copy(_) | Thread::Detour(_) => false,
            }),
            Step::FreeDetour(detour) => drop(now.freed.insert(*detour)),
            Step::FreeSlot => {
                now.slot_freed = true;
                now.answers.clear();
            }
        }
        Ok(())
    }

    fn event(&self, event: &Event, now: &mut Now, threads: &mut BTreeSet<Thread>) {
        match event {
            Event::Lock | Event::Unlock | Event::Prepare => {}
            Event::Write { address, bytes } => {
                for image in &mut now.images {
                    for (at, &byte) in (*address..).zip(bytes) {
                        image.get_mut(&at).unwrap().push(byte);
                    }
                }
            }
            Event::Exchange(writes) => {
                let mut image = now.images.last().unwrap().clone();
                for (address, bytes) in writes {
                    image.extend((*address..).zip(bytes.iter().map(|byte| [*byte].to_vec())));
                }
                now.images.push(image);
            }
            Event::Sync => now.sync(),
            Event::Quiesce(boundaries) => threads
                .retain(|thread| !matches!(thread, Thread::At(at) if boundaries.binary_search(at).is_ok())),
            Event::Park(moves) => {
                now.parked = true;
                now.sync();
                let moved = |thread: &Thread| {
                    let Thread::At(at) = *thread else { return *thread };
                    let one = moves.iter().find(|one| one.at == at);
                    one.map_or(*thread, |one| self.place(one.resume).unwrap())
                };
                *threads = threads.iter().map(moved).collect();
            }
            Event::Release => {
                now.parked = false;
                now.sync();
            }
        }
    }

    /// Adds every place that a thread can get to in this state of the world.
    fn run(&self, threads: &mut BTreeSet<Thread>, now: &Now) -> Result<(), String> {
        let mut todo: Vec<Thread> = threads.iter().copied().filter(|_| !now.parked).collect();
        while let Some(thread) = todo.pop() {
            for next in self.next(thread, now)? {
                if threads.insert(next) {
                    todo.push(next);
                }
            }
        }
        Ok(())
    }

    /// A call from where nobody can be parked.
    fn interrupt(&self, now: &Now) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        let mut todo = [Thread::At(T)].to_vec();
        while let Some(thread) = todo.pop() {
            for next in self.next(thread, now).map_err(|crash| format!("in an interrupt: {crash}"))? {
                if next != Thread::Outside && seen.insert(next) {
                    todo.push(next);
                }
            }
        }
        Ok(())
    }

    /// Everything that a call can get to.
    fn reached(&self, now: &Now) -> Result<BTreeSet<u64>, String> {
        let mut reached = BTreeSet::new();
        let mut todo = [Thread::At(T)].to_vec();
        while let Some(thread) = todo.pop() {
            for next in self.next(thread, now)? {
                match next {
                    Thread::Detour(detour) => drop(reached.insert(detour)),
                    Thread::At(at) if !self.original.iter().any(|(boundary, _)| *boundary == at) => {
                        todo.push(next);
                    }
                    Thread::Trapped(at) if !self.breakpoint => {
                        return Err(format!("calls still meet a breakpoint at {at:x}"));
                    }
                    Thread::Trapped(_) => todo.push(next),
                    Thread::Outside | Thread::At(_) | Thread::Copy(_) => drop(reached.insert(ORIGINAL)),
                }
            }
        }
        Ok(reached)
    }

    /// Where one instruction can lead.
    fn next(&self, thread: Thread, now: &Now) -> Result<Vec<Thread>, String> {
        match thread {
            Thread::Outside => Ok([Thread::At(T)].to_vec()),
            Thread::Trapped(at) => {
                let resume = now.answers.get(&at).ok_or_else(|| format!("nobody answers at {at:x}"))?;
                Ok([self.place(*resume)?].to_vec())
            }
            Thread::Copy(_) if now.slot_freed => Err("in a trampoline that was freed".into()),
            Thread::Copy(number) => {
                let more = number + 1 < self.copies.len();
                Ok([if more { Thread::Copy(number + 1) } else { Thread::Outside }].to_vec())
            }
            Thread::Detour(detour) if now.freed.contains(&detour) => Err("in a detour that was freed".into()),
            Thread::Detour(_) => Ok([Thread::Outside, Thread::Copy(0)].to_vec()),
            Thread::At(at) if now.slot_freed && self.relay == Some(at) => {
                Err("on a relay that was freed".into())
            }
            Thread::At(at) => {
                let fetched = self.fetch(at, now)?.into_iter();
                fetched
                    .map(|fetched| match fetched {
                        Fetched::Breakpoint => Ok(Thread::Trapped(at)),
                        Fetched::JumpTo(target) => self.place(target),
                        Fetched::Original => Ok(self.behind(at)),
                    })
                    .collect()
            }
        }
    }

    /// Behind the displaced instruction at `at`.
    fn behind(&self, at: u64) -> Thread {
        let mut later = self.original.iter().map(|(at, _)| *at).filter(|other| *other > at);
        later.next().map_or(Thread::Outside, Thread::At)
    }

    /// What is at an address that something leads to.
    fn place(&self, address: u64) -> Result<Thread, String> {
        if let Some(number) = self.copies.iter().position(|copy| *copy == address) {
            return Ok(Thread::Copy(number));
        }
        if self.detours.contains(&address) {
            return Ok(Thread::Detour(address));
        }
        if self.jumps.iter().any(|(at, _)| *at == address) {
            return Ok(Thread::At(address));
        }
        Err(format!("nothing is at {address:x}"))
    }

    /// Every instruction that can be fetched at `at`.
    fn fetch(&self, at: u64, now: &Now) -> Result<Vec<Fetched>, String> {
        let original = self.original.iter().filter(|(boundary, _)| *boundary == at);
        let jumps = self.jumps.iter().filter(|(place, _)| *place == at);
        let known: Vec<&[u8]> = original.chain(jumps).map(|(_, bytes)| bytes.as_slice()).collect();
        let mut all = Vec::new();
        for (number, image) in now.images.iter().enumerate() {
            for bytes in seen(image, at, &known, true)? {
                match *bytes {
                    [INT3] => all.push(Fetched::Breakpoint),
                    [0xff, 0x25, 0, 0, 0, 0] => {
                        let pointers = self.pointers.iter().filter(|(place, _)| *place == at + 6);
                        let pointers: Vec<&[u8]> = pointers.map(|(_, bytes)| bytes.as_slice()).collect();
                        for image in &now.images[number..] {
                            let read = seen(image, at + 6, &pointers, false)?;
                            let target = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
                            all.extend(read.into_iter().map(target).map(Fetched::JumpTo));
                        }
                    }
                    [0xe9, ref rest @ ..] if rest.len() == 4 => {
                        let displacement = i32::from_le_bytes(rest.try_into().unwrap());
                        all.push(Fetched::JumpTo((at + 5).wrapping_add_signed(displacement.into())));
                    }
                    [0xeb, displacement] => {
                        let displacement = displacement.cast_signed();
                        all.push(Fetched::JumpTo((at + 2).wrapping_add_signed(displacement.into())));
                    }
                    _ => all.push(Fetched::Original),
                }
            }
        }
        Ok(all)
    }
}

impl Now {
    fn sync(&mut self) {
        let mut image = self.images.pop().unwrap();
        image.values_mut().for_each(|values| drop(values.drain(..values.len() - 1)));
        self.images = [image].to_vec();
    }
}

/// Those of `known` that can be seen at `at`, and a breakpoint, if that is looked for; it is a crash if anything else
/// can be seen.
fn seen<'a>(image: &Image, at: u64, known: &[&'a [u8]], breakpoints: bool) -> Result<Vec<&'a [u8]>, String> {
    let mut found = Vec::new();
    // What has been seen so far agrees with these.
    let mut todo = [(0, known.to_vec())].to_vec();
    while let Some((depth, agree)) = todo.pop() {
        if let Some(whole) = agree.iter().find(|bytes| bytes.len() == depth) {
            found.push(*whole);
            continue;
        }
        let values: BTreeSet<u8> = image[&(at + depth as u64)].iter().copied().collect();
        for value in values {
            if depth == 0 && breakpoints && value == INT3 {
                found.push(&[INT3]);
                continue;
            }
            let still: Vec<&[u8]> = agree.iter().filter(|bytes| bytes[depth] == value).copied().collect();
            if still.is_empty() {
                return Err(format!("{value:02x} at {at:x}+{depth} belongs to nothing that is known there"));
            }
            todo.push((depth + 1, still));
        }
    }
    Ok(found)
}
