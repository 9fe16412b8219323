//! The tables.

use kdetour::typed::{self, with_process};
use kdetour::{AtomicAddress, Attach, Error, Handle, Protocol};
use std::hint::black_box;
use std::mem::transmute;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

type Function = extern "C" fn(u64) -> u64;

/// Calls in one run, and runs of each way.
const CALLS: u64 = 2_000;
const ROUNDS: usize = 301;
/// How long a target is attached and detached without a pause.
const TOGGLED: Duration = Duration::from_secs(1);

core::arch::global_asm!(
    // 55 | 48 89 e5 | 53
    ".macro bench_target name",
    "    .p2align 6, 0xcc",
    "    .globl \\name",
    "    .seh_proc \\name",
    "\\name:",
    "    push rbp",
    "    .seh_pushreg rbp",
    "    mov rbp, rsp",
    "    push rbx",
    "    .seh_pushreg rbx",
    "    .seh_endprologue",
    "    lea rax, [rcx + 1]",
    "    pop rbx",
    "    pop rbp",
    "    ret",
    "    .seh_endproc",
    ".endm",
    // What one writes by hand: a function that calls the target through a pointer.
    ".macro bench_wrapper name, cell",
    "    .p2align 6, 0xcc",
    "    .globl \\name",
    "    .seh_proc \\name",
    "\\name:",
    "    sub rsp, 40",
    "    .seh_stackalloc 40",
    "    .seh_endprologue",
    "    call qword ptr [rip + \\cell]",
    "    add rsp, 40",
    "    ret",
    "    .seh_endproc",
    ".endm",
    "bench_target bench_bare",
    "bench_target bench_detoured",
    "bench_wrapper bench_floor, {floor}",
    "bench_wrapper bench_detour, {original}",
    floor = sym FLOOR,
    original = sym ORIGINAL,
);

unsafe extern "C" {
    fn bench_bare(of: u64) -> u64;
    fn bench_detoured(of: u64) -> u64;
    fn bench_floor(of: u64) -> u64;
    fn bench_detour(of: u64) -> u64;
}

static FLOOR: AtomicAddress = AtomicAddress::new(0);
static ORIGINAL: AtomicAddress = AtomicAddress::new(0);

fn function(code: unsafe extern "C" fn(u64) -> u64) -> Function {
    // SAFETY: those above do nothing but what their type says.
    unsafe { transmute::<unsafe extern "C" fn(u64) -> u64, Function>(code) }
}

fn address(code: unsafe extern "C" fn(u64) -> u64) -> u64 {
    (code as *const ()).addr() as u64
}

/// Attaches by a protocol, again if it was attached before.
fn attach(by: Protocol, again: Option<Handle>) -> Result<Handle, Error> {
    with_process(|kdetour| {
        let again = again.filter(|&handle| kdetour.record(handle).is_some());
        let attach = Attach {
            target: address(bench_detoured),
            detour: address(bench_detour),
            cell: Some(&ORIGINAL),
            ..Attach::default()
        };
        let session = kdetour.session();
        // SAFETY: both are functions of this program, of one type.
        let session = unsafe {
            match again {
                Some(handle) => session.reattach(handle, 0),
                None => session.attach(attach),
            }
        };
        let handles = match by {
            Protocol::Live => session.commit_live(&mut |_, _| ()),
            Protocol::Rendezvous => session.commit_rendezvous(&mut |_, _| ()),
            _ => session.commit_exchange(&mut |_, _| ()),
        };
        handles.map(|handles| handles[0]).map_err(|failed| failed.error)
    })
}

