//! The host itself: in a child, with its descriptor closed, with its file replaced.

use crate::life::{Target, add, replacement, subtract};
use crate::support::{text, turn};
use kdetour::Error;
use kdetour::host::linux_process::LinuxProcess;
use kdetour::host::{Host, Span, Text, View};
use kdetour::typed::{Detour, Function};
use std::fs::{self, File};
use std::os::fd::AsRawFd;

/// In a child the descriptor of `/proc/self/mem` still means the parent: it must be opened anew.
#[test]
fn a_child_detours_itself_and_not_its_parent() {
    let turn = turn();
    // SAFETY: both have one signature.
    let mut detour = unsafe { Detour::attach_with(&turn.alone, add as Target, replacement) }.unwrap();
    let before = text((subtract as Target).address(), 16);
    // SAFETY: the child calls nothing that another thread could have locked: it is this program's own code, system
    // calls, and an allocator that glibc makes usable again in a child.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // The child has one thread, so no promise is needed.
        let mut work = || {
            // SAFETY: both have one signature.
            let inner = unsafe { Detour::attach(subtract as Target, replacement) };
            let mut inner = inner.map_err(|_| 1)?;
            detour.detach().map_err(|_| 2)?;
            let while_attached = (subtract(5, 1), add(5, 1), inner.original()(5, 1)) == (5001, 6, 4);
            inner.detach().map_err(|_| 3)?;
            if while_attached && subtract(5, 1) == 4 { Ok(()) } else { Err(4) }
        };
        let status = work().err().unwrap_or(0);
        // SAFETY: ends the child at once, without the test harness's handlers.
        unsafe { libc::_exit(status) };
    }
    let mut status = -1;
    // SAFETY: the pointer is valid for the call.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child says {}", status >> 8);
    assert_eq!(text((subtract as Target).address(), 16), before);
    assert_eq!((add(1, 2), subtract(5, 1)), (1002, 4));
    detour.detach_with(&turn.alone).unwrap();
}

#[test]
fn a_closed_descriptor_is_opened_anew_and_nothing_else_is_written() {
    let _turn = turn();
    let highest = || fs::read_dir("/proc/self/fd").unwrap().count();
    let _ = highest();
    let host = LinuxProcess::new().unwrap();
    let is_memory =
        |fd: &i32| fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|to| to.ends_with("mem"));
    let memory = (3..64).rev().find(is_memory).unwrap();
    let path = std::env::temp_dir().join(format!("kdetour-fd-{}", std::process::id()));
    fs::write(&path, [7; 64]).unwrap();
    let other = File::options().read(true).write(true).open(&path).unwrap();
    // SAFETY: what a daemon does: the number now means a file that has nothing to do with memory.
    assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), memory) }, memory);
    let mut bytes = [0; 8];
    host.read((add as Target).address(), &mut bytes).unwrap();
    assert_eq!(bytes.to_vec(), text((add as Target).address(), 8));
    drop(host);
    // SAFETY: the number is still open: it was not ours to close any more.
    assert_eq!(unsafe { libc::close(memory) }, 0);
    assert_eq!(fs::read(&path).unwrap(), [7; 64]);
    fs::remove_file(&path).unwrap();
}

/// Symbols are believed only while the file under the mapping's path is the one that is mapped.
#[test]
fn bounds_come_from_the_file_that_is_mapped() {
    let _turn = turn();
    let host = LinuxProcess::new().unwrap();
    let target = (add as Target).address();
    let here = host.view().unwrap().function(target).unwrap();
    assert_eq!(here.length, Some(9)); // 4 + 4 + 1
    assert!(here.next_symbol.is_some_and(|next| next >= target + 9));

    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let fields = maps.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let (start, end, offset) = fields
        .filter_map(|fields| {
            let (start, end) = fields[0].split_once('-')?;
            Some((hexadecimal(start), hexadecimal(end), hexadecimal(fields[2])))
        })
        .find(|(start, end, _)| (*start..*end).contains(&target))
        .unwrap();
    let path = std::env::temp_dir().join(format!("kdetour-image-{}", std::process::id()));
    fs::copy("/proc/self/exe", &path).unwrap();
    let file = File::open(&path).unwrap();
    let len = usize::try_from(end - start).unwrap();
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    let offset = offset.try_into().unwrap();
    // SAFETY: the kernel chooses the place, so nothing is replaced.
    let copy = unsafe {
        libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_PRIVATE, file.as_raw_fd(), offset)
    };
    assert_ne!(copy, libc::MAP_FAILED);
    let copied = copy.addr() as u64 + (target - start);

    let there = host.view().unwrap().function(copied).unwrap();
    assert_eq!(there.length, Some(9));
    assert_eq!(there.image, Some((copy.addr() as u64, copy.addr() as u64 + end - start)));
    let inside = host.view().unwrap().function(copied + 1).unwrap_err();
    assert_eq!(inside, Error::NotFunction { address: copied + 1, entry: copied });

    // Another file takes the path, as an upgrade does it.
    fs::remove_file(&path).unwrap();
    fs::copy("/proc/self/exe", &path).unwrap();
    assert_eq!(host.view().unwrap().function(copied).unwrap().length, None);
    fs::remove_file(&path).unwrap();
    assert_eq!(host.view().unwrap().function(copied).unwrap().length, None);
    assert_eq!(host.view().unwrap().function(copied + 1).unwrap().length, None);
    // SAFETY: mapped above, and used by nobody else.
    assert_eq!(unsafe { libc::munmap(copy, len) }, 0);
}

#[test]
fn memory_that_is_shared_is_left_alone() {
    let _turn = turn();
    let host = LinuxProcess::new().unwrap();
    let file = File::open("/proc/self/exe").unwrap();
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    // SAFETY: the kernel chooses the place, so nothing is replaced.
    let shared =
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    assert_ne!(shared, libc::MAP_FAILED);
    let address = shared.addr() as u64;
    assert_eq!(host.view().unwrap().function(address).unwrap_err(), Error::Forbidden { address });
    // The kernel refuses too.
    let mut text = host.open_text(&[Span { address, len: 1 }]).unwrap();
    assert!(matches!(text.write(address, &[0]), Err(Error::Host(_))));
    // SAFETY: mapped above, and used by nobody else.
    assert_eq!(unsafe { libc::munmap(shared, 4096) }, 0);
}

#[test]
fn cores_are_synchronized() {
    LinuxProcess::new().unwrap().sync_cores();
}
