//! Which threads there are: `/proc/self/task` (proc_pid_task(5)).
//!
//! Nothing is allocated once it is open, so it can be read while other threads are parked.

use super::super::arch::{self, Masking};
use super::super::refused;
use super::raw::{self, value};
use crate::Error;
use core::mem::MaybeUninit;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, openat, seek};
use rustix::io::{Errno, read, retry_on_intr};
use std::vec::Vec;

/// The threads of this process.
#[derive(Debug)]
pub(in crate::host::linux_process) struct Tasks(OwnedFd);

/// What the kernel tells of a thread: `task/T/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::host::linux_process) struct Stat {
    state: u8,
    flags: u64,
    /// How many threads the process has.
    threads: usize,
    /// The signals that it blocks; of these only the first 31 are told, and SIGTRAP and SIGURG are among them.
    blocked: u64,
}

impl Stat {
    /// Whether the thread will not run code of the process any more, or never has.
    pub(in crate::host::linux_process) fn is_none_of_ours(&self) -> bool {
        // A worker of an io_uring is listed as a thread, but is the kernel's: PF_IO_WORKER. It blocks everything.
        const IO_WORKER: u64 = 0x10;
        let is_worker = self.flags & IO_WORKER != 0 && self.blocks(raw::SIGURG) && self.blocks(raw::SIGTRAP);
        matches!(self.state, b'Z' | b'X' | b'x') || is_worker
    }

    pub(in crate::host::linux_process) const fn blocks(&self, signal: i32) -> bool {
        self.blocked & raw::bit(signal) != 0
    }

    /// Whether it runs, or could: what it blocks is then no mask of a system call that it sleeps in.
    pub(in crate::host::linux_process) const fn is_runnable(&self) -> bool {
        self.state == b'R'
    }

    /// Whether it has been stopped, by a signal or by a debugger.
    pub(in crate::host::linux_process) const fn is_stopped(&self) -> bool {
        matches!(self.state, b'T' | b't')
    }

    fn parse(text: &[u8]) -> Option<Self> {
        // 1234 (any name, even with ) in it) S 1 ...
        let name_end = text.iter().rposition(|&byte| byte == b')')?;
        let rest = text.get(name_end.checked_add(2)?..)?;
        let mut fields = core::str::from_utf8(rest).ok()?.split(' ');
        // Fields 3, 9, 20 and 32 of proc_pid_stat(5).
        Some(Self {
            state: *fields.next()?.as_bytes().first()?,
            flags: fields.nth(5)?.parse().ok()?,
            threads: fields.nth(10)?.parse().ok()?,
            blocked: fields.nth(11)?.parse().ok()?,
        })
    }
}

/// Where a thread sleeps: `task/T/syscall`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::host::linux_process) struct Asleep {
    text: [u8; LINE],
    /// The system call; -1 if it sleeps elsewhere in the kernel.
    pub(in crate::host::linux_process) number: i64,
    /// Its arguments, if it is one.
    arguments: [u64; 6],
    pub(in crate::host::linux_process) sp: u64,
    pub(in crate::host::linux_process) pc: u64,
}

/// A number and eight hexadecimal ones.
const LINE: usize = 256;
/// A name of 16 bytes, written with escapes, and 51 numbers.
const STAT: usize = 2048;
/// Sixty lines, among them sets of processors and groups.
const STATUS: usize = 8192;

impl Asleep {
    fn parse(text: [u8; LINE]) -> Option<Self> {
        let line = core::str::from_utf8(text.split(|&byte| byte == b'\n').next()?).ok()?;
        let number = line.split(' ').next()?.parse().ok()?;
        let mut from_end =
            line.rsplit(' ').map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16));
        let pc = from_end.next()?.ok()?;
        let sp = from_end.next()?.ok()?;
        let mut arguments = [0; 6];
        for argument in arguments.iter_mut().rev() {
            *argument = from_end.next().and_then(Result::ok).unwrap_or_default();
        }
        Some(Self { text, number, arguments, sp, pc })
    }

    /// Whether the thread sleeps in a system call that has put another mask in place of its own (or takes signals that it
    /// blocks): what the kernel then tells of a signal's being blocked is not what holds when the thread goes on.
    pub(in crate::host::linux_process) fn hides_mask(&self, signal: i32) -> bool {
        let argument = |number: usize| self.arguments.get(number).copied().unwrap_or_default();
        match arch::masking(self.number) {
            // Of the signals that are waited for it is not known.
            Some(Masking::Waits) => value::<u64>(argument(0)).is_none_or(|set| set & raw::bit(signal) != 0),
            Some(Masking::Always) => true,
            Some(Masking::Argument(number)) => argument(number) != 0,
            Some(Masking::Pointed(number)) => {
                argument(number) != 0 && value::<usize>(argument(number)).is_none_or(|mask| mask != 0)
            }
            None => false,
        }
    }
}

