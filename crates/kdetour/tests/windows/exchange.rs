//! Bytes of several pages change at one moment, or not at all.

use crate::support::{By, attach, busy_address, function, put, targets, text, under_calls, watched, with};
use kdetour::Error;
use kdetour::commit::Exchange;
use kdetour::plan::{Refusal, Shape};
use std::cell::Cell;
use std::ptr;
use std::time::Instant;
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_DECOMMIT, MEM_RELEASE, MEM_RESERVE, MEMORY_BASIC_INFORMATION, PAGE_EXECUTE_READ,
    PAGE_NOACCESS, PAGE_READWRITE, VirtualAlloc, VirtualFree, VirtualProtect, VirtualQuery,
};

/// Bytes of a page.
const PAGE: usize = 4096;
/// Where each function begins in its page: its first instruction, and no other, reaches into the next page.
const AT: usize = PAGE - 3;
/// Where the number begins that it answers.
const NUMBER: usize = AT + 1;

/// Pages of code: at the end of each but the last begins `mov eax, NUMBER; ret`.
struct Code {
    base: usize,
    functions: usize,
}

impl Code {
    fn new(functions: usize) -> Self {
        let len = (functions + 1) * PAGE;
        // SAFETY: memory of our own.
        let base = unsafe { VirtualAlloc(ptr::null(), len, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE) };
        let code = Self { base: base.addr(), functions };
        for page in 0..functions {
            let to = ptr::with_exposed_provenance_mut::<[u8; 6]>(base.expose_provenance() + page * PAGE + AT);
            // SAFETY: within it.
            unsafe { to.write([0xb8, 0, 0, 0, 0, 0xc3]) };
        }
        code.protect(0, functions + 1, PAGE_EXECUTE_READ);
        code
    }

    fn protect(&self, page: usize, count: usize, protection: u32) {
        let at = ptr::with_exposed_provenance(self.base + page * PAGE);
        // SAFETY: pages of ours.
        assert_ne!(unsafe { VirtualProtect(at, count * PAGE, protection, &mut 0) }, 0);
    }

    /// What the function in a page answers now.
    fn call(&self, page: usize) -> u32 {
        function((self.base + page * PAGE + AT) as u64)(0, 0) as u32
    }

    /// The writes by which all of them answer these bytes.
    fn writes<'a>(&self, number: &'a [u8; 4]) -> Vec<(u64, &'a [u8])> {
        (0..self.functions).map(|page| ((self.base + page * PAGE + NUMBER) as u64, &number[..])).collect()
    }

    fn protections(&self) -> Vec<u32> {
        (0..=self.functions)
            .map(|page| {
                let mut found = MEMORY_BASIC_INFORMATION::default();
                let at = ptr::without_provenance(self.base + page * PAGE);
                // SAFETY: fills the structure.
                assert_ne!(unsafe { VirtualQuery(at, &raw mut found, size_of_val(&found)) }, 0);
                found.Protect
            })
            .collect()
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        // SAFETY: nobody runs there any more.
        unsafe { VirtualFree(ptr::with_exposed_provenance_mut(self.base), 0, MEM_RELEASE) };
    }
}

/// Nobody sees half of an instruction, nor an old function once he has seen a new one, in whatever order he comes by.
#[test]
fn all_at_one_moment() {
    const FUNCTIONS: usize = 7;
    const ROUNDS: u8 = 200;
    thread_local! {
        static SEEN: Cell<(u8, usize)> = const { Cell::new((0, 0)) };
    }
    with(|kdetour| {
        let code = Code::new(FUNCTIONS);
        let call = || {
            let (before, step) = SEEN.get();
            let answer = code.call(step * 3 % FUNCTIONS).to_le_bytes();
            assert_eq!(answer, [answer[0]; 4], "torn");
            assert!(answer[0] >= before, "{} behind {before}", answer[0]);
            SEEN.set((answer[0], step + 1));
        };
        let begin = Instant::now();
        watched((code.base + AT) as u64, |_| {
            under_calls(call, || {
                for round in 1..=ROUNDS {
                    let number = [round; 4];
                    let writes = code.writes(&number);
                    let prepared = kdetour.host().prepare(&writes).unwrap();
                    kdetour.host().exchange(prepared).unwrap();
                    assert_eq!(code.call(round as usize % FUNCTIONS).to_le_bytes(), number);
                }
            });
        });
        println!("{ROUNDS} exchanges of {} pages in {:?}", FUNCTIONS + 1, begin.elapsed());
        assert_eq!(code.protections(), [PAGE_EXECUTE_READ; FUNCTIONS + 1]);
    });
}

