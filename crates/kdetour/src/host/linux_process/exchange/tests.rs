use super::scratch::*;
use super::*;
use crate::host::linux_process::fork::tests::in_child;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use rustix::mm::{MapFlags, mmap, mmap_anonymous, munmap};
use std::format;
use std::io::Write as _;
use std::time::Instant;
use std::vec;

const LEN: usize = PAGE as usize;

core::arch::global_asm!(
    ".pushsection .text.exchanged, \"ax\", @progbits",
    ".balign 4096",
    ".skip 4093, 0xcc",
    "kdetour_test_exchanged: mov eax, 0x11111111",
    "ret",
    ".balign 4096, 0xcc",
    ".popsection",
);

/// Pages of code, as a program's text is mapped.
struct Text {
    base: u64,
    pages: usize,
    path: Option<std::path::PathBuf>,
}

impl Text {
    /// Of a file, which has 0xc3 (`ret`) everywhere but for what `code` says.
    fn of_file(pages: usize, code: &[(usize, &[u8])]) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("kdetour-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        let mut bytes = vec![0xc3; pages * LEN];
        for &(at, code) in code {
            bytes[at..at + code.len()].copy_from_slice(code);
        }
        std::fs::File::create_new(&path).unwrap().write_all(&bytes).unwrap();
        let file = opened(path.to_str().unwrap()).unwrap().0;
        let protection = ProtFlags::READ | ProtFlags::EXEC;
        let (len, flags) = (bytes.len(), MapFlags::PRIVATE);
        // SAFETY: the kernel chooses the place.
        let base = unsafe { mmap(ptr::null_mut(), len, protection, flags, &file, 0) }.unwrap();
        Self { base: base.expose_provenance() as u64, pages, path: Some(path) }
    }

    fn anonymous(pages: usize) -> Self {
        Self::with(pages, ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE)
    }

    fn with(pages: usize, protection: ProtFlags, flags: MapFlags) -> Self {
        // SAFETY: the kernel chooses the place.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), pages * LEN, protection, flags) }.unwrap();
        Self { base: base.expose_provenance() as u64, pages, path: None }
    }

    fn at(&self, offset: usize) -> u64 {
        self.base + offset as u64
    }

    fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        Memory::open().unwrap().read(self.at(offset), &mut bytes).unwrap();
        bytes
    }

    fn remove_file(&mut self) {
        std::fs::remove_file(self.path.take().unwrap()).unwrap();
    }

    /// How many mappings it consists of, which all must be `r-xp`, and whether all are of its file.
    fn mappings(&self) -> (usize, bool) {
        let mappings = Mappings::read().unwrap();
        let end = self.base + (self.pages * LEN) as u64;
        let all: Vec<_> = mappings.within(self.base, end).collect();
        assert!(all.iter().all(|one| one.readable && one.executable && !one.writable && !one.shared));
        // The kernel may have joined it with what lies beside it.
        let covered: u64 = all.iter().map(|one| one.end.min(end) - one.start.max(self.base)).sum();
        assert_eq!(covered, end - self.base, "pages are missing");
        let path = self.path.as_ref().map(|path| path.to_str().unwrap().as_bytes());
        let named = |one: &&Mapping| path.is_some_and(|path| one.path == path);
        (all.len(), all.iter().all(named))
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        // SAFETY: it was mapped for this, and the threads that ran there have ended.
        let _ = unsafe { munmap(pointer(self.base), self.pages * LEN) };
        if self.path.is_some() {
            self.remove_file();
        }
    }
}

/// Both ways in which pages are filled.
fn both() -> [Memory; 2] {
    let memory = Memory::open().unwrap();
    assert!(memory.can_write());
    [memory, Memory::without_file()]
}

#[test]
fn bytes_change_and_the_mapping_stays() {
    for memory in both() {
        let text = Text::of_file(5, &[]);
        let at = LEN - 2;
        exchange(&memory, &[(text.at(3 * LEN + 7), &[9]), (text.at(at), &[1, 2, 3, 4])]).unwrap();
        assert_eq!(text.bytes(at - 1, 6), [0xc3, 1, 2, 3, 4, 0xc3]);
        assert_eq!(text.bytes(3 * LEN + 6, 3), [0xc3, 9, 0xc3]);
        assert!(text.mappings().1);
        // Back again, also where the new bytes were written by other means.
        let back = [0xc3; 4];
        exchange(&memory, &[(text.at(at), &back), (text.at(3 * LEN + 7), &back)]).unwrap();
        assert_eq!(text.bytes(0, 5 * LEN), vec![0xc3; 5 * LEN]);
        assert!(text.mappings().1);
    }
}

