//! The kernel's own verdict on a run: warnings in its log, and its taint flags.
//!
//! ```text
//!   [    4.031862] WARNING: CPU: 0 PID: 71 at kernel/trace/ftrace.c:2097 ftrace_bug+0x8c/0x260    counts
//!   [    4.031862] kdetour: loading out-of-tree module taints kernel.                             does not
//! ```

/// Taint flags of any out-of-tree module (`O`, bit 12) and any unsigned one (`E`, bit 13).
const EXPECTED_TAINT: u64 = 1 << 12 | 1 << 13;

/// What the lines of serious trouble start with, after the time stamp.
const STARTS: &[&str] =
    &["WARNING:", "BUG:", "BUG ", "kernel BUG at", "Oops:", "Kernel panic", "------------[ ftrace bug"];

/// What the lines of serious trouble contain, wherever it stands.
const PARTS: &[&str] = &[
    "general protection fault",
    "Kernel panic - not syncing",
    "watchdog: BUG:",
    "soft lockup",
    "hard LOCKUP",
    "self-detected stall",
    "detected stall",
    "detected expedited stall",
    "blocked for more than",
    "possible circular locking dependency",
    "possible recursive locking",
    "possible irq lock inversion",
    "inconsistent lock state",
    "INFO: trying to register non-static key",
    "suspicious RCU usage",
    "ftrace bug",
    "failed to modify",
    "KASAN:",
    "KCSAN:",
    "UBSAN:",
    "kmemleak:",
    "list_add corruption",
    "list_del corruption",
    "refcount_t:",
    "Bad page state",
    "bad: scheduling",
    "scheduling while atomic",
    "Unable to handle kernel",
    "Trying to vfree()",
    "Missing ENDBR",
    "Skipping invalid relocation target",
    "stack guard page was hit",
];

/// The lines of a kernel log that tell of trouble, in order.
pub(crate) fn warnings(log: &str) -> Vec<String> {
    log.lines().map(|line| line.trim_end()).filter(|line| is_warning(body(line))).map(str::to_owned).collect()
}

/// One line for each taint flag that an out-of-tree module does not explain.
pub(crate) fn taint_warnings(tainted: u64) -> Vec<String> {
    /// Letters of the flags from bit 0 on (`kernel/panic.c`, `taint_flags`).
    const LETTERS: &[u8] = b"PFSRMBUDAWCIOELKXTNJ";
    let unexpected = tainted & !EXPECTED_TAINT;
    (0..64)
        .filter(|bit| unexpected >> bit & 1 == 1)
        .map(|bit| {
            let letter = LETTERS.get(bit as usize).map_or('?', |&letter| letter as char);
            format!("the kernel is tainted {letter} (bit {bit} of /proc/sys/kernel/tainted)")
        })
        .collect()
}

fn is_warning(body: &str) -> bool {
    STARTS.iter().any(|start| body.starts_with(start))
        || PARTS.iter().any(|part| body.contains(part))
        || is_die(body)
}

/// `int3: 0000 [#1] PREEMPT SMP`: the first line of any oops, whatever the trap.
fn is_die(body: &str) -> bool {
    body.split_once(" [#").is_some_and(|(_, rest)| {
        let digits = rest.chars().take_while(char::is_ascii_digit).count();
        digits > 0 && rest[digits..].starts_with(']')
    })
}

/// A line without its `[    1.234567]` stamp and its `[    T71]` caller.
fn body(line: &str) -> &str {
    let mut rest = line.trim_start();
    while let Some((stamp, after)) = rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        let stamp = stamp.trim_start();
        let number = stamp.trim_start_matches(['T', 'C']);
        if number.is_empty() || !number.chars().all(|c| c.is_ascii_digit() || c == '.') {
            break;
        }
        rest = after.trim_start();
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of clean Debian boots and of loading kdetour.
    const CLEAN: &str = "\
[    0.000000] Linux version 6.12.117+deb12-cloud-amd64 (debian-kernel@lists.debian.org)
[    0.025997] calibrate_delay_direct() failed to get a good estimate for loops_per_jiffy.
[    0.120000] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on, data leaks possible
[    0.880873] PCI: Using host bridge windows from ACPI; if necessary, use \"pci=nocrs\" and report a bug
[    0.906534] acpi PNP0A03:00: fail to add MMCONFIG information, can't access extended PCI configuration space
[    1.370586] RAS: Correctable Errors collector initialized.
[    2.000000] kdetour: loading out-of-tree module taints kernel.
[    2.000001] kdetour: module verification failed: signature and/or required key missing - tainting kernel
[    2.100000] clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc' as unstable
[    2.200000] sched: DL replenish lagged too much
";

    #[test]
    fn clean_logs_are_clean() {
        assert_eq!(warnings(CLEAN), Vec::<String>::new());
    }

    #[test]
    fn every_kind_of_trouble_counts_once() {
        for line in [
            "[    4.031862] WARNING: CPU: 0 PID: 71 at kernel/trace/ftrace.c:2097 ftrace_bug+0x8c/0x260",
            "[    4.031862][   T71] WARNING: CPU: 0 PID: 71 at kernel/trace/ftrace.c:2097",
            "[    4.0] BUG: unable to handle page fault for address: ffffffffc0000000",
            "[    4.0] BUG: sleeping function called from invalid context at mm/vmalloc.c:1",
            "[    4.0] kernel BUG at arch/x86/kernel/alternative.c:1234!",
            "[    4.0] int3: 0000 [#1] PREEMPT SMP NOPTI",
            "[    4.0] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI",
            "[    4.0] Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#2] SMP",
            "[    4.0] WARNING: possible circular locking dependency detected",
            "[    4.0] WARNING: inconsistent lock state",
            "[    4.0] WARNING: suspicious RCU usage",
            "[   29.0] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [dd:71]",
            "[   29.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "[   29.0] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[   29.0] INFO: task insmod:71 blocked for more than 120 seconds.",
            "[    4.0] ------------[ ftrace bug ]------------",
            "[    4.0] ftrace failed to modify",
            "[    4.0] BUG: KASAN: slab-out-of-bounds in kd_attach+0x1/0x2",
            "[    4.0] Kernel panic - not syncing: Fatal exception",
        ] {
            assert_eq!(warnings(&format!("{CLEAN}{line}\n")), [line]);
        }
    }

    #[test]
    fn expected_taint_is_no_warning() {
        assert_eq!(taint_warnings(4096 + 8192), Vec::<String>::new());
        assert_eq!(taint_warnings(4096 + 512).len(), 1);
        assert!(taint_warnings(512)[0].contains("tainted W"));
    }
}
