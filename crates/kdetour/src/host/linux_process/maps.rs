//! What is mapped where: `/proc/thread-self/maps` (proc_pid_maps(5)). `/proc/self` is the first thread's, which may have
//! ended before the others.

use super::file;
use crate::Error;
use std::vec::Vec;

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) executable: bool,
    /// Whether writes go to the file, or to other processes.
    pub(super) shared: bool,
    /// Where in the file it begins.
    pub(super) offset: u64,
    /// Major and minor number of the file's device.
    pub(super) device: (u32, u32),
    /// 0 if it is no file.
    pub(super) inode: u64,
    /// The file's path when it was mapped, or a name in brackets, or nothing.
    pub(super) path: Vec<u8>,
}

impl Mapping {
    /// A line without its path, and the path.
    fn parse(line: &[u8]) -> Option<(Self, &[u8])> {
        // 7f3c2a1c9000-7f3c2a31f000 r-xp 00028000 fe:01 1835129                    /usr/lib/libc.so.6
        let (range, rest) = field(line)?;
        let (permissions, rest) = field(rest)?;
        let (offset, rest) = field(rest)?;
        let (device, rest) = field(rest)?;
        let (inode, path) = field(rest)?;
        let (start, end) = range.split_once('-')?;
        let (major, minor) = device.split_once(':')?;
        let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
        let has = |position, letter: u8| permissions.as_bytes().get(position) == Some(&letter);
        let mapping = Self {
            start: hexadecimal(start)?,
            end: hexadecimal(end)?,
            readable: has(0, b'r'),
            writable: has(1, b'w'),
            executable: has(2, b'x'),
            shared: has(3, b's'),
            offset: hexadecimal(offset)?,
            device: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
            inode: inode.parse().ok()?,
            path: Vec::new(),
        };
        Some((mapping, path.trim_ascii_start()))
    }

    pub(super) fn is_of_the_same_file(&self, other: &Self) -> bool {
        (self.inode, self.device, &self.path) == (other.inode, other.device, &other.path)
    }

    /// Whether it may be part of the same image as `higher`, which lies above it.
    pub(super) fn is_of_the_same_file_below(&self, higher: &Self) -> bool {
        self.is_of_the_same_file(higher) && self.offset <= higher.offset
    }
}

/// The next word of a line, and what follows it. Only the path, the last one, may be something else than text.
fn field(line: &[u8]) -> Option<(&str, &[u8])> {
    let line = line.trim_ascii_start();
    let end = line.iter().position(|&byte| byte == b' ').unwrap_or(line.len());
    let (word, rest) = line.split_at_checked(end)?;
    Some((core::str::from_utf8(word).ok()?, rest))
}

/// Mappings, in the order of their addresses: all, or those that were asked for.
#[derive(Debug, Default)]
pub(super) struct Mappings(Vec<Mapping>);

impl Mappings {
    /// As they are now.
    pub(super) fn read() -> Result<Self, Error> {
        Self::parse(&file::contents(c"/proc/thread-self/maps")?)
    }

    pub(super) fn parse(text: &[u8]) -> Result<Self, Error> {
        let mut all = Vec::new();
        for (mut mapping, path) in text.split(|&byte| byte == b'\n').filter_map(Mapping::parse) {
            mapping.path.try_reserve_exact(path.len())?;
            mapping.path.extend_from_slice(path);
            all.try_reserve(1)?;
            all.push(mapping);
        }
        Ok(Self(all))
    }

    /// Adds one that lies behind all others; none if there is no memory.
    pub(super) fn push(&mut self, mapping: Mapping) -> Option<()> {
        self.0.try_reserve(1).ok()?;
        self.0.push(mapping);
        Some(())
    }

