//! What is mapped at a few addresses, asked one by one: `PROCMAP_QUERY`, which Linux has since 6.11.
//!
//! To read the whole list takes the longer the more is mapped: 50 µs in a small process, 5 ms where 10,000 mappings are.
//! A query takes about one. Where the kernel does not know it, or refuses it, the list is read.

use super::PAGE;
use super::maps::{Mapping, Mappings};
use crate::Error;
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, Ordering};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use std::sync::{Mutex, TryLockError};
use std::vec::Vec;

/// So many queries, and reading the whole list would have been as good.
pub(super) const MANY: usize = 64;
/// How many images are remembered. Hardly any program has detours in more.
const IMAGES: usize = 16;
/// The longest name that the kernel tells.
const NAME: usize = 4096;

/// `struct procmap_query` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Request {
    size: u64,
    flags: u64,
    address: u64,
    start: u64,
    end: u64,
    permissions: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    major: u32,
    minor: u32,
    name_len: u32,
    build_id_len: u32,
    name: u64,
    build_id: u64,
}

const PROCMAP_QUERY: Opcode = opcode::read_write::<Request>(b'f', 17);
const READABLE: u64 = 1;
const WRITABLE: u64 = 2;
const EXECUTABLE: u64 = 4;
const SHARED: u64 = 8;
const COVERING_OR_NEXT: u64 = 16;

/// `/proc/self/maps`, open. Like `/proc/self/mem` it means the process that opened it, so it is never kept for long.
#[derive(Debug)]
pub(super) struct Query(OwnedFd);

impl Query {
    /// None if the kernel is known not to answer.
    pub(super) fn open() -> Option<Self> {
        if UNKNOWN.load(Ordering::Relaxed) {
            return None;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
        retry_on_intr(|| rustix::fs::open(c"/proc/thread-self/maps", flags, Mode::empty())).ok().map(Self)
    }

    /// The mapping that holds an address.
    pub(super) fn of(&self, address: u64) -> Result<Option<Mapping>, Errno> {
        self.ask(address, 0)
    }

    /// The mapping that holds an address, else the first one behind it.
    fn at_or_behind(&self, address: u64) -> Result<Option<Mapping>, Errno> {
        self.ask(address, COVERING_OR_NEXT)
    }

    fn ask(&self, address: u64, flags: u64) -> Result<Option<Mapping>, Errno> {
        let mut name = [0_u8; NAME];
        let mut request = Request {
            size: size_of::<Request>() as u64,
            flags,
            address,
            name_len: NAME as u32,
            name: name.as_mut_ptr().expose_provenance() as u64,
            ..Request::default()
        };
        // SAFETY: this is what the kernel expects with this number; it writes the request and at most as much of the
        // name as there is room, which both live until it has answered.
        let outcome = retry_on_intr(|| unsafe {
            ioctl(&self.0, Updater::<'_, PROCMAP_QUERY, Request>::new(&mut request))
        });
        match outcome {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => {
                if error == Errno::NOTTY {
                    UNKNOWN.store(true, Ordering::Relaxed);
                }
                return Err(error);
            }
        }
        // The zero at its end counts.
        let len = usize::try_from(request.name_len).unwrap_or_default().saturating_sub(1);
        let name = name.get(..len).unwrap_or_default();
        let mut path = Vec::new();
        path.try_reserve_exact(len).map_err(|_| Errno::NOMEM)?;
        path.extend_from_slice(name);
        let has = |permission| request.permissions & permission != 0;
        Ok(Some(Mapping {
            start: request.start,
            end: request.end,
            readable: has(READABLE),
            writable: has(WRITABLE),
            executable: has(EXECUTABLE),
            shared: has(SHARED),
            offset: request.offset,
            device: (request.major, request.minor),
            inode: request.inode,
            path,
        }))
    }

    /// As [`Mappings::image_of`]; none if that takes too many queries, or one is refused. `left` says how many more may be
    /// asked.
    pub(super) fn image_of(&self, mapping: &Mapping, left: &Cell<usize>) -> Option<(u64, u64)> {
        let asker = Asker { query: self, left };
        if let Some(known) = remembered(mapping)
            && asker.is_still(&known, mapping)?
        {
            return Some((known.start, known.end));
        }
        let image = asker.image_of(mapping)?;
        remember(mapping, image);
        Some((image.start, image.end))
    }
}

/// The kernel does not know the query.
static UNKNOWN: AtomicBool = AtomicBool::new(false);

/// Someone who may not ask for ever.
struct Asker<'a> {
    query: &'a Query,
    left: &'a Cell<usize>,
}

impl Asker<'_> {
    fn spend(&self) -> Option<()> {
        self.left.set(self.left.get().checked_sub(1)?);
        Some(())
    }

