//! How many instructions run while everybody else is kept from running: counted one by one, by the processor's trap flag.
//!
//! By [`By::Local`] nobody is waited for, so what runs between the last interrupt that is taken and the next one is the work and
//! nothing else.

use super::images::{FUNCTIONS, OTHER, WHOLE};
use super::*;
use std::process::Command;
use std::string::String;

/// The trap flag (Intel SDM volume 1, "EFLAGS Register").
const TRAP: usize = 1 << 8;

static COUNTS: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
static INSTRUCTIONS: AtomicU64 = AtomicU64::new(0);

extern "C" fn one_more(_: i32) {
    INSTRUCTIONS.fetch_add(1, Ordering::SeqCst);
}

/// From here on every instruction of the thread is counted, if that is wanted: interrupts have just been turned off.
pub(super) fn begin() {
    if COUNTS.load(Ordering::SeqCst) {
        // SAFETY: the handler is there; it returns to the next instruction.
        unsafe { core::arch::asm!("pushfq", "or qword ptr [rsp], {}", "popfq", const TRAP) };
    }
}

/// And here no more: they are about to be turned on.
pub(super) fn end() {
    if COUNTS.load(Ordering::SeqCst) {
        // SAFETY: as above.
        unsafe { core::arch::asm!("pushfq", "and qword ptr [rsp], {}", "popfq", const !(TRAP as i32)) };
    }
}

/// Instructions between the two while these functions are attached in one set, and while they are detached.
fn count(world: &mut World, targets: &[u64]) -> (u64, u64) {
    let attaches: Vec<Attach> =
        targets.iter().map(|&target| world.attach_of(world.function(target))).collect();
    let mut session = world.kdetour.session();
    for (index, attach) in attaches.into_iter().enumerate() {
        // The processor calls the first of them on and on, and its detour goes on at the original that is kept there.
        let cell = attach.cell.filter(|_| index == 0);
        // SAFETY: of one type; nobody calls the others.
        session = unsafe { session.attach(Attach { cell, ..attach }) };
    }
    let handles = session.commit_parked(By::Local, None, &mut |_, _| ()).unwrap();
    let attached = INSTRUCTIONS.swap(0, Ordering::SeqCst);
    let session = handles.iter().fold(world.kdetour.session(), |session, &handle| session.detach(handle));
    session.commit_parked(By::Local, None, &mut |_, _| ()).unwrap();
    (attached, INSTRUCTIONS.swap(0, Ordering::SeqCst))
}

/// In a process of its own: SIGTRAP is somebody else's in that of the other tests.
#[test]
#[ignore = "by the test below, in a process of its own"]
fn counted() {
    let handler = one_more as extern "C" fn(i32) as libc::sighandler_t;
    // SAFETY: it adds to a counter.
    unsafe { libc::signal(libc::SIGTRAP, handler) };
    let mut world = World::new(&[1]);
    COUNTS.store(true, Ordering::SeqCst);
    let small = count(&mut world, &[WHOLE]);
    let both = count(&mut world, &[WHOLE, OTHER]);
    // The same window at the start of a function that is a hundred times as long: planning reads and decodes all of it.
    let long: Vec<u8> = [0xb8, 7, 0, 0, 0].into_iter().chain([0x90; 0x280]).chain([0xc3]).collect();
    world.memory().poke(world.function(0x100), &long);
    let pdata = world.target.base + 2 * PAGE;
    let words = [0x1100, 0x1100 + long.len() as u32, 0x2800];
    let entry: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    world.memory().poke(pdata + 12 * FUNCTIONS.len() as u64, &entry);
    // The directory is as long as it says.
    world
        .memory()
        .poke(world.target.base + 0x98 + 116 + 8 * 3, &(12 * (FUNCTIONS.len() as u32 + 1)).to_le_bytes());
    let large = count(&mut world, &[0x100]);
    COUNTS.store(false, Ordering::SeqCst);
    std::println!(
        "instructions while parked: attach {}, detach {}; two at once {}, {}; a long function {}, {}",
        small.0,
        small.1,
        both.0,
        both.1,
        large.0,
        large.1
    );
    assert!(small.0 > 20 && small.1 > 20, "nothing was counted");
    // But for the place of a page in a short list.
    let alike = |one: u64, other: u64| one.abs_diff(other) * 50 < one;
    assert!(alike(small.0, large.0) && alike(small.1, large.1), "what planning costs is not paid here");
    assert!(both.0 < 2 * small.0 && both.1 < 2 * small.1);
}

#[test]
fn what_runs_while_others_are_parked_does_not_depend_on_planning() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "host::windows_kernel::tests::counted::counted", "--ignored", "--nocapture"]);
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for line in said.lines().filter(|line| line.contains("instructions while parked")) {
        std::println!("{line}");
    }
}
