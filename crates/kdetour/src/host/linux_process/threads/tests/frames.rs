//! Signal frames, alternate stacks, and what lies above a stack.

use super::*;
use crate::address::narrow;

static IN_HANDLER: AtomicU32 = AtomicU32::new(0);
static LEAVE: AtomicBool = AtomicBool::new(false);
static SLEEP: AtomicBool = AtomicBool::new(false);

/// Stays until it may leave: running, or asleep.
extern "C" fn stay(_: i32) {
    IN_HANDLER.fetch_add(1, Ordering::SeqCst);
    while !LEAVE.load(Ordering::SeqCst) {
        if SLEEP.load(Ordering::SeqCst) {
            unsafe { nap(3) };
        }
    }
    IN_HANDLER.fetch_sub(1, Ordering::SeqCst);
}

/// On x86-32 a handler that takes one argument has a frame of another kind.
const KINDS: [i32; 2] = [0, libc::SA_SIGINFO];

/// A thread in a signal handler that has interrupted it inside of a place.
fn interrupted(flags: i32, sleeping: bool) {
    handle(libc::SIGUSR1, stay, flags);
    SLEEP.store(sleeping, Ordering::SeqCst);
    LEAVE.store(false, Ordering::SeqCst);
    let thread = Thread::start(move |flag| {
        if flags & libc::SA_ONSTACK != 0 {
            // In the middle of a heap block: above it lies other data, which names the place.
            let start = narrow(spinning()[0].start);
            let block = vec![start; 32 << 10].leak();
            let base = block[4096..].as_mut_ptr().cast();
            let stack = libc::stack_t { ss_sp: base, ss_flags: 0, ss_size: 64 << 10 };
            assert_eq!(unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) }, 0);
        }
        unsafe { kdetour_test_spin(flag) }
    })
    .arrived();
    signal(thread.number, libc::SIGUSR1);
    while IN_HANDLER.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    for _ in 0..5 {
        found(&spinning(), 1);
        assert_eq!(look(&calling(), long()), Ok(()));
    }
    LEAVE.store(true, Ordering::SeqCst);
    thread.end();
    while IN_HANDLER.load(Ordering::SeqCst) != 0 {
        thread::yield_now();
    }
    assert_eq!(look(&spinning(), long()), Ok(()));
}

#[test]
fn a_frame_of_a_signal_is_found() {
    for kind in KINDS {
        alone(|| interrupted(kind, false));
        alone(|| interrupted(kind, true));
    }
}

#[test]
fn a_frame_on_an_alternate_stack_is_found() {
    for kind in KINDS {
        alone(|| interrupted(libc::SA_ONSTACK | kind, false));
        alone(|| interrupted(libc::SA_ONSTACK | kind, true));
    }
}

/// Like `interrupted`, but it is a caller further up that is inside: only the outer stack tells.
#[test]
fn the_stack_under_an_alternate_one_is_searched() {
    alone(|| {
        unsafe extern "C" fn spin(flag: usize) -> usize {
            spin_outside(unsafe { &*ptr::with_exposed_provenance(flag) })
        }
        for (sleeping, kind) in [(false, 0), (true, 0), (false, libc::SA_SIGINFO), (true, libc::SA_SIGINFO)] {
            handle(libc::SIGUSR1, stay, libc::SA_ONSTACK | kind);
            SLEEP.store(sleeping, Ordering::SeqCst);
            LEAVE.store(false, Ordering::SeqCst);
            let thread = Thread::start(|flag| unsafe {
                // The one that Rust gives to its threads has room for little more than what the kernel puts there twice.
                let base = vec![0_u64; 8 << 10].leak().as_mut_ptr().cast();
                let stack = libc::stack_t { ss_sp: base, ss_flags: 0, ss_size: 64 << 10 };
                assert_eq!(libc::sigaltstack(&raw const stack, ptr::null_mut()), 0);
                kdetour_test_call(spin, ptr::from_ref(flag).expose_provenance())
            })
            .arrived();
            signal(thread.number, libc::SIGUSR1);
            while IN_HANDLER.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            for _ in 0..5 {
                found(&calling(), 1);
                assert_eq!(look(&spinning(), long()), Ok(()));
            }
            LEAVE.store(true, Ordering::SeqCst);
            thread.end();
            assert_eq!(look(&calling(), long()), Ok(()));
        }
    });
}

#[test]
fn what_lies_above_a_stack_does_not_count() {
    alone(|| {
        extern "C" fn on_given_stack(flag: *mut libc::c_void) -> *mut libc::c_void {
            spin_outside(unsafe { &*flag.cast_const().cast() });
            ptr::null_mut()
        }
        let flag = Flag::new();
        let mut block = vec![0; 512 << 10];
        let (stack, above) = block.split_at_mut(128 << 10);
        above.fill(narrow(spinning()[0].start));
        let (base, size) = (stack.as_mut_ptr(), size_of_val(stack));
        let mut id = 0;
        unsafe {
            let mut attributes = mem::zeroed::<libc::pthread_attr_t>();
            libc::pthread_attr_init(&raw mut attributes);
            assert_eq!(libc::pthread_attr_setstack(&raw mut attributes, base.cast(), size), 0);
            let argument = (&raw const flag).cast_mut().cast();
            assert_eq!(libc::pthread_create(&raw mut id, &raw const attributes, on_given_stack, argument), 0);
        }
        assert_eq!(look(&spinning(), long()), Ok(()));
        flag.end.store(true, Ordering::SeqCst);
        assert_eq!(unsafe { libc::pthread_join(id, ptr::null_mut()) }, 0);
    });
}

/// Below a stack pointer a function may keep the address of a slot, but no return address. On x86-32 it keeps nothing there.
#[cfg(target_arch = "x86_64")]
#[test]
fn below_the_stack_pointer_slots_count() {
    unsafe extern "C" {
        fn kdetour_test_below(flag: *const Flag) -> usize;
    }
    alone(|| {
        let thread = Thread::start(|flag| unsafe { kdetour_test_below(flag) }).arrived();
        found(&spinning(), 1);
        assert_eq!(look_above(stack_pointer(), &spinning(), &[], long()), Ok(()), "it is no slot");
        thread.end();
        assert_eq!(look(&spinning(), long()), Ok(()));
    });
}