/// A page that is gone when it is to be written: those before it and behind it stay as they were.
#[test]
fn nothing_is_replaced_if_one_page_cannot_be() {
    const FUNCTIONS: usize = 4;
    with(|kdetour| {
        for gone in 0..=FUNCTIONS {
            let code = Code::new(FUNCTIONS);
            let number = [7; 4];
            let writes = code.writes(&number);
            let prepared = kdetour.host().prepare(&writes).unwrap();
            let at = ptr::with_exposed_provenance_mut(code.base + gone * PAGE);
            // SAFETY: a page of ours, where nobody runs.
            assert_ne!(unsafe { VirtualFree(at, PAGE, MEM_DECOMMIT) }, 0);
            let failed = kdetour.host().exchange(prepared).unwrap_err();
            assert!(matches!(failed, Error::Host(status) if status < 0), "{failed:?}");
            for page in (0..FUNCTIONS).filter(|&page| page != gone && page + 1 != gone) {
                assert_eq!(code.call(page), 0);
            }
            let others = code.protections().into_iter().enumerate().filter(|&(page, _)| page != gone);
            assert!(others.into_iter().all(|(_, protection)| protection == PAGE_EXECUTE_READ));
        }
    });
}

#[test]
fn what_cannot_be_exchanged_is_refused() {
    with(|kdetour| {
        let code = Code::new(1);
        code.protect(1, 1, PAGE_NOACCESS);
        let number = [7; 4];
        let writes = code.writes(&number);
        let address = (code.base + PAGE) as u64;
        assert_eq!(kdetour.host().prepare(&writes).unwrap_err(), Error::Unreadable { address });
        code.protect(1, 1, PAGE_EXECUTE_READ);
        assert_eq!(code.call(0), 0);

        let before = text(kdetour, busy_address());
        for shape in [Shape::Jump5, Shape::Jump14] {
            let failed = put(kdetour, By::Exchange, attach(busy_address(), Some(shape))).unwrap_err();
            let refusal = Refusal::NoShape { address: busy_address() };
            assert_eq!(failed.error, Error::Refused(refusal), "{shape:?}");
        }
        assert_eq!(text(kdetour, busy_address()), before);
    });
}

/// A set of several targets.
#[test]
fn a_set() {
    with(|kdetour| {
        let before = targets().map(|target| text(kdetour, target));
        let call = || {
            for target in targets() {
                let answer = function(target)(7, 3);
                assert!(answer == 10 || answer == 1010 || answer == 2010, "{answer}");
            }
        };
        under_calls(call, || {
            for _ in 0..20 {
                let mut session = kdetour.session();
                for target in targets() {
                    // SAFETY: functions of this type, of this program.
                    session = unsafe {
                        session.attach(kdetour::Attach {
                            cell: None,
                            detour: answer(),
                            ..attach(target, None)
                        })
                    };
                }
                let handles = session.commit_exchange(&mut |_, _| ()).unwrap();
                assert!(targets().iter().all(|&target| function(target)(7, 3) == 1010));
                let session =
                    handles.iter().fold(kdetour.session(), |session, &handle| session.detach(handle));
                session.commit_exchange(&mut |_, _| ()).unwrap();
                kdetour.drain(&handles, Instant::now() + std::time::Duration::from_secs(20)).unwrap();
            }
        });
        assert_eq!(targets().map(|target| text(kdetour, target)), before);
        assert!(kdetour.is_empty());
    });
}

fn answer() -> u64 {
    extern "C" fn answer(one: usize, other: usize) -> usize {
        1000 + one + other
    }
    (answer as *const ()).addr() as u64
}
