//! Who else runs in this process, and where.
//!
//! * `list`: which threads there are, and which of them sleep;
//! * `stack`: what lies on a thread's stack;
//! * `chain`: a signal's handler, before whatever handler was there; `raw`: the system calls that it needs;
//! * `roll`: what is asked of each thread by a signal, and its answer;
//! * `mask`: whether a thread blocks a signal;
//! * `look`: whether no thread is inside; `park`: all threads but one wait while something is written.
//!
//! A signal handler interrupts any code, a detour or an allocator too. So it calls nothing but the kernel, and
//! touches only what was allocated before the signal was sent and is freed after the last handler has left.

pub(super) mod chain;
pub(super) mod list;
mod look;
pub(super) mod mask;
mod park;
pub(super) mod raw;
mod roll;
mod stack;
#[cfg(test)]
pub(super) mod tests;

pub use crate::host::process::caller::{stack_pointer, with_return};
pub(super) use look::look_above;
pub(super) use park::park;
pub(super) use roll::{forked, is_listening};

pub(super) use raw::processor_time;

use super::{file, refused};
use crate::Error;
use rustix::io::Errno;
use std::thread::sleep;
use std::time::Duration;

/// How often, and how long in between, other threads are given time to finish leaving.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(1);

/// Whether the caller is the only thread. If it is, it stays so until it starts another one.
pub(super) fn only_this_one() -> Result<bool, Error> {
    for _ in 1..TRIES {
        if count()? == 1 {
            return Ok(true);
        }
        // A thread that was joined is still counted for a moment: the kernel wakes the joiner first.
        sleep(PAUSE);
    }
    Ok(count()? == 1)
}

/// Whether a thread runs, or waits for a processor.
pub(super) fn is_runnable(thread: i32) -> bool {
    let stat = list::Tasks::open().and_then(|tasks| tasks.stat(thread));
    stat.ok().flatten().is_some_and(|stat| stat.is_runnable())
}

fn count() -> Result<usize, Error> {
    let status = file::contents(c"/proc/self/status")?;
    number_of_threads(&status).ok_or(refused(Errno::NOTSUP))
}

fn number_of_threads(status: &[u8]) -> Option<usize> {
    let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Threads:"))?;
    core::str::from_utf8(line).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod counting {
    use super::*;

    #[test]
    fn the_count_is_read_from_the_status() {
        assert_eq!(number_of_threads(b"Name:\tThreads:\nThreads:\t12\nSigQ:\t0/1\n"), Some(12));
        assert_eq!(number_of_threads(b"Name:\tx\n"), None);
        assert!(count().unwrap() >= 1);
    }
}
