//! The host on a simulated NT: its code is executed, so it is that of this processor.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod attach;
mod counted;
mod drain;
mod failing;
mod images;
mod memory;
mod refusals;
mod rules;
mod simulated;

use super::{By, WindowsKernel};
use crate::commit::Preempted;
use crate::host::windows_kernel::nt::Module;
use crate::{AtomicAddress, Attach, Error, Handle, Kdetour};
use images::{CODE, DATA, DISCARDABLE, code, detour, load, pdata, room, section};
use memory::Memory;
use simulated::{Body, Running, Simulated};
use std::alloc::{GlobalAlloc, Layout, System};
use std::boxed::Box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use std::vec::Vec;

/// The allocator of these tests, which tells who takes memory where that is forbidden.
struct Watched;

// SAFETY: the system's, and a note.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        simulated::note_memory();
        if simulated::is_missing() {
            return core::ptr::null_mut();
        }
        // SAFETY: by the caller's word.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        simulated::note_memory();
        // SAFETY: by the caller's word.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Processors of a machine that is busy take long.
const PATIENCE: Duration = Duration::from_secs(60);
const PAGE: u64 = 4096;

/// A machine with a kernel, a driver whose functions are detoured, and our own.
struct World {
    kdetour: Kdetour<WindowsKernel<Simulated>>,
    target: Module,
    own: Module,
    counter: &'static AtomicU32,
    original: &'static AtomicAddress,
    results: Arc<[AtomicU64; 64]>,
    running: Running,
}

/// What every processor does meanwhile: calls a function, and counts what it gives.
fn caller(address: u64, results: &Arc<[AtomicU64; 64]>) -> Body {
    let results = Arc::clone(results);
    Arc::new(move |_| {
        let found = call(address);
        results[(found % 64) as usize].fetch_add(1, Ordering::SeqCst);
    })
}

/// Calls a function of the simulated kernel.
fn call(address: u64) -> u32 {
    let address = core::ptr::with_exposed_provenance::<()>(usize::try_from(address).unwrap());
    // SAFETY: code of this type is there, which is patched as the host promises.
    let function = unsafe { core::mem::transmute::<*const (), extern "sysv64" fn() -> u32>(address) };
    function()
}

impl World {
    /// With so many processors in each group.
    fn new(groups: &[u8]) -> Self {
        let memory = Memory::new(64);
        let base = memory.base();
        let kernel = load(&memory, 0, "ntoskrnl.exe", &[section(".text", CODE, &code())], [(0, 0); 3]);
        let sections = [
            section(".text", CODE, &code()),
            section(".pdata", DATA, &pdata(0x2000, 0x1000)),
            section("PAGE", CODE, &code()),
            section("INIT", CODE | DISCARDABLE, &code()),
            section(".rsrc", CODE | DISCARDABLE, &code()),
            section(".data", DATA, &[7; 64]),
        ];
        let target = load(
            &memory,
            8,
            "target.sys",
            &sections,
            [(0, 0), (0x2000, 12 * images::FUNCTIONS.len() as u32), (0, 0)],
        );
        let counter: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(0)));
        let original: &'static AtomicAddress = Box::leak(Box::new(AtomicAddress::new(0)));
        let address = |place: *const ()| place.expose_provenance() as u64;
        let ours = detour(
            address(core::ptr::from_ref(counter).cast()),
            address(core::ptr::from_ref(original).cast()),
        );
        let sections = [section(".text", CODE, &ours), section(".kdslot", CODE, &[0xcc; 4096])];
        let own = load(&memory, 24, "own.sys", &sections, [(0, 0); 3]);
        let results: Arc<[AtomicU64; 64]> = Arc::new([const { AtomicU64::new(0) }; 64]);
        let body = caller(base + 9 * PAGE + images::WHOLE, &results);
        let modules = std::vec![kernel, target.clone(), own.clone()];
        let running = Running::start(memory, modules, groups, &body);
        let mut host = WindowsKernel::new(running.nt.clone(), room(&own)).unwrap();
        host.set_patience(PATIENCE);
        Self { kdetour: Kdetour::new(host), target, own, counter, original, results, running }
    }

    fn function(&self, offset: u64) -> u64 {
        self.target.base + PAGE + offset
    }

    fn attach_of(&self, target: u64) -> Attach {
        Attach {
            target,
            detour: self.own.base + PAGE,
            in_flight: core::ptr::from_ref(self.counter).expose_provenance() as u64,
            cell: Some(self.original),
            ..Attach::default()
        }
    }

    fn commit(&mut self, attach: Attach, by: By, accepted: Option<&Preempted>) -> Result<Handle, Error> {
        // SAFETY: what is detoured and the detour are of one type, and stay.
        let session = unsafe { self.kdetour.session().attach(attach) };
        let handles = session.commit_parked(by, accepted, &mut |_, _| ()).map_err(|failed| failed.error)?;
        Ok(handles[0])
    }

    fn attach(&mut self, target: u64, by: By) -> Result<Handle, Error> {
        self.commit(self.attach_of(target), by, None)
    }

    fn detach(&mut self, handle: Handle, by: By) -> Result<Vec<Handle>, Error> {
        let session = self.kdetour.session().detach(handle);
        session.commit_parked(by, None, &mut |_, _| ()).map_err(|failed| failed.error)
    }

    fn memory(&self) -> &Memory {
        &self.running.nt.0.memory
    }

    /// The text but for the slots.
    fn text(&self) -> Vec<u8> {
        let mut all = self.memory().all();
        let room = room(&self.own);
        let start = usize::try_from(room.address - self.memory().base()).unwrap();
        all[start..start + room.len].fill(0);
        all
    }

    /// What the processors' calls have given since the last time.
    fn results(&self) -> Vec<(usize, u64)> {
        let counts = self.results.iter().map(|count| count.swap(0, Ordering::SeqCst)).enumerate();
        counts.filter(|&(_, count)| count > 0).collect()
    }

    /// Waits until every processor has called once more since, and gives what that gave.
    fn fresh_results(&self, processors: usize) -> Vec<(usize, u64)> {
        // Whoever was in a call when the last commit ended has come back by then.
        for _ in 0..2 {
            self.results();
            while self.results.iter().map(|count| count.load(Ordering::SeqCst)).sum::<u64>()
                < 3 * processors as u64
            {
                std::thread::yield_now();
            }
        }
        self.results()
    }
}
