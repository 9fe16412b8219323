//! The functions that the C half of `kdetour_words.ko` calls. Their C declarations are in `kernel/linux/words_rust.h`.

use crate::arena::Arena;
use crate::words::{LINE, Line, NoWords, words};
use alloc::vec::Vec;
use core::ptr::{self, null_mut};
use core::slice;
use core::sync::atomic::{AtomicPtr, Ordering};

/// What iced-x86's tables take of an arena, with what is thrown away while they are made. `tests/all.rs` measures it.
pub const TABLES: usize = 448 << 10;

/// What errors are to the kernel (include/uapi/asm-generic/errno.h).
const EILSEQ: i32 = 84;
const ENODATA: i32 = 61;
const ENOSPC: i32 = 28;
const EINVAL: i32 = 22;

/// All memory that the module has. `tests/all.rs` allocates from it, too.
#[cfg_attr(target_os = "none", global_allocator)]
pub static MEMORY: Arena = Arena::none();

/// The first of the lines, each of which is used by one call at a time.
static LINES: AtomicPtr<Line> = AtomicPtr::new(null_mut());

/// How many bytes `kd_words_start` needs for that many lines.
#[unsafe(no_mangle)]
pub extern "C" fn kd_words_memory(lines: usize) -> usize {
    lines.saturating_mul(LINE + size_of::<Line>()).saturating_add(TABLES)
}

/// Makes everything. Nothing is allocated from then on.
///
/// # Safety
/// Called once, before all others; `memory` has the `kd_words_memory(lines)` bytes in `size`, and stays until the module goes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_words_start(memory: *mut u8, size: usize, lines: usize) {
    // SAFETY: by the caller's word.
    unsafe { MEMORY.give(memory, size) };
    let mut all = Vec::with_capacity(lines);
    all.resize_with(lines, Line::new);
    LINES.store(all.leak().as_mut_ptr(), Ordering::Release);
    MEMORY.end();
}

/// The text of the instruction that `code` begins with, with a NUL behind it, and its length; or a negative errno, and
/// `text` is as it was.
///
/// # Safety
/// `kd_words_start` has returned; `code` is readable for `len` bytes, `text` writable for `size`; `line` is one of the
/// lines, and no other call has it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_words(
    line: usize,
    code: *const u8,
    len: usize,
    address: u64,
    text: *mut u8,
    size: usize,
) -> i32 {
    // SAFETY: it is one of them, and by the caller's word nobody else's.
    let line = unsafe { &mut *LINES.load(Ordering::Acquire).add(line) };
    // SAFETY: by the caller's word.
    let code = unsafe { slice::from_raw_parts(code, len) };
    match words(code, address, line) {
        Ok((_, found)) if found.len() >= size => -ENOSPC,
        Ok((length, found)) => {
            // SAFETY: `text` has room for more than the text; a line is no memory of a caller's.
            unsafe { ptr::copy_nonoverlapping(found.as_ptr(), text, found.len()) };
            // SAFETY: as above.
            unsafe { *text.add(found.len()) = 0 };
            i32::try_from(length).unwrap_or(-EINVAL)
        }
        Err(NoWords::Cut) => -ENODATA,
        Err(NoWords::Invalid) => -EILSEQ,
    }
}

/// Nothing here panics; if something did all the same, whoever called stops here, with an oops.
#[cfg(target_os = "none")]
#[panic_handler]
fn stop(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: traps, and does not return.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}
