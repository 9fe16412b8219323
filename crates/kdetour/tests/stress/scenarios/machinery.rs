//! The functions that a commit itself runs through, and everything else does, as targets.

use crate::support::runner::{Clock, fail, tell};
use crate::support::sites::{self, Site};
use crate::support::system::{symbol, text};
use crate::support::targets::LONGEST;
use kdetour::{AtomicAddress, Error, Protocol, typed};
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use std::{mem, ptr, thread};

/// A detour for functions of any signature: it counts, and jumps to the original with everything as it came.
pub(crate) struct Passing;

const COUNT: usize = 32;

unsafe extern "C" {
    static stress_passing: [usize; COUNT];
    static stress_originals: [AtomicAddress; COUNT];
    static stress_calls: [AtomicU64; COUNT];
}

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".pushsection .bss.stress_passing, \"aw\", @nobits",
    ".balign 8",
    ".globl stress_originals, stress_calls, stress_passing",
    ".hidden stress_originals, stress_calls, stress_passing",
    "stress_originals: .skip 256",
    "stress_calls: .skip 256",
    ".popsection",
    ".pushsection .data.rel.ro.stress_passing, \"aw\", @progbits",
    ".balign 8",
    "stress_passing:",
    ".popsection",
    ".pushsection .text.kdetour_stress_passing, \"ax\", @progbits",
    ".altmacro",
    ".macro stress_pass number",
    "    .balign 16",
    "    .type stress_pass_\\number, @function",
    "stress_pass_\\number:",
    "    lock inc qword ptr [rip + stress_calls + \\number * 8]",
    "    jmp qword ptr [rip + stress_originals + \\number * 8]",
    "    .size stress_pass_\\number, . - stress_pass_\\number",
    "    .pushsection .data.rel.ro.stress_passing, \"aw\", @progbits",
    "    .quad stress_pass_\\number",
    "    .popsection",
    ".endm",
    ".set stress_number, 0",
    ".rept 32",
    "    stress_pass %stress_number",
    "    .set stress_number, stress_number + 1",
    ".endr",
    ".noaltmacro",
    ".popsection",
);

// The address of this code is all that it can find its data by; EAX is what it came with when the original begins.
#[cfg(target_arch = "x86")]
core::arch::global_asm!(
    ".pushsection .bss.stress_passing, \"aw\", @nobits",
    ".balign 8",
    ".globl stress_originals, stress_calls, stress_passing",
    ".hidden stress_originals, stress_calls, stress_passing",
    "stress_originals: .skip 128",
    "stress_calls: .skip 256",
    ".popsection",
    ".pushsection .data.rel.ro.stress_passing, \"aw\", @progbits",
    ".balign 8",
    "stress_passing:",
    ".popsection",
    ".pushsection .text.kdetour_stress_passing, \"ax\", @progbits",
    ".altmacro",
    ".macro stress_pass number",
    "    .balign 16",
    "    .type stress_pass_\\number, @function",
    "stress_pass_\\number:",
    "    pushl %eax",
    "    call 9f",
    "9:  popl %eax",
    "    lock incl stress_calls - 9b + \\number * 8(%eax)",
    "    movl stress_originals - 9b + \\number * 4(%eax), %eax",
    "    xchgl %eax, (%esp)",
    "    ret",
    "    .size stress_pass_\\number, . - stress_pass_\\number",
    "    .pushsection .data.rel.ro.stress_passing, \"aw\", @progbits",
    "    .long stress_pass_\\number",
    "    .popsection",
    ".endm",
    ".set stress_number, 0",
    ".rept 32",
    "    stress_pass %stress_number",
    "    .set stress_number, stress_number + 1",
    ".endr",
    ".noaltmacro",
    ".popsection",
    options(att_syntax),
);

impl Passing {
    /// A site whose original is kept where the detour looks.
    pub(crate) fn site(number: usize, target: u64) -> Site {
        // SAFETY: written by the linker before anything runs.
        let detour = unsafe { stress_passing }[number] as u64;
        // Two names may be one function, such as memcpy and memmove.
        Site { cell: Some(Self::original(number)), chain: true, ..Site::new(target, detour, number) }
    }

