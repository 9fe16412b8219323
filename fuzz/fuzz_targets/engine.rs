//! Survey, every offer, every plan, in both modes: what `engine::run` says.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| kdetour_fuzz::engine::run(input));