fn detach(by: Protocol, handle: Handle) -> Result<(), Error> {
    with_process(|kdetour| {
        let session = kdetour.session().detach(handle);
        let done = match by {
            Protocol::Live => session.commit_live(&mut |_, _| ()),
            Protocol::Rendezvous => session.commit_rendezvous(&mut |_, _| ()),
            _ => session.commit_exchange(&mut |_, _| ()),
        };
        done.map(drop).map_err(|failed| failed.error)
    })
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// Prints all tables.
pub(crate) fn all() {
    calls();
    alone();
    for callers in [0, 1, 2] {
        for by in [Protocol::Exchange, Protocol::Live, Protocol::Rendezvous] {
            toggled(by, callers);
        }
    }
}

fn calls() {
    FLOOR.store(address(bench_bare), Ordering::Release);
    let handle = attach(Protocol::Exchange, None).expect("attaches");
    let ways = [
        ("bare", function(bench_bare)),
        ("floor: a wrapper that calls through a pointer", function(bench_floor)),
        ("kdetour: target, relay, detour, trampoline", function(bench_detoured)),
    ];
    let mut all = ways.map(|_| Vec::with_capacity(ROUNDS));
    for _ in 0..ROUNDS {
        for ((_, call), times) in ways.iter().zip(&mut all) {
            let begin = Instant::now();
            for of in 0..CALLS {
                assert_eq!(black_box(call)(black_box(of)), of + 1);
            }
            times.push(begin.elapsed().as_secs_f64() * 1e9 / CALLS as f64);
        }
    }
    for ((name, _), times) in ways.iter().zip(all) {
        println!("bench call, {name}: {:.2} ns", median(times));
    }
    detach(Protocol::Exchange, handle).expect("detaches");
    typed::reclaim(Duration::from_secs(10)).expect("nobody is inside");
}

/// One attach, one detach, one reclaim, beside nobody.
fn alone() {
    let mut all = [const { Vec::new() }; 3];
    for _ in 0..200 {
        let begin = Instant::now();
        let handle = attach(Protocol::Exchange, None).expect("attaches");
        let attached = begin.elapsed();
        detach(Protocol::Exchange, handle).expect("detaches");
        let detached = begin.elapsed();
        typed::reclaim(Duration::from_secs(10)).expect("nobody is inside");
        let parts = [attached, detached - attached, begin.elapsed() - detached];
        for (times, part) in all.iter_mut().zip(parts) {
            times.push(part.as_secs_f64() * 1e6);
        }
    }
    for (name, times) in ["attach", "detach", "reclaim"].iter().zip(all) {
        println!("bench one {name}, alone: {:.1} us", median(times));
    }
}

/// Attached and detached without a pause, while others call.
fn toggled(by: Protocol, callers: usize) {
    let (done, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut handle = None;
    let (mut toggles, mut refused) = (0_u64, 0_u64);
    let mut length = Duration::ZERO;
    thread::scope(|scope| {
        for _ in 0..callers {
            scope.spawn(|| {
                let call = function(bench_detoured);
                while !done.load(Ordering::Relaxed) {
                    for of in 0..64 {
                        assert_eq!(black_box(call)(of), of + 1);
                    }
                    calls.fetch_add(64, Ordering::Relaxed);
                }
            });
        }
        while callers > 0 && calls.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        let begin = Instant::now();
        while begin.elapsed() < TOGGLED {
            match attach(by, handle) {
                Ok(attached) => handle = Some(attached),
                // A rendezvous gives up where somebody will return into the window.
                Err(Error::ThreadInWindow { .. } | Error::ThreadNotReached { .. }) => {
                    refused += 1;
                    continue;
                }
                Err(error) => panic!("{error}"),
            }
            while let Some(handle) = handle {
                match detach(by, handle) {
                    Ok(()) => break,
                    Err(Error::ThreadInWindow { .. } | Error::ThreadNotReached { .. }) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            toggles += 1;
        }
        length = begin.elapsed();
        done.store(true, Ordering::Relaxed);
    });
    println!(
        "bench toggles by {}, beside {callers} callers: {:.0} /s ({refused} refused)",
        by.name(),
        toggles as f64 / length.as_secs_f64()
    );
    typed::reclaim(Duration::from_secs(10)).expect("nobody is inside");
}
