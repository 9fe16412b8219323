//! Files read by raw system calls: no function of libc that may be detoured is called.

use super::refused;
use crate::Error;
use rustix::buffer::spare_capacity;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::{pread, read, retry_on_intr};
use rustix::path::Arg;
use std::io::{self, Read, Seek, SeekFrom};
use std::vec::Vec;

/// The whole of a file whose size is not known before, such as those in `/proc`.
pub(super) fn contents(path: impl Arg + Copy) -> Result<Vec<u8>, Error> {
    const STEP: usize = 16 << 10;
    let file = open(path)?;
    let mut bytes = Vec::new();
    loop {
        bytes.try_reserve(STEP)?;
        if retry_on_intr(|| read(&file, spare_capacity(&mut bytes))).map_err(refused)? == 0 {
            return Ok(bytes);
        }
    }
}

fn open(path: impl Arg + Copy) -> Result<OwnedFd, Error> {
    let open = || rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty());
    retry_on_intr(open).map_err(refused)
}

/// A regular file, read at places that are asked for.
pub(super) struct File {
    fd: OwnedFd,
    len: u64,
    at: u64,
}

impl File {
    /// Opens a regular file, and says which it is.
    pub(super) fn open(path: &[u8]) -> Option<(Self, Stat)> {
        let fd = open(path).ok()?;
        let stat = rustix::fs::fstat(&fd).ok()?;
        let len = u64::try_from(stat.st_size).ok()?;
        Some((Self { fd, len, at: 0 }, stat))
    }
}

impl Read for File {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = retry_on_intr(|| pread(&self.fd, &mut *bytes, self.at))?;
        self.at = self.at.saturating_add(count as u64);
        Ok(count)
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
