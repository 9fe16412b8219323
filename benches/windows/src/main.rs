//! Measures kdetour in a Windows process: what calls cost, what attaching costs, alone and beside busy threads.
//!
//! All numbers of one table are measured in turns, in one run. `README.md` one folder up says how.

#[cfg(all(windows, target_arch = "x86_64"))]
mod measured;

#[cfg(all(windows, target_arch = "x86_64"))]
fn main() {
    measured::all();
}

#[cfg(not(all(windows, target_arch = "x86_64")))]
fn main() {
    eprintln!("this is a program for 64-bit Windows");
}
