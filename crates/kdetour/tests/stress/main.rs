//! Stress: detours come and go in a process whose threads do what threads do.
//!
//! Each scenario runs in a process of its own, so that one that crashes or hangs is named and does not end the others.
//!
//! ```text
//!   cargo test --test stress                      every scenario, some 40 seconds
//!   cargo test --test stress -- --seconds 3600    the same for an hour
//!   cargo test --test stress -- chain drain       those whose names contain one of the words
//!   cargo test --test stress -- --list
//! ```

#[cfg(test)]
#[cfg(any(
    all(feature = "linux-process", target_os = "linux", any(target_arch = "x86_64", target_arch = "x86")),
    all(feature = "windows-process", windows, any(target_arch = "x86_64", target_arch = "x86")),
))]
mod scenarios;
#[cfg(test)]
#[cfg(any(
    all(feature = "linux-process", target_os = "linux", any(target_arch = "x86_64", target_arch = "x86")),
    all(feature = "windows-process", windows, any(target_arch = "x86_64", target_arch = "x86")),
))]
mod support;

#[cfg(test)]
#[cfg(any(
    all(feature = "linux-process", target_os = "linux", any(target_arch = "x86_64", target_arch = "x86")),
    all(feature = "windows-process", windows, any(target_arch = "x86_64", target_arch = "x86")),
))]
fn main() -> std::process::ExitCode {
    support::runner::main(scenarios::ALL)
}

#[cfg(not(all(
    test,
    any(
        all(
            feature = "linux-process",
            target_os = "linux",
            any(target_arch = "x86_64", target_arch = "x86")
        ),
        all(feature = "windows-process", windows, any(target_arch = "x86_64", target_arch = "x86")),
    ),
)))]
fn main() {}
