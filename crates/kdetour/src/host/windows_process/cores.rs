//! Making every core that runs this process fetch its code anew.
//!
//! `FlushProcessWriteBuffers` interrupts every processor that runs a thread of the process (MSDN: "generates an interprocessor interrupt to
//! all processors that are part of the current process affinity"), and whoever returns from an interrupt has executed IRET, which
//! serializes (Intel SDM volume 3, "Serializing Instructions"). A thread that does not run now is switched to later, which serializes, too.
//!
//! Wine 8 has the function and does nothing in it. There a write itself does the same: each changes its page's protection twice
//! ([`flip`](super::flip)), and for a page that can be written less the kernel interrupts whoever may have it in a translation buffer.

use super::arch;
use super::nt::Nt;

/// Returns when every core that runs a thread of this process has executed a serializing instruction.
pub(super) fn sync(nt: &Nt) {
    nt.flush();
    arch::serialize();
}
