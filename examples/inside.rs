//! A detour in the middle of a function: reads one register and changes another, each time an instruction is reached.
//! In 64-bit code; in 32-bit code the registers are `eax` to `edi`.
//!
//! ```text
//! cargo run -p kdetour-examples --example inside
//! ```

use kdetour::typed::{MidDetour, Registers};
use std::arch::global_asm;

global_asm!(
    ".globl price_of",
    ".type price_of, @function",
    "price_of:",
    "    lea rax, [rdi + rdi * 2]",
    ".globl price_of_surcharge",
    "price_of_surcharge:",
    "    add rax, 5",
    "    ret",
    ".size price_of, . - price_of",
);

unsafe extern "C" {
    safe fn price_of(count: u64) -> u64;
    fn price_of_surcharge();
}

extern "C" fn cheaper(registers: &mut Registers) {
    println!("at {:#x}: {} pieces for {}", registers.rip, registers.rdi, registers.rax);
    registers.rax /= 2;
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let here = price_of_surcharge as *const () as u64;
    let before = price_of(4);
    // SAFETY: the function goes on rightly with any number in rax.
    let detour = unsafe { MidDetour::attach(here, cheaper) }?;
    let during = price_of(4);
    drop(detour);
    let after = price_of(4);
    println!("{before} before, {during} with the detour, {after} after");
    if [before, during, after] == [17, 11, 17] {
        Ok(())
    } else {
        Err("the detour did not do what it should".into())
    }
}
