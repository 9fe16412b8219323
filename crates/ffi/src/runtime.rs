//! What a no_std program needs to exist: memory from the kernel, and an end for what cannot happen.

use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;

// The C half of kdetour.ko, kernel/linux/host.c.
unsafe extern "C" {
    fn kd_host_alloc(size: usize, align: usize) -> *mut u8;
    fn kd_host_free(memory: *mut u8);
}

/// kvmalloc and kvfree.
struct KernelMemory;

// SAFETY: kvmalloc gives memory of at least the size, aligned as `kd_host_alloc` asks, owned until kvfree.
unsafe impl GlobalAlloc for KernelMemory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: sleeps at most; nothing here allocates in atomic context.
        unsafe { kd_host_alloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, _: Layout) {
        // SAFETY: `memory` came from `alloc`.
        unsafe { kd_host_free(memory) }
    }
}

#[global_allocator]
static MEMORY: KernelMemory = KernelMemory;

/// Nothing in kdetour panics; if something did all the same, this task stops here, with an oops.
#[panic_handler]
fn stop(_: &PanicInfo<'_>) -> ! {
    // SAFETY: traps, and does not return.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}