#[test]
fn what_others_wrote_stays() {
    for memory in both() {
        let text = Text::of_file(1, &[]);
        let writer = Memory::open().unwrap();
        writer.write(text.at(100), &[7]).unwrap();
        let bytes = [1];
        let writes = [(text.at(0), &bytes[..])];
        let exchange = Exchange::prepare(&memory, &writes).unwrap();
        writer.write(text.at(200), &[8]).unwrap();
        exchange.commit().unwrap();
        assert_eq!([0, 100, 200, 300].map(|at| text.bytes(at, 1)[0]), [1, 7, 8, 0xc3]);
    }
}

#[test]
fn nothing_is_written_before_the_commit() {
    for memory in both() {
        let text = Text::of_file(2, &[]);
        let lines = Mappings::read().unwrap().within(text.base, text.at(2 * LEN)).count();
        drop(Exchange::prepare(&memory, &[(text.at(5), &[1][..])]).unwrap());
        assert_eq!(text.bytes(0, 2 * LEN), vec![0xc3; 2 * LEN]);
        assert_eq!(text.mappings(), (lines, true));
    }
}

#[test]
fn scattered_pages_are_moved_at_once() {
    let memory = Memory::open().unwrap();
    let text = Text::of_file(400, &[]);
    // A copy in between is kept.
    memory.write(text.at(6 * LEN), &[7]).unwrap();
    let writes: Vec<Write<'_>> =
        (0..400).step_by(4).map(|page| (text.at(page * LEN + 5), &[1][..])).collect();
    let exchange = Exchange::prepare(&memory, &writes).unwrap();
    assert_eq!(exchange.groups.len(), 1);
    // And one that comes later, too.
    memory.write(text.at(7 * LEN), &[8]).unwrap();
    exchange.commit().unwrap();
    let (count, named) = text.mappings();
    assert!(count <= 3 && named, "{count} mappings");
    for page in 0..400 {
        let expected = match page {
            6 => [7, 0xc3],
            7 => [8, 0xc3],
            _ if page % 4 == 0 => [0xc3, 1],
            _ => [0xc3, 0xc3],
        };
        assert_eq!([0, 5].map(|at| text.bytes(page * LEN + at, 1)[0]), expected, "page {page}");
    }
}

#[test]
fn what_is_moved_is_one_mapping() {
    for memory in both() {
        for text in [Text::of_file(40, &[]), Text::anonymous(40)] {
            let writes = [1, 2, 9, 10, 30].map(|page| (text.at(page * LEN + 5), &[1][..]));
            let exchange = Exchange::prepare(&memory, &writes).unwrap();
            let mappings = Mappings::read().unwrap();
            for group in &exchange.groups {
                let scratch = group.scratch.as_ref().unwrap();
                let mapping = mappings.of(scratch.base).unwrap();
                assert!(mapping.executable && !mapping.writable);
                assert!(scratch.base + scratch.len as u64 <= mapping.end);
            }
            exchange.commit().unwrap();
            assert!([1, 2, 9, 10, 30].iter().all(|page| text.bytes(page * LEN + 5, 1) == [1]));
        }
    }
}

#[test]
fn pages_that_are_as_in_the_file_are_no_copies() {
    for memory in both() {
        let text = Text::of_file(3, &[]);
        let count = || {
            let (pagemap, _) = opened(c"/proc/thread-self/pagemap").unwrap();
            let mut count = 0;
            let mut copy = |_| {
                count += 1;
                Ok(())
            };
            copies(Some(&pagemap), text.base, text.at(3 * LEN), &mut copy).unwrap();
            count
        };
        exchange(&memory, &[(text.at(LEN - 1), &[1, 2])]).unwrap();
        assert_eq!(count(), 2);
        exchange(&memory, &[(text.at(LEN - 1), &[0xc3, 0xc3])]).unwrap();
        assert_eq!((count(), text.bytes(0, 3 * LEN)), (0, vec![0xc3; 3 * LEN]));
    }
}