/// What the kernel tells of where a thread is.
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack, for a moment")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::host::linux_process) enum Where {
    Asleep(Asleep),
    Running,
    /// It does not tell: this process must not be dumped, or the kernel was built without it.
    Unknown,
}

impl Tasks {
    pub(in crate::host::linux_process) fn open() -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(c"/proc/self/task", flags, Mode::empty()).map(Self).map_err(refused)
    }

    /// Hands each thread's number over, once, and says how many there were. Threads that begin or end meanwhile may
    /// be left out, and the kernel ends the list early where one ends.
    pub(in crate::host::linux_process) fn each(
        &self,
        mut hand_over: impl FnMut(i32) -> Result<(), Error>,
    ) -> Result<usize, Error> {
        seek(&self.0, SeekFrom::Start(0)).map_err(refused)?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(&self.0, &mut buffer);
        let mut count = 0_usize;
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(refused)?;
            if let Some(thread) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()) {
                count = count.saturating_add(1);
                hand_over(thread)?;
            }
        }
        Ok(count)
    }

    /// All of them, sorted: whoever was there when this was called, and is there yet.
    pub(in crate::host::linux_process) fn all(&self) -> Result<Vec<i32>, Error> {
        /// A process in which threads end all the time: each of them was listed in one of so many passes.
        const PASSES: usize = 1000;
        let mut threads = Vec::new();
        for _ in 0..PASSES {
            let number = self.number()?;
            let mut is_new = false;
            let listed = self.each(|thread| {
                if let Err(index) = threads.binary_search(&thread) {
                    threads.try_reserve(1)?;
                    threads.insert(index, thread);
                    is_new = true;
                }
                Ok(())
            })?;
            if !is_new && listed >= number {
                break;
            }
        }
        Ok(threads)
    }

    /// How many there are.
    pub(in crate::host::linux_process) fn number(&self) -> Result<usize, Error> {
        let stat = self.stat(raw::thread())?.ok_or(refused(Errno::NOTSUP))?;
        Ok(stat.threads)
    }

    /// What is known of a thread; nothing if it has ended.
    pub(in crate::host::linux_process) fn stat(&self, thread: i32) -> Result<Option<Stat>, Error> {
        match self.text::<STAT>(thread, b"stat") {
            Ok(text) => Stat::parse(&text).map(Some).ok_or(refused(Errno::NOTSUP)),
            Err(Errno::NOENT | Errno::SRCH) => Ok(None),
            Err(error) => Err(refused(error)),
        }
    }

    /// Where a thread sleeps. None if it runs, or if the kernel does not tell.
    pub(in crate::host::linux_process) fn asleep(&self, thread: i32) -> Option<Asleep> {
        match self.whereabouts(thread) {
            Where::Asleep(asleep) => Some(asleep),
            Where::Running | Where::Unknown => None,
        }
    }

    /// Where a thread is.
    pub(in crate::host::linux_process) fn whereabouts(&self, thread: i32) -> Where {
        match self.text(thread, b"syscall") {
            Ok(text) => Asleep::parse(text).map_or(Where::Running, Where::Asleep),
            Err(_) => Where::Unknown,
        }
    }

    /// How often a thread has gone to sleep. None if the kernel does not tell.
    pub(in crate::host::linux_process) fn sleeps(&self, thread: i32) -> Option<u64> {
        let text = self.text::<STATUS>(thread, b"status").ok()?;
        let lines = text.split(|&byte| byte == b'\n');
        let count = lines.rev().find_map(|line| line.strip_prefix(b"voluntary_ctxt_switches:"))?;
        core::str::from_utf8(count).ok()?.trim().parse().ok()
    }

    /// A file of a thread, filled up with zeros.
    fn text<const N: usize>(&self, thread: i32, file: &[u8]) -> Result<[u8; N], Errno> {
        let path = path(thread, file).ok_or(Errno::NAMETOOLONG)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let path = core::ffi::CStr::from_bytes_until_nul(&path).map_err(|_| Errno::NAMETOOLONG)?;
        let file = retry_on_intr(|| openat(&self.0, path, flags, Mode::empty()))?;
        let mut text = [0; N];
        let mut len = 0_usize;
        loop {
            let room = text.get_mut(len..).unwrap_or_default();
            let count = if room.is_empty() { 0 } else { retry_on_intr(|| read(&file, &mut *room))? };
            if count == 0 {
                return Ok(text);
            }
            len = len.saturating_add(count);
        }
    }
}