    fn original(number: usize) -> &'static AtomicAddress {
        // SAFETY: atomics in this program's memory.
        unsafe { &stress_originals[number] }
    }

    fn calls_of(number: usize) -> u64 {
        // SAFETY: atomics in this program's memory.
        unsafe { stress_calls[number].load(Relaxed) }
    }

    pub(crate) fn calls() -> u64 {
        (0..COUNT).map(Self::calls_of).sum()
    }
}

const NAMES: [&str; 24] = [
    "memcpy",
    "memmove",
    "memset",
    "malloc",
    "free",
    "calloc",
    "realloc",
    "pthread_mutex_lock",
    "pthread_mutex_unlock",
    "write",
    "read",
    "pread",
    "pwrite",
    "syscall",
    "mmap",
    "munmap",
    "mprotect",
    "mremap",
    "sigaction",
    "execve",
    "__errno_location",
    "memcmp",
    "nanosleep",
    "sched_yield",
];

pub(crate) fn machinery(clock: &Clock) -> String {
    let mut sites: Vec<(Site, &str)> =
        NAMES.iter().enumerate().map(|(number, name)| (Passing::site(number, symbol(name)), *name)).collect();
    let originals: Vec<Vec<u8>> = sites.iter().map(|(site, _)| text(site.target, LONGEST)).collect();
    let stop = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    let (mut toggles, mut sessions, mut reclaims, mut late) = (0_u64, 0_u64, 0, 0);
    let mut refused = Vec::new();
    thread::scope(|scope| {
        for number in 0..3 {
            let (stop, rounds) = (&stop, &rounds);
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    work(number);
                    rounds.fetch_add(1, Relaxed);
                }
            });
        }
        // Each by itself.
        let half = clock.part(2);
        let mut first = true;
        while first || !half.is_over() {
            sites.retain_mut(|(site, name)| {
                tell(name);
                match site.attach(Protocol::Exchange) {
                    Ok(()) => {}
                    Err(error @ (Error::Refused(_) | Error::NoSlot { .. })) if first => {
                        refused.push(format!("{name}: {error}"));
                        return false;
                    }
                    Err(error) => panic!("{name}: {error:?}"),
                }
                // The committing thread is a caller like any other.
                work(9);
                site.detach(Protocol::Exchange).unwrap_or_else(|error| panic!("{name}: {error:?}"));
                work(9);
                toggles += 1;
                true
            });
            first = false;
        }
        // All of them in one session.
        tell("all in one session");
        while !clock.is_over() || sessions < 3 {
            let mut all: Vec<&mut Site> = sites.iter_mut().map(|(site, _)| site).collect();
            sites::attach(&mut all, Protocol::Exchange).unwrap_or_else(|error| panic!("all: {error:?}"));
            work(9);
            sites::detach(&all, Protocol::Exchange).unwrap_or_else(|error| panic!("all: {error:?}"));
            work(9);
            sessions += 1;
            if sessions % 8 == 0 {
                match typed::reclaim(Duration::from_millis(500)) {
                    Ok(_) => reclaims += 1,
                    Err(Error::Busy { .. } | Error::ThreadNotReached { .. }) => late += 1,
                    Err(error) => panic!("reclaim: {error:?}"),
                }
            }
        }
        stop.store(true, Relaxed);
    });
    for ((site, name), original) in sites.iter().zip(NAMES.iter().filter_map(|name| {
        let at = NAMES.iter().position(|other| other == name)?;
        sites.iter().any(|(_, kept)| kept == name).then(|| originals[at].clone())
    })) {
        assert_eq!(text(site.target, LONGEST), original, "{name}: text");
    }
    let uncalled: Vec<&str> = sites
        .iter()
        .filter(|(site, name)| Passing::calls_of(site.number) == 0 && *name != "execve")
        .map(|(_, name)| *name)
        .collect();
    assert!(uncalled.is_empty(), "never called while detoured: {uncalled:?}");
    format!(
        "{toggles} toggles, {sessions} sessions of {}, {} rounds of work, {} calls counted, {reclaims} reclaims and {late} too \
         early; refused: {refused:?}",
        sites.len(),
        rounds.load(Relaxed),
        Passing::calls()
    )
}