#[test]
fn scratch_mappings_are_given_back() {
    let memory = Memory::open().unwrap();
    let text = Text::of_file(64, &[]);
    let of_file = || {
        let path = text.path.as_ref().unwrap().to_str().unwrap().as_bytes().to_vec();
        let mappings = Mappings::read().unwrap();
        let of_file = mappings.iter().filter(|one| one.path == path);
        of_file.map(|one| one.end - one.start).sum::<u64>()
    };
    assert_eq!(of_file(), 64 * PAGE);
    exchange(&memory, &[(text.at(1), &[1]), (text.at(50 * LEN), &[2])]).unwrap();
    assert_eq!(of_file(), 64 * PAGE);
}

#[test]
fn a_deleted_file_and_no_file() {
    for memory in both() {
        let mut deleted = Text::of_file(3, &[]);
        deleted.remove_file();
        for text in [deleted, Text::anonymous(3)] {
            let before = text.bytes(0, 1)[0];
            // Twice: the second one straddles what may have become two kinds of memory.
            exchange(&memory, &[(text.at(LEN + 1), &[1])]).unwrap();
            exchange(&memory, &[(text.at(LEN - 1), &[2, 3])]).unwrap();
            exchange(&memory, &[(text.at(0), &[4])]).unwrap();
            assert_eq!(text.bytes(LEN - 2, 5), [before, 2, 3, 1, before]);
            assert_eq!(text.bytes(0, 2), [4, before]);
            text.mappings();
        }
    }
}

#[test]
fn a_replaced_file_is_not_taken() {
    let memory = Memory::open().unwrap();
    let text = Text::of_file(2, &[]);
    let path = text.path.as_ref().unwrap();
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, vec![0; 2 * LEN]).unwrap();
    exchange(&memory, &[(text.at(9), &[1])]).unwrap();
    // Where the new file's page was mapped, giving the bytes back would show its zeros.
    exchange(&memory, &[(text.at(9), &[0xc3])]).unwrap();
    assert_eq!(text.bytes(0, 2 * LEN), vec![0xc3; 2 * LEN]);
}

#[test]
fn what_cannot_be_exchanged_is_refused() {
    let read = ProtFlags::READ | ProtFlags::EXEC;
    let shared = Text::with(1, read, MapFlags::SHARED);
    let writable = Text::with(1, read | ProtFlags::WRITE, MapFlags::PRIVATE);
    let mappings = Mappings::read().unwrap();
    let vdso = mappings.iter().find(|mapping| mapping.path == b"[vdso]").unwrap().start;
    let good = Text::of_file(1, &[]);
    for address in [shared.at(0), writable.at(0), vdso] {
        for memory in both() {
            let failed = exchange(&memory, &[(good.at(0), &[1]), (address, &[1])]);
            assert_eq!(failed, Err(Failed { error: Error::NotExchangeable { address }, written: false }));
        }
    }
    let failed = exchange(&Memory::open().unwrap(), &[(good.at(LEN - 1), &[1]), (16, &[1])]);
    assert_eq!(failed.unwrap_err().error, Error::Unreadable { address: 0 });
    assert_eq!(good.bytes(0, LEN), vec![0xc3; LEN]);
}

#[test]
fn sealed_pages_are_refused_before_anything_is_written() {
    const MSEAL: libc::c_long = 462;
    // Two mappings, the higher one sealed.
    let text = Text::anonymous(3);
    let sealed = text.at(2 * LEN);
    // SAFETY: this is the middle of what was mapped for this test.
    unsafe { munmap(pointer(text.at(LEN)), LEN) }.unwrap();
    // SAFETY: this forbids changes of what was mapped for this test.
    if unsafe { libc::syscall(MSEAL, pointer(sealed), LEN, 0_usize) } != 0 {
        // Before Linux 6.10 nothing is sealed, nor is what a 32-bit process has.
        let error = std::io::Error::last_os_error().raw_os_error();
        assert!(error == Some(libc::ENOSYS) || cfg!(target_pointer_width = "32"), "{error:?}");
        return;
    }
    for memory in both() {
        let failed = exchange(&memory, &[(text.at(0), &[1]), (sealed, &[1])]);
        let error = Error::NotExchangeable { address: sealed };
        assert_eq!(failed, Err(Failed { error, written: false }));
    }
    assert_eq!((text.bytes(0, 1), text.bytes(2 * LEN, 1)), (vec![0], vec![0]));
}

