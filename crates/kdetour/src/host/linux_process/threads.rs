//! Who else runs in this process.

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

fn count() -> Result<usize, Error> {
    let status = file::contents(c"/proc/self/status")?;
    number_of_threads(&status).ok_or(refused(Errno::NOTSUP))
}

fn number_of_threads(status: &[u8]) -> Option<usize> {
    let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Threads:"))?;
    core::str::from_utf8(line).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read_from_the_status() {
        assert_eq!(number_of_threads(b"Name:\tThreads:\nThreads:\t12\nSigQ:\t0/1\n"), Some(12));
        assert_eq!(number_of_threads(b"Name:\tx\n"), None);
        assert!(count().unwrap() >= 1);
    }
}
