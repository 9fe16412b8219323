//! A model of the live protocol, explored exhaustively.
//!
//! What the commit does comes from the commit itself, run on the [simulated](super::simulated) machine: its list of
//! writes, syncs and quiesces. What the rest of the world does is the model:
//!
//! * between any two steps a thread may call the target, go on by one instruction, or stay where it is for ever;
//! * a processor that has not synchronised since a byte was written may see any value that the byte had since, for
//!   each byte by itself: torn writes and stale fetches are both in that;
//! * a breakpoint at the first byte is answered as long as its answer is published, any other is not;
//! * a quiesce is over when no thread stands on an interior boundary.
//!
//! A thread crashes when what it fetches is neither the instruction that was there nor the one that will be. The
//! tests show that no order of events leads there, and that one does as soon as a step is left out.

use super::simulated::Machine;
use super::{Change, Direction, SHAPES, live};
use crate::host::Host;
use kdetour_plan::{Code, Context, Options, Patch, Plan, Slot, Survey};
use std::collections::BTreeSet;
use std::format;
use std::string::String;
use std::vec::Vec;

const T: u64 = 0x1000;
const INT3: u8 = 0xcc;
/// Bytes of the windows that are looked at here.
const WINDOW: usize = 5;

/// Instructions by length.
const INSTRUCTIONS: [&[u8]; 5] = [
    &[0x55],                                     // push rbp
    &[0x41, 0x57],                               // push r15
    &[0x48, 0x89, 0xe5],                         // mov rbp, rsp
    &[0x48, 0x83, 0xec, 0x08],                   // sub rsp, 8
    &[0x48, 0x81, 0xec, 0x00, 0x01, 0x00, 0x00], // sub rsp, 0x100
];

/// One step of a commit, as the world sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Write {
        offset: usize,
        bytes: Vec<u8>,
    },
    Sync,
    Quiesce,
    /// The breakpoint's answer is taken away: the detour has been drained and reclaimed.
    Forget,
}

/// A thread that runs the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thread {
    /// It has not called yet, or it is elsewhere.
    Outside,
    /// It stands on this boundary of the window.
    At(usize),
}

struct World {
    /// The displaced instructions: offset and bytes.
    original: Vec<(usize, Vec<u8>)>,
    jump: Vec<u8>,
    before: Vec<u8>,
}

impl World {
    /// Every state that a thread can be in after all steps, or the way to a crash.
    fn explore(&self, steps: &[Step]) -> Result<(), String> {
        let mut seen: Vec<Vec<u8>> = self.before.iter().map(|&byte| [byte].to_vec()).collect();
        let mut answered = true;
        let mut threads = BTreeSet::from([Thread::Outside]);
        self.run(&mut threads, &seen, answered).map_err(|crash| format!("before the first step: {crash}"))?;
        for (number, step) in steps.iter().enumerate() {
            match step {
                Step::Write { offset, bytes } => {
                    for (values, &byte) in seen.iter_mut().skip(*offset).zip(bytes) {
                        values.push(byte);
                    }
                }
                Step::Sync => seen.iter_mut().for_each(|values| drop(values.drain(..values.len() - 1))),
                Step::Quiesce => threads.retain(|thread| matches!(thread, Thread::Outside | Thread::At(0))),
                Step::Forget => answered = false,
            }
            self.run(&mut threads, &seen, answered)
                .map_err(|crash| format!("after step {number}, {step:?}: {crash}"))?;
        }
        Ok(())
    }

    /// Adds every place that a thread can get to while the bytes can be seen like this.
    fn run(&self, threads: &mut BTreeSet<Thread>, seen: &[Vec<u8>], answered: bool) -> Result<(), String> {
        let mut todo: Vec<Thread> = threads.iter().copied().collect();
        while let Some(thread) = todo.pop() {
            for next in self.next(thread, seen, answered)? {
                if threads.insert(next) {
                    todo.push(next);
                }
            }
        }
        Ok(())
    }

    /// Where one instruction can lead.
    fn next(&self, thread: Thread, seen: &[Vec<u8>], answered: bool) -> Result<Vec<Thread>, String> {
        let Thread::At(offset) = thread else { return Ok([Thread::At(0)].to_vec()) };
        let first = &seen[offset];
        let (_, original) = self.original.iter().find(|(at, _)| *at == offset).unwrap();
        let mut next = Vec::new();
        for &opcode in first {
            if opcode == INT3 {
                if offset != 0 || !answered {
                    return Err(format!("nobody answers the breakpoint at +{offset}"));
                }
                next.push(Thread::Outside);
            } else if opcode == original[0] {
                // The tail is seen with it, each byte by itself: all of it must be the original's.
                let tail = seen.iter().skip(offset + 1).zip(&original[1..]);
                if tail.into_iter().any(|(values, byte)| values.iter().any(|value| value != byte)) {
                    return Err(format!("the instruction at +{offset} with bytes of the jump"));
                }
                let end = offset + original.len();
                let inside = self.original.iter().any(|(at, _)| *at == end);
                next.push(if inside { Thread::At(end) } else { Thread::Outside });
            } else if offset == 0 && opcode == self.jump[0] {
                let tail = seen.iter().skip(1).zip(&self.jump[1..]);
                if tail.into_iter().any(|(values, byte)| values.iter().any(|value| value != byte)) {
                    return Err("the jump with bytes of the original".into());
                }
                next.push(Thread::Outside);
            } else {
                return Err(format!("{opcode:02x} at +{offset}"));
            }
        }
        Ok(next)
    }
}

