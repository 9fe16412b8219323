//! A plan as one line of JSON, as `kdetour scan --plans` writes it.

use iced_x86::{Decoder, DecoderOptions};
use kdetour_plan::{Mode, Plan};
use std::fmt::Write as _;

/// Bytes as hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The disassembly of one instruction.
pub fn disassembly(mode: Mode, address: u64, bytes: &[u8]) -> (String, usize) {
    let one = Decoder::with_ip(mode.bits(), bytes, address, DecoderOptions::NONE).decode();
    (kdetour_oracle::text(&one), one.len())
}

/// The record of an accepted function.
pub fn accepted(name: &str, mode: Mode, entry: u64, plan: &Plan) -> String {
    let patch = plan.patch();
    let displaced: Vec<String> = plan
        .displaced()
        .map(|one| {
            let text = disassembly(mode, one.address(), one.bytes()).0;
            let bytes = hex(one.bytes());
            format!(r#"{{"address":"{:#x}","bytes":"{bytes}","text":"{text}"}}"#, one.address())
        })
        .collect();
    let map: Vec<String> =
        plan.ip_map().pairs().iter().map(|(old, new)| format!(r#"["{old:#x}","{new:#x}"]"#)).collect();
    let cave = patch.cave().map_or("null".to_string(), |cave| {
        let (expected, new) = (hex(&cave.cave.expected), hex(&cave.new));
        format!(r#"{{"address":"{:#x}","expected":"{expected}","new":"{new}"}}"#, cave.cave.address)
    });
    format!(
        concat!(
            r#"{{"accepted":true,"name":"{}","mode":{},"entry":"{:#x}","detour":"{:#x}","refusal":null,"#,
            r#""shape":"{}","window":{{"address":"{:#x}","len":{}}},"displaced":[{}],"#,
            r#""slot":{{"address":"{:#x}","bytes":"{}","trampoline_offset":{}}},"#,
            r#""patch":{{"address":"{:#x}","expected":"{}","new":"{}"}},"cave":{},"ip_map":[{}],"hazards":[]}}"#
        ),
        name.escape_default(),
        mode.bits(),
        entry,
        patch.detour(),
        plan.shape(),
        patch.address(),
        patch.new_bytes().len(),
        displaced.join(","),
        plan.slot(),
        hex(plan.slot_bytes()),
        plan.trampoline_offset(),
        patch.address(),
        hex(patch.original_bytes()),
        hex(patch.new_bytes()),
        cave,
        map.join(","),
    )
}

/// The record of a refused function.
pub fn refused(name: &str, mode: Mode, entry: u64, reason: &str, address: u64) -> String {
    format!(
        r#"{{"accepted":false,"name":"{}","mode":{},"entry":"{entry:#x}","refusal":{{"reason":"{reason}","address":"{address:#x}"}}}}"#,
        name.escape_default(),
        mode.bits(),
    )
}
