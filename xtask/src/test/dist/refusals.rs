//! Kernels that kdetour cannot be built for: `make` refuses each in one line that says why.

use super::place::Place;
use crate::shell::query;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::Path;

/// With these, a kernel is not refused.
const GOOD: [&str; 10] = [
    "X86_64",
    "SMP",
    "MODULES",
    "KPROBES",
    "KALLSYMS",
    "KALLSYMS_ALL",
    "DYNAMIC_FTRACE",
    "JUMP_LABEL",
    "HAVE_STATIC_CALL_INLINE",
    "GENERIC_BUG",
];

/// Tries them in `tree`, where the archive was unpacked.
pub(super) fn check(place: &Place, tree: &Path) -> Result<()> {
    let without = |name: &str| GOOD.iter().copied().filter(|option| *option != name).collect::<Vec<_>>();
    let bad = [
        ("KDIR=/nowhere".to_owned(), "No kernel headers are in /nowhere."),
        ("KVER=0.0-none".to_owned(), "No kernel headers are in /lib/modules/0.0-none/build."),
        (kernel(place, "raw", None)?, "is a kernel tree that was not built"),
        (kernel(place, "i686", Some(&without("X86_64")))?, "is for another processor"),
        (kernel(place, "arm64", Some(&["ARM64", "64BIT"]))?, "is for another processor"),
        (kernel(place, "kprobes", Some(&without("KPROBES")))?, "needs a kernel with CONFIG_KPROBES,"),
        (kernel(place, "kallsyms", Some(&without("KALLSYMS")))?, "needs a kernel with CONFIG_KALLSYMS,"),
    ];
    for (argument, words) in &bad {
        let output = place.command("make").current_dir(tree).arg(argument).output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        let refused = !output.status.success() && output.stdout.is_empty();
        ensure!(
            refused && text.contains(words) && text.lines().count() == 1,
            "`make {argument}` is to say {words:?} in one line, and says:\n{}{text}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    let good = kernel(place, "good", Some(&GOOD))?;
    let text = query(place.command("make").current_dir(tree).arg(good))?;
    ensure!(text.lines().any(|line| line == "built"), "a kernel with all that is needed is refused:\n{text}");
    Ok(())
}

/// A folder that `make` takes for a kernel's headers; what it would build is one word.
fn kernel(place: &Place, name: &str, options: Option<&[&str]>) -> Result<String> {
    let folder = place.folder.join("refusals").join(name);
    let config = folder.join("include/config");
    fs::create_dir_all(&config).with_context(|| format!("cannot create {}", config.display()))?;
    fs::write(folder.join("Makefile"), "modules:\n\t@echo built\n")?;
    if let Some(options) = options {
        let text: String = options.iter().map(|option| format!("CONFIG_{option}=y\n")).collect();
        fs::write(config.join("auto.conf"), text)?;
    }
    Ok(format!("KDIR={}", folder.display()))
}