    /// Adds one, wherever it lies, in place of those that it overlaps; does nothing if there is no memory.
    pub(super) fn insert(&mut self, mapping: Mapping) {
        if self.0.try_reserve(1).is_ok() {
            self.0.retain(|other| other.end <= mapping.start || mapping.end <= other.start);
            let position = self.0.partition_point(|other| other.end <= mapping.start);
            self.0.insert(position, mapping);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.0.iter()
    }

    /// The mapping that holds an address.
    pub(super) fn of(&self, address: u64) -> Option<&Mapping> {
        self.0.get(self.position(address)?)
    }

    /// Those that hold any of the addresses from `start` up to `end`.
    pub(super) fn within(&self, start: u64, end: u64) -> impl Iterator<Item = &Mapping> {
        let first = self.0.partition_point(|mapping| mapping.end <= start);
        self.0.iter().skip(first).take_while(move |mapping| mapping.start < end)
    }

    /// By its position.
    pub(super) fn get(&self, position: usize) -> Option<&Mapping> {
        self.0.get(position)
    }

    /// The position of the mapping that holds an address.
    pub(super) fn position(&self, address: u64) -> Option<usize> {
        let position = self.0.partition_point(|mapping| mapping.end <= address);
        self.0.get(position).filter(|mapping| mapping.start <= address).map(|_| position)
    }

    /// First and one-past-last address of the image that a mapping is part of: the mappings of the same file around
    /// it, in the order of the file. The same file mapped once more begins anew.
    pub(super) fn image_of(&self, mapping: &Mapping) -> (u64, u64) {
        let (mut first, mut last) = (mapping, mapping);
        let position = self.position(mapping.start).unwrap_or_default();
        for lower in self.0.iter().take(position).rev() {
            if !lower.is_of_the_same_file_below(first) {
                break;
            }
            first = lower;
        }
        for higher in self.0.iter().skip(position + 1) {
            if !last.is_of_the_same_file_below(higher) {
                break;
            }
            last = higher;
        }
        (first.start, last.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"\
00400000-00401000 r--p 00000000 fe:0a 77                                 /a b\n\
00401000-00403000 r-xp 00001000 fe:0a 77                                 /a b\n\
00403000-00404000 rw-p 00003000 fe:0a 77                                 /a b\n\
00404000-00405000 r--p 00000000 fe:0a 77                                 /a b\n\
01000000-01021000 rw-p 00000000 00:00 0                                  [heap]\n\
7f0000000000-7f0000001000 r-xs 00000000 00:01 9                          /memfd:\xff (deleted)\n\
7f0000001000-7f0000002000 ---p 00000000 00:00 0 \n\
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";

    #[test]
    fn lines_are_read() {
        let mappings = Mappings::parse(TEXT).unwrap();
        assert_eq!(mappings.0.len(), 8);
        let text = mappings.of(0x402fff).unwrap();
        assert_eq!((text.start, text.offset, text.inode, text.device), (0x401000, 0x1000, 77, (0xfe, 10)));
        assert_eq!((text.executable, text.shared, text.path.as_slice()), (true, false, &b"/a b"[..]));
        assert!(mappings.of(0x7f00_0000_0000).unwrap().shared);
        assert!(mappings.of(0x7f00_0000_1000).unwrap().path.is_empty());
        assert_eq!(mappings.of(0x405000), None);
        assert_eq!(mappings.of(u64::MAX), None);
    }

    #[test]
    fn an_image_ends_where_the_file_begins_anew() {
        let mappings = Mappings::parse(TEXT).unwrap();
        for address in [0x400000, 0x401000, 0x403000] {
            let mapping = mappings.of(address).unwrap();
            assert_eq!(mappings.image_of(mapping), (0x400000, 0x404000));
        }
        assert_eq!(mappings.image_of(mappings.of(0x404000).unwrap()), (0x404000, 0x405000));
    }

    #[test]
    fn this_test_is_mapped() {
        let here = (this_test_is_mapped as fn() as *const ()).addr() as u64;
        let mappings = Mappings::read().unwrap();
        let mapping = mappings.of(here).unwrap();
        assert!(mapping.executable && !mapping.shared && mapping.inode != 0);
        let (start, end) = mappings.image_of(mapping);
        assert!(start < mapping.start && mapping.end < end);
    }
}
