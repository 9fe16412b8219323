//! What the fuzzer has found, run again: every input of `fuzz/regressions/engine`, without the fuzzer.

#[expect(dead_code, unreachable_pub, reason = "the fuzzer's seeds are written with it too")]
#[expect(clippy::panic, clippy::indexing_slicing, reason = "it has to fail")]
#[path = "../../../fuzz/src/engine.rs"]
mod engine;

use std::path::Path;
use std::{fs, panic};

#[test]
fn inputs_that_failed_once() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/regressions/engine");
    let mut inputs: Vec<_> = fs::read_dir(&folder)
        .expect("the folder of regressions can be read")
        .map(|file| file.expect("a file").path())
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} holds no inputs", folder.display());
    let fails = |path: &Path| {
        let input = fs::read(path).expect("an input can be read");
        panic::catch_unwind(|| engine::run(&input)).is_err()
    };
    let failed: Vec<_> = inputs.iter().filter(|path| fails(path)).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}