/// `T/file`, and zeros.
fn path(thread: i32, file: &[u8]) -> Option<[u8; 32]> {
    let mut digits = [0; 10];
    let mut rest = u32::try_from(thread).ok()?;
    let mut count = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0'.wrapping_add(u8::try_from(rest % 10).ok()?);
        rest /= 10;
        count += 1;
        if rest == 0 {
            break;
        }
    }
    let number = digits.iter().skip(10 - count);
    let mut path = [0; 32];
    let (body, _nul) = path.split_at_mut(31);
    for (to, from) in body.iter_mut().zip(number.chain(b"/").chain(file)) {
        *to = *from;
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_behind_its_name() {
        let text = b"24955 (a) S (b) R 24950 24950 18742 0 -1 4194304 100 0 0 0 0 0 0 0 20 0 17 0 2655562 3133440 366 \
                     18446744073709551615 1 2 3 0 0 0 4194320 0 0 0 0 0 17 1\n\0\0";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat, Stat { state: b'R', flags: 4194304, threads: 17, blocked: 4194320 });
        assert!(stat.blocks(raw::SIGTRAP) && stat.blocks(raw::SIGURG) && !stat.blocks(7));
        assert!(!stat.is_none_of_ours());
        assert!(Stat { flags: 0x10, ..stat }.is_none_of_ours());
        assert!(Stat { state: b'Z', ..stat }.is_none_of_ours());
        assert_eq!(Stat::parse(b"1 (a"), None);
    }

    #[test]
    fn a_line_tells_who_sleeps() {
        let padded = |line: &[u8]| {
            let mut text = [0; LINE];
            text[..line.len()].copy_from_slice(line);
            text
        };
        assert_eq!(Asleep::parse(padded(b"running\n")), None);
        let asleep =
            Asleep::parse(padded(b"0 0x3 0x7 0x2 0x7 0xf 0x0 0x7fff089f7d58 0x7f7b26c822ad\n")).unwrap();
        assert_eq!((asleep.number, asleep.sp, asleep.pc), (0, 0x7fff089f7d58, 0x7f7b26c822ad));
        assert_eq!(asleep.arguments, [3, 7, 2, 7, 0xf, 0]);
        let asleep = Asleep::parse(padded(b"-1 0x10 0x20\n")).unwrap();
        assert_eq!((asleep.number, asleep.sp, asleep.pc), (-1, 0x10, 0x20));
    }

    #[test]
    fn a_mask_may_be_hidden() {
        let (set, none) = (raw::bit(raw::SIGTRAP), 0_u64);
        let at = |word: &u64| core::ptr::from_ref(word).expose_provenance() as u64;
        let hides = |number, arguments| {
            let asleep = Asleep { text: [0; LINE], number, arguments, sp: 0, pc: 0 };
            [raw::SIGTRAP, raw::SIGURG].map(|signal| asleep.hides_mask(signal))
        };
        let number = |name: libc::c_long| name as isize as i64;
        let (wait, suspend) = (number(libc::SYS_rt_sigtimedwait), number(libc::SYS_rt_sigsuspend));
        assert_eq!(hides(wait, [at(&set), 0, 0, 8, 0, 0]), [true, false]);
        assert_eq!(hides(wait, [8, 0, 0, 8, 0, 0]), [true, true]); // not to be read
        assert_eq!(hides(suspend, [0; 6]), [true, true]);
        let given =
            [(libc::SYS_ppoll, 3), (libc::SYS_epoll_pwait, 4), (441, 4), (libc::SYS_io_uring_enter, 4)];
        for (name, place) in given {
            let mut arguments = [0; 6];
            assert_eq!(hides(number(name), arguments), [false, false]);
            arguments[place] = at(&set);
            assert_eq!(hides(number(name), arguments), [true, true], "{name}");
        }
        let select = number(libc::SYS_pselect6);
        assert_eq!(hides(select, [0, 0, 0, 0, 0, at(&none)]), [false, false]);
        assert_eq!(hides(select, [0, 0, 0, 0, 0, at(&set)]), [true, true]);
        assert_eq!(hides(number(libc::SYS_read), [at(&set); 6]), [false, false]);
    }

    #[test]
    fn paths_are_written() {
        assert_eq!(&path(4, b"stat").unwrap()[..7], b"4/stat\0");
        assert_eq!(&path(2147483647, b"syscall").unwrap()[..19], b"2147483647/syscall\0");
        assert_eq!(path(-1, b"stat"), None);
    }
}