#[test]
fn what_fails_in_the_middle_is_taken_back() {
    for memory in both() {
        let first = Text::of_file(3, &[]);
        let second = Text::of_file(1, &[]);
        let mut writes = [(first.at(LEN), &[1][..]), (second.at(0), &[2][..])];
        writes.sort_unstable();
        let exchange = Exchange::prepare(&memory, &writes).unwrap();
        let (lower, higher) = if first.base < second.base { (&first, &second) } else { (&second, &first) };
        // SAFETY: it was mapped for this test, and nothing runs there.
        unsafe { munmap(pointer(higher.base), higher.pages * LEN) }.unwrap();
        let failed = exchange.commit().unwrap_err();
        assert!(matches!(failed, Failed { error: Error::Unreadable { .. }, written: true }), "{failed:?}");
        assert_eq!(lower.bytes(0, lower.pages * LEN), vec![0xc3; lower.pages * LEN]);
        assert!(lower.mappings().1);
    }
}

#[test]
fn too_many_mappings_are_found_before() {
    let text = Text::anonymous(12);
    let memory = Memory::open().unwrap();
    // In a child, since all others would starve.
    assert!(in_child(|| {
        let memory = Memory::open().unwrap();
        let protections = [ProtFlags::READ, ProtFlags::empty()].into_iter().cycle();
        let place = |protection| {
            // SAFETY: the kernel chooses the place.
            unsafe { mmap_anonymous(ptr::null_mut(), LEN, protection, MapFlags::PRIVATE) }
        };
        let mapped: Vec<_> = protections.take(1 << 20).map_while(|one| place(one).ok()).collect();
        // With little room the first exchange would succeed, and the second one not.
        (1000..1 << 20).contains(&mapped.len())
            && mapped.iter().rev().take(12).all(|&place| {
                let failed = exchange(&memory, &[(text.at(LEN), &[1]), (text.at(9 * LEN), &[1])]);
                // SAFETY: it was mapped above.
                unsafe { munmap(place, LEN) }.unwrap();
                // A single one succeeds or changes nothing, too.
                let single = exchange(&memory, &[(text.at(LEN), &[0])]);
                let out_of_memory = Err(Failed { error: Error::OutOfMemory, written: false });
                failed == out_of_memory
                    && (single == out_of_memory || single.is_ok())
                    && memory.read(text.at(0), &mut [0; 12 * LEN]).is_ok()
            })
    }));
    exchange(&memory, &[(text.at(LEN), &[1])]).unwrap();
}

/// `mov eax, value; ret`.
fn returning(value: u32) -> [u8; 6] {
    let [a, b, c, d] = value.to_le_bytes();
    [0xb8, a, b, c, d, 0xc3]
}

/// Threads call functions, one of them across a page border, while the pages are exchanged.
fn stress(memory: &Memory, text: &Text, places: &[usize], threads: usize, time: Duration) {
    const OLD: u32 = 0x1111_1111;
    const NEW: u32 = 0xeeee_eeee;
    let stop = AtomicBool::new(false);
    let calls = AtomicU64::new(0);
    let seen_new = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for number in 0..threads {
            let (stop, calls, seen_new) = (&stop, &calls, &seen_new);
            let place = text.at(places[number % places.len()]);
            scope.spawn(move || {
                let code = ptr::with_exposed_provenance::<()>(place as usize);
                // SAFETY: there are the instructions of such a function, whatever number it returns.
                let function: extern "C" fn() -> u32 = unsafe { core::mem::transmute(code) };
                while !stop.load(Relaxed) {
                    for _ in 0..1000 {
                        match function() {
                            OLD => {}
                            NEW => _ = seen_new.fetch_add(1, Relaxed),
                            other => panic!("{other:#x} is neither old nor new"),
                        }
                    }
                    calls.fetch_add(1000, Relaxed);
                }
            });
        }
        let begin = Instant::now();
        let mut exchanges = 0_u64;
        while begin.elapsed() < time || seen_new.load(Relaxed) == 0 || exchanges <= 2 {
            assert!(begin.elapsed() < time + Duration::from_secs(60), "nobody ran the new code");
            for value in [NEW, OLD] {
                let code = returning(value);
                let writes: Vec<Write<'_>> = places.iter().map(|&at| (text.at(at), &code[..])).collect();
                exchange(memory, &writes).unwrap();
                exchanges += 1;
                std::thread::sleep(Duration::from_micros(3));
            }
        }
        stop.store(true, Relaxed);
        std::println!("{threads} threads, {exchanges} exchanges, {} calls", calls.load(Relaxed));
    });
}

