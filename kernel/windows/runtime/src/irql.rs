//! The interrupt request level of this processor.

/// Where threads run.
pub const PASSIVE_LEVEL: u8 = 0;
/// Where no thread is scheduled; the last at which pool is taken.
pub(crate) const DISPATCH_LEVEL: u8 = 2;

/// No interrupt is taken.
#[cfg(target_arch = "x86_64")]
const HIGH_LEVEL: u8 = 15;

// As wdm.h declares them; any level. On x64 it is a register of the processor, of which nothing else is asked here; on x86 the HAL keeps it.
#[cfg(target_arch = "x86_64")]
unsafe extern "system" {
    fn KfRaiseIrql(to: u8) -> u8;
    fn KeLowerIrql(to: u8);
}

#[cfg(target_arch = "x86")]
unsafe extern "fastcall" {
    fn KfRaiseIrql(to: u8) -> u8;
    fn KfLowerIrql(to: u8);
}

#[cfg(target_arch = "x86")]
unsafe extern "system" {
    fn KeGetCurrentIrql() -> u8;
}

/// The present level. Any IRQL.
pub fn irql() -> u8 {
    // SAFETY: tells it.
    #[cfg(target_arch = "x86")]
    unsafe {
        KeGetCurrentIrql()
    }
    // SAFETY: without a privileged instruction it is told only when it is raised; any level may be raised to the highest, and is lowered
    // again at once.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        let now = KfRaiseIrql(HIGH_LEVEL);
        KeLowerIrql(now);
        now
    }
}

/// Runs `f` at `DISPATCH_LEVEL`; none above.
#[cfg(feature = "runtime")]
pub(crate) fn at_dispatch_level<R>(f: impl FnOnce() -> R) -> Option<R> {
    // SAFETY: any level may be raised to the highest; it is lowered again below, on this processor, to what it was.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        let before = KfRaiseIrql(HIGH_LEVEL);
        let may = before <= DISPATCH_LEVEL;
        let done = may.then(|| {
            KeLowerIrql(DISPATCH_LEVEL);
            f()
        });
        KeLowerIrql(before);
        done
    }
    #[cfg(target_arch = "x86")]
    {
        if irql() > DISPATCH_LEVEL {
            return None;
        }
        // SAFETY: it is not higher, and is lowered again below, on this processor.
        let before = unsafe { KfRaiseIrql(DISPATCH_LEVEL) };
        let done = f();
        // SAFETY: to what it was.
        unsafe { KfLowerIrql(before) };
        Some(done)
    }
}
