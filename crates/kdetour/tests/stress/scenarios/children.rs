//! Processes that are born and die during commits.
//!
//! A child of `vfork` or `posix_spawn` runs in the memory of its parent, with the handlers of no signal: a breakpoint kills it.

use crate::scenarios::births::call_some;
use crate::scenarios::machinery::Passing;
use crate::support::callers::Callers;
use crate::support::runner::{Clock, tell};
use crate::support::sites::{self, Site};
use crate::support::system::{self, fork, symbol};
use crate::support::targets::{Target, target};
use kdetour::{Error, Protocol, typed};
use std::ffi::{CStr, c_void};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use std::{ptr, thread};

fn toggle(site: &mut Site, protocol: Protocol) {
    match site.attach(protocol).and_then(|()| site.detach(protocol)) {
        Ok(()) => {}
        Err(error) => panic!("{error:?}"),
    }
}

/// Children of fork call the target, toggle it themselves, and end well.
pub(crate) fn forks(clock: &Clock) -> String {
    let call = target(0, 1);
    let other = target(1, 6);
    let callers = Callers::start(2, call, sites::either);
    let stop = AtomicBool::new(false);
    let mut children = 0;
    let toggles = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut all = [Site::adding::<0>(call), Site::adding::<1>(other)];
            while !stop.load(Relaxed) {
                for site in &mut all {
                    toggle(site, Protocol::Exchange);
                    toggles.fetch_add(1, Relaxed);
                }
            }
        });
        while !clock.is_over() || children < 10 {
            tell("fork");
            let child = fork(|| {
                for round in 0..3 {
                    call_some(call);
                    call_some(other);
                    // Whatever the parent was at: the copy is its own, and can be detoured.
                    let mut own = [Site::adding::<3>(target(2, 3)), Site::adding::<4>(target(3, 7))];
                    for site in &mut own {
                        toggle(site, Protocol::Exchange);
                    }
                    if round == 1 && typed::reclaim(Duration::from_secs(5)).is_err() {
                        return 3;
                    }
                }
                0
            });
            let ended = child.map_or(0, system::wait);
            assert_eq!(ended, 0, "a child ended so (its code, or minus its signal)");
            children += 1;
        }
        stop.store(true, Relaxed);
    });
    let calls = callers.stop();
    assert_eq!(
        target(2, 3)(1, 2),
        crate::support::targets::expected(1, 2),
        "the children's detours are theirs"
    );
    format!("{} toggles, {calls} calls, {children} children", toggles.load(Relaxed))
}

const PROGRAM: &CStr = c"/bin/true";

/// What a child that shares the memory runs through is toggled.
pub(crate) fn spawns(clock: &Clock) -> String {
    let call = target(0, 1);
    let stop = AtomicBool::new(false);
    let (spawned, vforked) = (AtomicU64::new(0), AtomicU64::new(0));
    let names = ["execve", "dup2", "close", "sigaction", "posix_spawn", "sigprocmask", "_exit", "waitpid"];
    let mut all: Vec<(Site, &str)> =
        names.iter().enumerate().map(|(number, name)| (Passing::site(number, symbol(name)), *name)).collect();
    all.push((Site::adding::<63>(call), "the target"));
    let mut toggles = 0_u64;
    let mut refused = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                spawn();
                spawned.fetch_add(1, Relaxed);
            }
        });
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                vfork(call);
                vforked.fetch_add(1, Relaxed);
            }
        });
        while !clock.is_over() || spawned.load(Relaxed) < 20 || vforked.load(Relaxed) < 20 {
            all.retain_mut(|(site, name)| {
                match site.attach(Protocol::Exchange) {
                    Ok(()) => {}
                    Err(error @ (Error::Refused(_) | Error::NoSlot { .. })) => {
                        refused.push(format!("{name}: {error}"));
                        return false;
                    }
                    Err(error) => panic!("{name}: {error:?}"),
                }
                thread::yield_now();
                site.detach(Protocol::Exchange).unwrap_or_else(|error| panic!("{name}: {error:?}"));
                toggles += 1;
                true
            });
            assert!(all.len() > 5, "{refused:?}");
        }
        stop.store(true, Relaxed);
    });
    format!(
        "{toggles} toggles, {} spawned, {} by vfork, calls counted {}; refused: {refused:?}",
        spawned.load(Relaxed),
        vforked.load(Relaxed),
        Passing::calls()
    )
}

fn spawn() {
    // SAFETY: all pointers are valid; the lists end with null.
    unsafe {
        let mut actions = std::mem::zeroed();
        libc::posix_spawn_file_actions_init(&raw mut actions);
        libc::posix_spawn_file_actions_adddup2(&raw mut actions, 2, 1);
        libc::posix_spawn_file_actions_addclose(&raw mut actions, 0);
        let arguments = [PROGRAM.as_ptr().cast_mut(), ptr::null_mut()];
        let environment = [ptr::null_mut()];
        let mut child = 0;
        let error = libc::posix_spawn(
            &raw mut child,
            PROGRAM.as_ptr(),
            &raw const actions,
            ptr::null(),
            arguments.as_ptr(),
            environment.as_ptr(),
        );
        libc::posix_spawn_file_actions_destroy(&raw mut actions);
        assert_eq!(error, 0, "posix_spawn");
        let ended = system::wait(child);
        assert_eq!(ended, 0, "a child of posix_spawn ended so (its code, or minus its signal)");
    }
}

extern "C" fn in_vfork(call: *mut c_void) -> i32 {
    let call = crate::support::targets::function(call.expose_provenance() as u64);
    for first in 0..5 {
        let answer = black_box(call)(first, 9);
        if !sites::either(first, 9, answer) {
            return 88;
        }
    }
    let (arguments, environment) = ([PROGRAM.as_ptr(), ptr::null()], [ptr::null()]);
    // SAFETY: lists of strings that end with null.
    unsafe { libc::execve(PROGRAM.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    89
}

/// What vfork does, on a stack of the child's own.
fn vfork(call: Target) {
    const LEN: usize = 64 << 10;
    let mut stack = vec![0_u128; LEN / 16];
    let argument = ptr::with_exposed_provenance_mut::<c_void>(call as *const () as usize);
    // SAFETY: the stack lives until the child runs another program: this thread waits for that.
    let child = unsafe {
        let top = stack.as_mut_ptr().add(stack.len()).cast::<c_void>();
        libc::clone(in_vfork, top, libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, argument)
    };
    assert!(child > 0, "clone: {}", std::io::Error::last_os_error());
    let ended = system::wait(child);
    assert_eq!(ended, 0, "a child of vfork ended so (its code, or minus its signal)");
}