#[test]
fn running_threads_see_old_or_new_bytes() {
    let seconds = std::env::var("KDETOUR_STRESS_SECONDS").ok().and_then(|text| text.parse().ok());
    let time = seconds.map_or(Duration::from_millis(150), Duration::from_secs);
    let code = returning(0x1111_1111);
    let places = [64, LEN - 3, 2 * LEN - 1, 4 * LEN - 5];
    for memory in both() {
        for threads in [2, 8] {
            let text = Text::of_file(6, &places.map(|at| (at, &code[..])));
            stress(&memory, &text, &places, threads, time);
            assert!(text.mappings().1);
            let text = Text::anonymous(6);
            exchange(&memory, &places.map(|at| (text.at(at), &code[..]))).unwrap();
            stress(&memory, &text, &places, threads, time / 2);
        }
    }
}

#[test]
fn a_programs_own_text() {
    unsafe extern "C" {
        fn kdetour_test_exchanged() -> u32;
    }
    let address = (kdetour_test_exchanged as unsafe extern "C" fn() -> u32 as *const ()).addr() as u64;
    assert_eq!(address % PAGE, 4093);
    let memory = Memory::open().unwrap();
    let path = |memory: &Mappings| memory.of(address).unwrap().path.clone();
    let before = path(&Mappings::read().unwrap());
    exchange(&memory, &[(address, &returning(5))]).unwrap();
    // SAFETY: it returns a number, and does nothing else.
    assert_eq!(unsafe { kdetour_test_exchanged() }, 5);
    assert_eq!(path(&Mappings::read().unwrap()), before);
    exchange(&memory, &[(address, &returning(0x1111_1111))]).unwrap();
    // SAFETY: it returns a number, and does nothing else.
    assert_eq!(unsafe { kdetour_test_exchanged() }, 0x1111_1111);
}

#[test]
#[ignore = "measures"]
fn speed() {
    let lines = || Mappings::read().unwrap().iter().count();
    for memory in both() {
        let text = Text::of_file(4000, &[]);
        let mut byte = [0; 1];
        (0..4000).for_each(|page| memory.read(text.at(page * LEN), &mut byte).unwrap());
        std::println!("can_write {}: {} mappings", memory.can_write(), lines());
        for value in [[1; 5], [0xc3; 5]] {
            let one = (0..1000_u64).map(|_| {
                let begin = Instant::now();
                exchange(&memory, &[(text.at(9), &value)]).unwrap();
                begin.elapsed()
            });
            let mut one: Vec<_> = one.collect();
            one.sort_unstable();
            std::println!("one page, again and again: median {:?}, {} mappings", one[500], lines());
        }
        for step in [1, 4, 100] {
            for value in [[1; 5], [0xc3; 5]] {
                let at = (0..1000).map(|number| number * step * LEN + 9).filter(|&at| at < 4000 * LEN);
                let writes: Vec<Write<'_>> = at.map(|at| (text.at(at), &value[..])).collect();
                let begin = Instant::now();
                let prepared = Exchange::prepare(&memory, &writes).unwrap();
                let between = begin.elapsed();
                prepared.commit().unwrap();
                let (count, all) = (writes.len() as u32, begin.elapsed());
                let lines = lines();
                std::println!(
                    "{count} pages of {step} each: prepare {:?}, commit {:?} a page, {lines} mappings",
                    between / count,
                    (all - between) / count
                );
            }
        }
    }
}
