//! Making every core that runs this process fetch its code anew.

use super::arch;
use rustix::thread::{MembarrierCommand, membarrier};

/// Says that this process is going to use [`sync`]. A child made by `fork` inherits it.
pub(super) fn register() {
    // Without it `sync` falls back, so there is nothing to report.
    let _ = membarrier(MembarrierCommand::RegisterPrivateExpeditedSyncCore);
}

/// Returns when every core that runs a thread of this process has executed a serializing instruction: membarrier(2),
/// `MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE`.
pub(super) fn sync() {
    if membarrier(MembarrierCommand::PrivateExpeditedSyncCore).is_err() {
        // That of the calling one at least.
        arch::serialize();
    }
}
