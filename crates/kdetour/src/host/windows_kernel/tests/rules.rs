//! The simulated NT finds what it is there to find.

use super::images::WHOLE;
use super::*;
use crate::host::windows_kernel::nt::{DISPATCH_LEVEL, Dpc, HIGH_LEVEL, Nt, PASSIVE_LEVEL, Processor};
use crate::host::{Host, Span, Text};
use core::ffi::c_void;
use core::hint::black_box;
use std::sync::atomic::AtomicBool;

/// What was found, without what else may have been.
fn found(world: &World, what: &str) -> bool {
    world.running.broken().iter().any(|one| one.contains(what))
}

#[test]
fn a_call_at_the_wrong_level() {
    let world = World::new(&[1]);
    let nt = &world.running.nt;
    // SAFETY: it is lowered again.
    let before = unsafe { nt.raise(DISPATCH_LEVEL) };
    let _ = nt.modules();
    // SAFETY: as said.
    unsafe { nt.lower(before) };
    assert!(found(&world, "modules at IRQL 2"));
}

/// And a level that is not lowered the way it was raised.
#[test]
fn levels_that_do_not_match() {
    let world = World::new(&[1]);
    let nt = &world.running.nt;
    // SAFETY: it is wrong, which is what is to be found.
    unsafe {
        nt.raise(HIGH_LEVEL);
        nt.raise(DISPATCH_LEVEL);
        assert!(found(&world, "raised to a lower one"));
        let flags = nt.mask();
        nt.lower(PASSIVE_LEVEL);
        assert!(found(&world, "with interrupts off"));
        nt.unmask(flags);
    }
}

#[test]
fn memory_that_is_taken_at_a_raised_level() {
    let world = World::new(&[1]);
    let nt = &world.running.nt;
    // SAFETY: it is lowered again.
    let before = unsafe { nt.raise(DISPATCH_LEVEL) };
    drop(black_box(std::vec![1_u8]));
    // SAFETY: as said.
    unsafe { nt.lower(before) };
    assert!(found(&world, "memory was taken or given 2 times"));
}

#[test]
fn a_page_that_is_locked_and_may_go() {
    let world = World::new(&[1]);
    for section in [3, 4] {
        let span = Span { address: world.target.base + section * PAGE, len: 4096 };
        // SAFETY: the simulation gives a mapping nevertheless.
        let alias = unsafe { world.running.nt.map(span) }.unwrap();
        // SAFETY: it is what was given.
        unsafe { world.running.nt.unmap(alias) };
        assert!(found(&world, "a page was locked"), "{section}");
    }
}

/// A write to the text itself, and not through a mapping of its own, ends the process that tries it.
#[test]
fn a_write_through_the_view_that_is_only_read() {
    let world = World::new(&[1]);
    let target =
        core::ptr::with_exposed_provenance_mut::<u8>(usize::try_from(world.function(WHOLE)).unwrap());
    // SAFETY: the child does nothing but write one byte.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: it is what must not be possible; the process is a copy.
        unsafe {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            target.write_volatile(0xe9);
            libc::_exit(0);
        }
    }
    let mut status = 0;
    // SAFETY: waits for that child.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status:#x}");
    // By the host's mapping the same write is one.
    let span = Span { address: world.function(WHOLE) + 1, len: 1 };
    let mut text = world.kdetour.host().open_text(&[span]).unwrap();
    text.write(span.address, &[8]).unwrap();
    assert_eq!(call(world.function(WHOLE)), 8);
}

/// What a processor does that is let go too early.
struct Hasty {
    nt: Simulated,
    has_gone: AtomicBool,
}

unsafe extern "system" fn go_on_at_once(_: *mut Dpc, context: *mut c_void, _: *mut c_void, _: *mut c_void) {
    // SAFETY: the test gives it, and waits.
    let hasty = unsafe { &*context.cast::<Hasty>() };
    // SAFETY: lowered again.
    unsafe {
        let irql = hasty.nt.raise(HIGH_LEVEL);
        hasty.nt.lower(irql);
    }
    hasty.has_gone.store(true, Ordering::SeqCst);
}

#[test]
fn a_processor_that_is_let_go_too_early() {
    let world = World::new(&[2]);
    let nt = &world.running.nt;
    let span = Span { address: world.function(WHOLE) + 1, len: 1 };
    let mut text = world.kdetour.host().open_text(&[span]).unwrap();
    let hasty = Hasty { nt: nt.clone(), has_gone: AtomicBool::new(false) };
    let mut dpc = Dpc::new();
    let pin = nt.pin(Processor { group: 0, number: 0 });
    // SAFETY: it is lowered below; the room and the context stay until the processor has gone.
    let irql = unsafe { nt.raise(DISPATCH_LEVEL) };
    let context = core::ptr::from_ref(&hasty).cast_mut().cast();
    // SAFETY: as above.
    unsafe { nt.queue(&raw mut dpc, Processor { group: 0, number: 1 }, go_on_at_once, context) };
    while !hasty.has_gone.load(Ordering::SeqCst) {
        nt.pause();
    }
    text.write(span.address, &[8]).unwrap();
    // SAFETY: as above.
    unsafe { nt.lower(irql) };
    nt.unpin(pin);
    assert!(found(&world, "processor 1 went on before the text was written"));
}