/// Uses all of them and checks what they do.
fn work(seed: u8) {
    let length = 1000 + usize::from(seed) * 100;
    // SAFETY: plain calls with valid arguments; what is allocated, mapped and opened is given back. The functions are called
    // by pointers, so that the compiler does not replace them by code of its own.
    unsafe {
        let page = 4096;
        let first = libc::malloc(length).cast::<u8>();
        let second = libc::calloc(1, length).cast::<u8>();
        check(!first.is_null() && !second.is_null(), "malloc");
        check((0..length).all(|at| *second.add(at) == 0), "calloc");
        let memset: unsafe extern "C" fn(*mut c_void, i32, usize) -> *mut c_void = libc::memset;
        let memcpy: unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> *mut c_void = libc::memcpy;
        let memmove: unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> *mut c_void = libc::memmove;
        let memcmp: unsafe extern "C" fn(*const c_void, *const c_void, usize) -> i32 = libc::memcmp;
        let hidden = std::hint::black_box((memset, memcpy, memmove, memcmp));
        (hidden.0)(first.cast(), i32::from(seed) + 1, length);
        (hidden.1)(second.cast(), first.cast(), length);
        check((hidden.3)(first.cast(), second.cast(), length) == 0, "memcpy");
        for at in 0..100 {
            *first.add(at) = at as u8;
        }
        (hidden.2)(first.add(10).cast(), first.cast(), 100);
        check((0..100).all(|at| *first.add(10 + at) == at as u8), "memmove");
        let larger = libc::realloc(first.cast(), 3 * length).cast::<u8>();
        check((0..100).all(|at| *larger.add(10 + at) == at as u8), "realloc");
        libc::free(larger.cast());
        libc::free(second.cast());

        let mut mutex = libc::PTHREAD_MUTEX_INITIALIZER;
        check(libc::pthread_mutex_lock(&raw mut mutex) == 0, "lock");
        check(libc::pthread_mutex_trylock(&raw mut mutex) == libc::EBUSY, "the lock is held");
        check(libc::pthread_mutex_unlock(&raw mut mutex) == 0, "unlock");

        let mut ends = [0; 2];
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) == 0, "pipe");
        let (sent, mut got) = ([seed; 64], [0_u8; 64]);
        check(libc::write(ends[1], sent.as_ptr().cast(), 64) == 64, "write");
        check(libc::read(ends[0], got.as_mut_ptr().cast(), 64) == 64 && got == sent, "read");
        check(libc::close(ends[0]) == 0 && libc::close(ends[1]) == 0, "close");

        let file = libc::memfd_create(c"stress".as_ptr(), libc::MFD_CLOEXEC);
        let sent = [seed ^ 0x5a; 64];
        check(libc::pwrite(file, sent.as_ptr().cast(), 64, 100) == 64, "pwrite");
        check(libc::pread(file, got.as_mut_ptr().cast(), 64, 100) == 64 && got == sent, "pread");
        libc::close(file);

        check(libc::syscall(libc::SYS_getpid) == libc::c_long::from(libc::getpid()), "syscall");
        check(libc::close(-1) == -1 && *libc::__errno_location() == libc::EBADF, "errno");

        let (read, write) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let mapped = libc::mmap(ptr::null_mut(), 2 * page, write, flags, -1, 0);
        check(mapped != libc::MAP_FAILED, "mmap");
        *mapped.cast::<u8>() = seed;
        check(libc::mprotect(mapped, page, read) == 0, "mprotect");
        let moved = libc::mremap(mapped, 2 * page, 4 * page, libc::MREMAP_MAYMOVE);
        // Two mappings cannot be made one.
        let (moved, pages) = if moved == libc::MAP_FAILED { (mapped, 2) } else { (moved, 4) };
        check(*moved.cast::<u8>() == seed, "mremap");
        check(libc::munmap(moved, pages * page) == 0, "munmap");

        let mut action: libc::sigaction = mem::zeroed();
        check(libc::sigaction(libc::SIGWINCH, ptr::null(), &raw mut action) == 0, "sigaction");
        check(action.sa_sigaction == libc::SIG_DFL, "sigaction");
        let length = libc::timespec { tv_sec: 0, tv_nsec: 1 };
        // A reclaim may have to ask a thread that is about to sleep.
        let slept = libc::nanosleep(&raw const length, ptr::null_mut());
        check(slept == 0 || *libc::__errno_location() == libc::EINTR, "nanosleep");
        libc::sched_yield();
    }
}

fn check(is_right: bool, what: &str) {
    if !is_right {
        fail(&format!("{what} does not do what it does: {}", std::io::Error::last_os_error()));
    }
}