/// Every sequence of instructions that fills a window.
fn windows() -> Vec<Vec<&'static [u8]>> {
    let mut complete = Vec::new();
    let mut open = Vec::from([Vec::new()]);
    while let Some(sequence) = open.pop() {
        for instruction in INSTRUCTIONS {
            let mut longer: Vec<&[u8]> = sequence.clone();
            longer.push(instruction);
            let len: usize = longer.iter().map(|one| one.len()).sum();
            if len < WINDOW { open.push(longer) } else { complete.push(longer) }
        }
    }
    complete
}

fn patch(code: &[u8]) -> Patch {
    let survey = Survey::of(&Code::new(T, code), &Context::default()).unwrap();
    let options = Options { shapes: SHAPES, ..Options::default() };
    let slot = Slot { address: 0x8000, capacity: 64 };
    *Plan::with_options(&survey, slot, 0x12_3456, options).unwrap().patch()
}

/// The steps of an attach or a detach as `live` takes them, and the world in which it takes them.
fn commit(instructions: &[&[u8]], direction: Direction) -> (World, Vec<Step>) {
    let mut code = instructions.concat();
    code.push(0xc3); // ret
    let patch = patch(&code);
    let mut before = code.clone();
    if direction == Direction::Detach {
        before[..WINDOW].copy_from_slice(patch.new_bytes());
    }
    let machine = Machine::new(T, &before);
    let mut text = machine.open_text(&[]).unwrap();
    live(&machine, &mut text, &[Change { patch, direction }]).unwrap();

    let mut offset = 0;
    let mut original = Vec::new();
    for instruction in instructions {
        original.push((offset, instruction.to_vec()));
        offset += instruction.len();
    }
    let steps = machine.log().iter().filter_map(|line| step(line)).collect();
    (World { original, jump: patch.new_bytes().to_vec(), before }, steps)
}

fn step(line: &str) -> Option<Step> {
    let mut words = line.split(' ');
    match words.next()? {
        "write" => {
            let address = u64::from_str_radix(words.next()?, 16).unwrap();
            let hex = words.next()?;
            let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let bytes = (0..hex.len()).step_by(2).map(byte).collect();
            Some(Step::Write { offset: usize::try_from(address - T).unwrap(), bytes })
        }
        "sync_cores" => Some(Step::Sync),
        "quiesce" => Some(Step::Quiesce),
        _ => None,
    }
}

#[test]
fn no_order_of_events_crashes() {
    for instructions in windows() {
        for direction in [Direction::Attach, Direction::Detach] {
            let (world, mut steps) = commit(&instructions, direction);
            steps.push(Step::Forget);
            assert_eq!(world.explore(&steps), Ok(()), "{direction:?} of {instructions:02x?}");
        }
    }
}

/// Leave out any one step, and there is a way to crash.
#[test]
fn every_step_is_needed() {
    for direction in [Direction::Attach, Direction::Detach] {
        // push rbp / mov rbp, rsp / push r15
        let (world, steps) = commit(&[INSTRUCTIONS[0], INSTRUCTIONS[2], INSTRUCTIONS[1]], direction);
        assert_eq!(steps.len(), if direction == Direction::Attach { 7 } else { 6 });
        for left_out in 0..steps.len() {
            let mut fewer = steps.clone();
            let step = fewer.remove(left_out);
            fewer.push(Step::Forget);
            assert!(world.explore(&fewer).is_err(), "{direction:?} without step {left_out}, {step:?}");
        }
    }
}

/// A quiesce is there where a window has an interior boundary, and is needed there.
#[test]
fn the_quiesce_is_for_interior_boundaries() {
    for instructions in windows() {
        let (world, mut steps) = commit(&instructions, Direction::Attach);
        assert_eq!(steps.contains(&Step::Quiesce), instructions.len() > 1);
        steps.retain(|step| *step != Step::Quiesce);
        assert_eq!(world.explore(&steps).is_err(), instructions.len() > 1, "{instructions:02x?}");
    }
}