    /// The outer one is none if there is no answer.
    fn of(&self, address: u64) -> Option<Result<Mapping, Nothing>> {
        self.spend()?;
        Some(self.query.of(address).ok()?.ok_or(Nothing))
    }

    fn at_or_behind(&self, address: u64) -> Option<Result<Mapping, Nothing>> {
        self.spend()?;
        Some(self.query.at_or_behind(address).ok()?.ok_or(Nothing))
    }

    /// The next mapping below one that begins at `start`. The kernel looks upwards only: where it is not adjacent it is
    /// looked for in steps that double.
    fn below(&self, start: u64) -> Option<Result<Mapping, Nothing>> {
        let Some(last) = start.checked_sub(1) else { return Some(Err(Nothing)) };
        if let Ok(adjacent) = self.of(last)? {
            return Some(Ok(adjacent));
        }
        let mut step = PAGE;
        loop {
            step = step.saturating_mul(2);
            let from = start.saturating_sub(step);
            match self.at_or_behind(from)? {
                Ok(mut found) if found.start < start => loop {
                    match self.at_or_behind(found.end)? {
                        Ok(next) if next.start < start => found = next,
                        _ => return Some(Ok(found)),
                    }
                },
                _ if from == 0 => return Some(Err(Nothing)),
                _ => {}
            }
        }
    }

    fn image_of(&self, mapping: &Mapping) -> Option<Image> {
        let (mut first, mut last) = (mapping.clone(), mapping.clone());
        while let Ok(lower) = self.below(first.start)?
            && lower.is_of_the_same_file_below(&first)
        {
            first = lower;
        }
        while let Ok(higher) = self.at_or_behind(last.end)?
            && last.is_of_the_same_file_below(&higher)
        {
            last = higher;
        }
        Some(Image {
            device: mapping.device,
            inode: mapping.inode,
            start: first.start,
            end: last.end,
            offset: first.offset,
            end_offset: end_offset(&last),
        })
    }

    /// Whether an image that `mapping` is part of has its bounds still.
    fn is_still(&self, image: &Image, mapping: &Mapping) -> Option<bool> {
        let Some(end) = image.end.checked_sub(1) else { return Some(false) };
        let (Ok(first), Ok(last)) = (self.of(image.start)?, self.of(end)?) else { return Some(false) };
        let same = first.is_of_the_same_file_below(mapping)
            && mapping.is_of_the_same_file_below(&last)
            && (first.start, first.offset) == (image.start, image.offset)
            && (last.end, end_offset(&last)) == (image.end, image.end_offset);
        if !same {
            return Some(false);
        }
        let below = match image.start.checked_sub(1) {
            Some(below) => self.of(below)?,
            None => Err(Nothing),
        };
        if below.is_ok_and(|below| below.is_of_the_same_file_below(&first)) {
            return Some(false);
        }
        Some(!self.at_or_behind(image.end)?.is_ok_and(|behind| last.is_of_the_same_file_below(&behind)))
    }
}

/// Nothing is mapped there.
struct Nothing;

/// Where the file goes on behind a mapping. It stays when the mapping is split.
const fn end_offset(mapping: &Mapping) -> u64 {
    mapping.offset.wrapping_add(mapping.end.wrapping_sub(mapping.start))
}

/// Where the mappings of a file around one of them began and ended.
#[derive(Clone, Copy, Debug)]
struct Image {
    device: (u32, u32),
    inode: u64,
    start: u64,
    end: u64,
    offset: u64,
    end_offset: u64,
}

/// Images that were looked for, the latest last. Nobody waits for the lock: in the child of a `fork` its holder may be
/// missing.
static KNOWN: Mutex<Vec<Image>> = Mutex::new(Vec::new());

