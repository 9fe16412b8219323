//! What the fuzz targets do with an input. Without the fuzzer, so that a test can do it too.

pub mod engine;
