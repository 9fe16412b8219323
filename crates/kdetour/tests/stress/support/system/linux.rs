//! What Linux tells and does, for tests.

use super::Region;
use std::ffi::{CString, c_void};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::{io, mem, ptr};

/// The calling thread's number.
pub(crate) fn thread_number() -> i32 {
    // SAFETY: asks for a number.
    unsafe { libc::gettid() }
}

/// A signal for one thread.
pub(crate) fn send(process: i32, thread: i32, signal: i32) {
    // SAFETY: a thread of this process, or of a child.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) };
}

pub(crate) fn process_number() -> i32 {
    // SAFETY: asks for a number.
    unsafe { libc::getpid() }
}

/// The bytes at an address, as they are now.
pub(crate) fn text(address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory().read_exact_at(&mut bytes, address).expect("text can be read");
    bytes
}

/// The same where `/proc/self/mem` cannot be opened: text can be read like any memory.
pub(crate) fn text_by_reading(address: u64, len: usize) -> Vec<u8> {
    let start = ptr::with_exposed_provenance::<u8>(usize::try_from(address).expect("an address"));
    // SAFETY: functions of this program are asked for, followed by padding; each byte is read once, as it is.
    (0..len).map(|at| unsafe { start.add(at).read_volatile() }).collect()
}

/// Writes as somebody else would, who knows nothing of kdetour.
pub(crate) fn poke(address: u64, bytes: &[u8]) {
    let file = File::options().write(true).open("/proc/self/mem").expect("memory can be written");
    file.write_all_at(bytes, address).expect("text can be written");
}

pub(crate) fn memory() -> File {
    File::open("/proc/self/mem").expect("memory can be read")
}

/// How many threads there are. One that has just been joined may still be on its way out.
pub(crate) fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// The memory that can be executed.
pub(crate) fn executable() -> Vec<Region> {
    let maps = fs::read_to_string("/proc/self/maps").expect("mappings are told");
    let is_executable =
        |line: &&str| line.split(' ').nth(1).is_some_and(|permissions| permissions.contains('x'));
    maps.lines().filter(is_executable).filter_map(region).collect()
}

fn region(line: &str) -> Option<Region> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(Region {
        start: number(start)?,
        end: number(end)?,
        // The kernel's own pages cannot be read.
        is_readable: !line.contains("[v"),
        // No file is mapped.
        is_anonymous: line.split_whitespace().nth(4) == Some("0"),
        name: line.to_owned(),
    })
}

/// Ends the process, at once.
pub(crate) fn end_now() -> ! {
    // SAFETY: it is meant.
    unsafe { libc::_exit(1) }
}

/// What the command starts can be ended together.
pub(crate) fn apart(command: &mut Command) {
    command.process_group(0);
}

/// Ends a process that was started [`apart`], and those that it has started.
pub(crate) fn end(child: &mut Child) {
    let Ok(group) = i32::try_from(child.id()) else { return };
    // SAFETY: only the processes that the scenario started are in its group.
    unsafe { libc::kill(-group, libc::SIGKILL) };
}

/// How a process has ended.
pub(crate) fn ended(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("died of signal {signal}"),
        None => format!("ended with {status}"),
    }
}

/// What the threads of a process that hangs are at.
pub(crate) fn threads_of(process: u32) -> String {
    let mut all = String::new();
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return all };
    for thread in threads.flatten() {
        let state = state_at(&thread.path()).unwrap_or('?');
        let read = |name| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        all += &format!(
            "[{} {state} wchan {} syscall {}] ",
            thread.file_name().display(),
            read("wchan").trim(),
            read("syscall").trim()
        );
    }
    all
}

/// R, S, D, T, t, Z.
pub(crate) fn state_at(task: &Path) -> Option<char> {
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The address of a function of a library that is loaded.
pub(crate) fn symbol(name: &str) -> u64 {
    let name = CString::new(name).expect("a name");
    // SAFETY: a string is given; nothing is called.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    assert!(!address.is_null(), "{name:?} is not there");
    address.expose_provenance() as u64
}

/// Sets a signal's handler.
pub(crate) fn handle(signal: i32, handler: extern "C" fn(i32), flags: i32, blocks_all: bool) {
    // SAFETY: all zeros are a valid action; the handler has the signature that it is called with.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags;
        if blocks_all {
            libc::sigfillset(&raw mut action.sa_mask);
        }
        assert_eq!(libc::sigaction(signal, &raw const action, ptr::null_mut()), 0);
    }
}

/// Blocks or unblocks every signal for this thread, those of the C library too.
pub(crate) fn block_all(block: bool) {
    let all = if block { u64::MAX } else { 0 };
    // SAFETY: the kernel's signal set is 8 bytes.
    let result = unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, ptr::null::<u64>(), 8)
    };
    assert_eq!(result, 0);
}

/// Gives the thread a stack of its own for signals, which stays for ever, or takes the one away that it has.
pub(crate) fn alternate_stack(wanted: bool) {
    const LEN: usize = 64 << 10;
    let place =
        if wanted { Box::leak(vec![0_u8; LEN].into_boxed_slice()).as_mut_ptr() } else { ptr::null_mut() };
    let stack = libc::stack_t {
        ss_sp: place.cast::<c_void>(),
        ss_flags: if wanted { 0 } else { libc::SS_DISABLE },
        ss_size: LEN,
    };
    // SAFETY: the memory is never given back.
    assert_eq!(unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) }, 0);
}

/// Memory of zeros that children share.
pub(crate) fn shared<T>() -> &'static T {
    // SAFETY: new memory, never given back. The types that are put there are made of atomics, which may be 0.
    unsafe {
        let place = libc::mmap(
            ptr::null_mut(),
            mem::size_of::<T>().max(1),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(place, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        &*place.cast::<T>()
    }
}

/// Runs in a child made by fork, which ends with what is answered. None if there are too many processes.
pub(crate) fn fork(child: impl FnOnce() -> i32) -> Option<i32> {
    // SAFETY: the scenarios fork in threads whose locks nobody else holds, or call in the child only what needs none.
    match unsafe { libc::fork() } {
        0 => {
            let code = child();
            // SAFETY: ends the process.
            unsafe { libc::_exit(code) }
        }
        process => (process > 0).then_some(process),
    }
}

/// Waits for a child: 0, its code, or minus the signal that it died of.
pub(crate) fn wait(process: i32) -> i32 {
    let mut status = 0;
    loop {
        // SAFETY: a child of this process.
        let waited = unsafe { libc::waitpid(process, &raw mut status, 0) };
        if waited == process {
            break;
        }
        let error = io::Error::last_os_error();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted, "waiting for {process}: {error}");
    }
    if libc::WIFSIGNALED(status) { -libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

/// The same, of a child whose threads this process traces: they have to be buried before the child can be.
pub(crate) fn wait_traced(process: i32) -> i32 {
    let mut status = 0;
    loop {
        // SAFETY: children of this process.
        let waited = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
        if waited == process && (libc::WIFSIGNALED(status) || libc::WIFEXITED(status)) {
            break;
        }
        assert!(waited > 0, "waiting for {process}: {}", io::Error::last_os_error());
    }
    if libc::WIFSIGNALED(status) { -libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}
