//! How QEMU executes the guest.

use super::Guest;
use crate::kernel::Kernel;
use crate::workspace::Workspace;
use std::fs;
use std::time::Duration;

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Accel {
    /// KVM where a guest really boots under it, else `tcg`.
    #[default]
    Auto,
    /// The host's processor.
    Kvm,
    /// Emulation, all guest CPUs on one host thread: dependable.
    Tcg,
    /// Emulation, one host thread for each guest CPU: stress.
    Mttcg,
}

impl Accel {
    /// Settles `Auto` by booting a probe guest once for each boot of this machine.
    pub(crate) fn settle(self, workspace: &Workspace, kernel: &Kernel) -> Self {
        match self {
            Self::Auto if kvm_boots(workspace, kernel) => Self::Kvm,
            Self::Auto => Self::Tcg,
            settled => settled,
        }
    }

    /// QEMU's arguments.
    pub(crate) fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Mttcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
            Self::Auto | Self::Tcg => ["-accel", "tcg,thread=single", "-cpu", "max"],
        }
    }

    /// Whether a boot that dies may be the emulator's fault, so that another attempt is fair.
    pub(crate) fn is_emulation(self) -> bool {
        self != Self::Kvm
    }

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::Mttcg => "mttcg",
        }
    }
}

/// `/dev/kvm` may open and yet run no guest: nested and filtered KVMs do that.
fn kvm_boots(workspace: &Workspace, kernel: &Kernel) -> bool {
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let verdicts = workspace.out.join(format!("kvm-{}", kernel.release));
    if let Ok(known) = fs::read_to_string(&verdicts)
        && let Some((verdict, seen)) = known.split_once(' ')
        && seen == boot
    {
        return verdict == "yes";
    }
    let mut probe = Guest::new(workspace, kernel, "kvm-probe");
    probe.accel = Accel::Kvm;
    probe.script = b"exit 0\n".to_vec();
    probe.timeout = Duration::from_secs(15);
    let works = probe.run(&mut |_| ()).is_ok_and(|outcome| outcome.exit == 0);
    // Not remembering only costs another probe.
    fs::write(&verdicts, format!("{} {boot}", if works { "yes" } else { "no" })).ok();
    works
}