fn with_known<T>(work: impl FnOnce(&mut Vec<Image>) -> T) -> Option<T> {
    match KNOWN.try_lock() {
        Ok(mut known) => Some(work(&mut known)),
        Err(TryLockError::Poisoned(known)) => Some(work(&mut known.into_inner())),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn is_part(mapping: &Mapping, image: &Image) -> bool {
    (image.device, image.inode) == (mapping.device, mapping.inode)
        && image.start <= mapping.start
        && mapping.end <= image.end
}

fn remembered(mapping: &Mapping) -> Option<Image> {
    with_known(|known| known.iter().rev().find(|image| is_part(mapping, image)).copied())?
}

fn remember(mapping: &Mapping, image: Image) {
    with_known(|known| {
        known.retain(|image| !is_part(mapping, image));
        if known.len() >= IMAGES {
            known.remove(0);
        }
        if known.try_reserve(1).is_ok() {
            known.push(image);
        }
    });
}

/// The mappings that hold any of the addresses of `spans` (from, up to), and perhaps others; and whether they are all that
/// there are. The spans are sorted.
pub(super) fn within(spans: impl Iterator<Item = (u64, u64)>) -> Result<(Mappings, bool), Error> {
    match Query::open().and_then(|query| ask_within(&query, spans)) {
        Some(mappings) => Ok((mappings, false)),
        None => Ok((Mappings::read()?, true)),
    }
}

fn ask_within(query: &Query, spans: impl Iterator<Item = (u64, u64)>) -> Option<Mappings> {
    let left = Cell::new(MANY);
    let asker = Asker { query, left: &left };
    let mut mappings = Mappings::default();
    let mut known = 0;
    for (start, end) in spans {
        let mut at = start.max(known);
        while at < end {
            let Ok(mapping) = asker.at_or_behind(at)? else { break };
            // What lies behind is left out, and asked for again.
            let start = mapping.start;
            if start >= end {
                break;
            }
            (at, known) = (mapping.end, mapping.end);
            mappings.push(mapping)?;
        }
    }
    Some(mappings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::linux_process::fork::tests::in_child;
    use core::ptr;
    use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};

    fn query() -> Option<Query> {
        let query = Query::open()?;
        query.of(0).ok()?;
        Some(query)
    }

    /// Both answers, of which the second one may be remembered.
    fn image(query: &Query, address: u64) -> (u64, u64) {
        let mapping = query.of(address).unwrap().unwrap();
        let found = query.image_of(&mapping, &Cell::new(MANY)).unwrap();
        assert_eq!(query.image_of(&mapping, &Cell::new(MANY)), Some(found));
        let all = Mappings::read().unwrap();
        assert_eq!(all.of(address), Some(&mapping));
        assert_eq!(all.image_of(&mapping), found);
        found
    }

    #[test]
    fn answers_are_as_in_the_list() {
        let Some(query) = query() else { return };
        let names: [&[u8]; 3] = [b"[stack]", b"[vdso]", b"[heap]"];
        let all = Mappings::read().unwrap();
        let named = all.iter().filter(|mapping| names.contains(&mapping.path.as_slice()));
        let here = (answers_are_as_in_the_list as fn() as *const ()).addr() as u64;
        let libc = (libc::getpid as unsafe extern "C" fn() -> i32 as *const ()).addr() as u64;
        let mut seen = 0;
        for mapping in named.chain([here, libc].map(|address| all.of(address).unwrap())) {
            let answer = query.of(mapping.start).unwrap().unwrap();
            // The stack and the heap may grow meanwhile.
            assert_eq!(Mapping { start: mapping.start, end: mapping.end, ..answer }, *mapping);
            seen += 1;
        }
        assert!(seen >= 4);
        assert_eq!(query.of(0), Ok(None));
        assert_eq!(query.of(u64::MAX), Ok(None));
        for address in [here, libc] {
            let (start, end) = image(&query, address);
            assert!(start < address && address < end);
        }
    }

    #[test]
    fn images_are_as_in_the_list() {
        // In a child: other tests' threads would map something into the gaps now and then.
        assert!(in_child(|| {
            gaps_and_splits();
            true
        }));
    }

    fn gaps_and_splits() {
        const LEN: usize = PAGE as usize;
        let Some(query) = query() else { return };
        let path = std::env::temp_dir().join(std::format!("kdetour-query-{}", std::process::id()));
        std::fs::write(&path, std::vec![0; 8 * LEN]).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let read = ProtFlags::READ;
        // SAFETY: the kernel chooses the place.
        let room = unsafe { mmap_anonymous(ptr::null_mut(), 64 * LEN, read, MapFlags::PRIVATE) }.unwrap();
        let at = |page: usize| room.wrapping_byte_add(page * LEN);
        let address = |page: usize| at(page).expose_provenance() as u64;
        let unmap = |page, count: usize| {
            // SAFETY: this is part of what was mapped for this test.
            unsafe { munmap(at(page), count * LEN) }.unwrap();
        };
        let map = |page, offset: u64, count: usize| {
            let flags = MapFlags::PRIVATE | MapFlags::FIXED;
            // SAFETY: this is part of what was mapped for this test.
            unsafe { mmap(at(page), count * LEN, read, flags, &file, offset * PAGE) }.unwrap();
        };
        // The first part lies below a gap, the last one, which begins where the one below does, behind another.
        map(20, 0, 2);
        map(40, 2, 2);
        map(42, 3, 2);
        map(50, 3, 1);
        unmap(22, 18);
        unmap(44, 6);
        assert_eq!(image(&query, address(20)), (address(20), address(51)));
        assert_eq!(image(&query, address(42)), (address(20), address(51)));
        // Split.
        // SAFETY: this is part of what was mapped for this test, and nobody writes it.
        unsafe { mprotect(at(40), LEN, MprotectFlags::empty()) }.unwrap();
        assert_eq!(image(&query, address(40)), (address(20), address(51)));
        // Longer at the end, at the beginning; begun anew above; shorter.
        map(51, 4, 2);
        assert_eq!(image(&query, address(42)), (address(20), address(53)));
        map(19, 0, 1);
        assert_eq!(image(&query, address(42)), (address(19), address(53)));
        map(53, 0, 1);
        assert_eq!(image(&query, address(42)), (address(19), address(53)));
        assert_eq!(image(&query, address(53)), (address(53), address(54)));
        unmap(52, 1);
        assert_eq!(image(&query, address(42)), (address(19), address(52)));
        let mapping = query.of(address(42)).unwrap().unwrap();
        assert_eq!(query.image_of(&mapping, &Cell::new(2)), None);
        let (some, complete) =
            within([(address(20), address(43)), (address(42), address(43))].into_iter()).unwrap();
        let found: Vec<_> = some.iter().map(|mapping| (mapping.start, mapping.end)).collect();
        let expected =
            [(20, 22), (40, 41), (41, 42), (42, 44)].map(|(start, end)| (address(start), address(end)));
        assert!(!complete);
        assert_eq!(found.get(1..), expected.get(1..));
        assert_eq!(found.first().unwrap().1, address(22));
        unmap(0, 64);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn many_are_read_at_once() {
        let spans = (0..MANY as u64 + 1).map(|page| (page * PAGE, page * PAGE + 1));
        assert!(within(spans).unwrap().1);
    }

    #[test]
    fn where_the_kernel_knows_no_queries_the_list_is_read() {
        let here = (many_are_read_at_once as fn() as *const ()).addr() as u64;
        let all = || {
            let (mappings, complete) = within(core::iter::once((here, here + 1))).unwrap();
            assert!(mappings.of(here).is_some_and(|mapping| mapping.executable));
            complete
        };
        assert_eq!(all(), query().is_none());
        // In a child, since others go on asking.
        assert!(in_child(|| {
            UNKNOWN.store(true, Ordering::Relaxed);
            Query::open().is_none() && all()
        }));
        let mut file = Query(rustix::fs::open(c"/dev/null", OFlags::RDONLY, Mode::empty()).unwrap());
        assert!(in_child(|| file.of(here).is_err() && Query::open().is_none()));
        file = Query(rustix::fs::open(c"/proc/self/maps", OFlags::RDONLY, Mode::empty()).unwrap());
        assert_eq!(file.of(here).is_ok(), query().is_some());
    }

    #[test]
    #[ignore = "measures"]
    fn speed() {
        let here = (speed as fn() as *const ()).addr() as u64;
        let time = |what: &str, work: &dyn Fn()| {
            let begin = std::time::Instant::now();
            (0..1000).for_each(|_| work());
            std::println!("{what}: {:?}", begin.elapsed() / 1000);
        };
        let query = query().unwrap();
        let mapping = query.of(here).unwrap().unwrap();
        time("open", &|| drop(Query::open()));
        time("one query", &|| drop(query.of(here)));
        time("an image that is known", &|| _ = query.image_of(&mapping, &Cell::new(MANY)));
        let left = Cell::new(usize::MAX);
        let asker = Asker { query: &query, left: &left };
        time("an image", &|| _ = asker.image_of(&mapping));
        time("the list", &|| drop(Mappings::read()));
        std::println!("{} mappings", Mappings::read().unwrap().iter().count());
    }
}
