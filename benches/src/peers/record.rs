//! A built trampoline as a line of JSON, in the form in which `kdetour scan --plans` writes plans: the emulator of
//! `tests/differential` reads it.

use kdetour_plan::{Plan, Shape};
use serde_json::{Value, json};

/// A displaced instruction, and where its copy is.
pub(crate) struct Copied {
    pub(crate) address: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) text: String,
    pub(crate) copy: u64,
}

/// Padding that holds a long jump.
pub(crate) struct Cave {
    pub(crate) address: u64,
    pub(crate) expected: Vec<u8>,
    pub(crate) new: Vec<u8>,
}

/// A trampoline, whoever built it.
pub(crate) struct Built {
    pub(crate) shape: Shape,
    /// What the patch leads to.
    pub(crate) detour: u64,
    pub(crate) window: u64,
    pub(crate) expected: Vec<u8>,
    pub(crate) new: Vec<u8>,
    pub(crate) cave: Option<Cave>,
    pub(crate) displaced: Vec<Copied>,
    /// The jump back: where it leads, and where it stands.
    pub(crate) back: Option<(u64, u64)>,
    pub(crate) slot: u64,
    pub(crate) slot_bytes: Vec<u8>,
    pub(crate) trampoline: u64,
}

impl Built {
    /// A plan of kdetour's.
    pub(crate) fn from_plan(plan: &Plan) -> Self {
        let (patch, pairs) = (plan.patch(), plan.ip_map().pairs());
        let displaced = plan.displaced().map(|displaced| Copied {
            address: displaced.address(),
            bytes: displaced.bytes().to_vec(),
            text: String::new(),
            copy: plan.ip_map().to_slot(displaced.address()).unwrap_or(0),
        });
        let displaced: Vec<_> = displaced.collect();
        Self {
            shape: plan.shape(),
            detour: patch.detour(),
            window: patch.address(),
            expected: patch.original_bytes().to_vec(),
            new: patch.new_bytes().to_vec(),
            cave: patch.cave().map(|cave| Cave {
                address: cave.cave.address,
                expected: cave.cave.expected.to_vec(),
                new: cave.new.to_vec(),
            }),
            back: pairs.get(displaced.len()).copied(),
            displaced,
            slot: plan.slot(),
            slot_bytes: plan.slot_bytes().to_vec(),
            trampoline: plan.trampoline(),
        }
    }

    /// Bytes of the displaced instructions.
    pub(crate) fn displaced_len(&self) -> usize {
        self.displaced.iter().map(|copied| copied.bytes.len()).sum()
    }

    /// The line.
    pub(crate) fn json(&self, name: &str, entry: u64) -> Value {
        let pairs = self.displaced.iter().map(|copied| (copied.address, copied.copy)).chain(self.back);
        let displaced = self.displaced.iter().map(
            |copied| json!({"address": at(copied.address), "bytes": hex(&copied.bytes), "text": copied.text}),
        );
        let cave = self.cave.as_ref().map(|cave| {
            json!({"address": at(cave.address), "expected": hex(&cave.expected), "new": hex(&cave.new)})
        });
        json!({
            "name": name, "mode": 64, "entry": at(entry), "detour": at(self.detour),
            "accepted": true, "refusal": null, "shape": self.shape.name(),
            "window": {"address": at(self.window), "len": self.new.len()},
            "displaced": displaced.collect::<Vec<_>>(),
            "slot": {"address": at(self.slot), "bytes": hex(&self.slot_bytes),
                     "trampoline_offset": self.trampoline.wrapping_sub(self.slot)},
            "patch": {"address": at(self.window), "expected": hex(&self.expected), "new": hex(&self.new)},
            "cave": cave,
            "ip_map": pairs.map(|(old, new)| [at(old), at(new)]).collect::<Vec<_>>(),
            "hazards": [],
        })
    }
}

fn at(address: u64) -> String {
    format!("{address:#x}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The target of the `jmp rel32` at the beginning of `bytes`, which stand at `address`.
pub(crate) fn jump_target(address: u64, bytes: &[u8]) -> Option<u64> {
    let (&0xe9, rest) = bytes.split_first()? else { return None };
    let displacement = i32::from_le_bytes(*rest.first_chunk()?);
    Some(address.wrapping_add(5).wrapping_add_signed(displacement.into()))
}

/// The target of the `jmp qword ptr [rip+0]` with its address behind it at the beginning of `bytes`.
pub(crate) fn far_jump_target(bytes: &[u8]) -> Option<u64> {
    let address = bytes.strip_prefix(&[0xff, 0x25, 0, 0, 0, 0])?;
    Some(u64::from_le_bytes(*address.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_are_read() {
        let jump = [0xe9, 0xfb, 0x0f, 0x00, 0x00]; // jmp 0x2000
        assert_eq!(jump_target(0x1000, &jump), Some(0x2000));
        let back = [0xe9, 0xfb, 0xff, 0xff, 0xff, 0x90]; // jmp to itself
        assert_eq!(jump_target(0x1000, &back), Some(0x1000));
        assert_eq!(jump_target(0x1000, &jump[..4]), None);
        let far = [0xff, 0x25, 0, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
        assert_eq!(far_jump_target(&far), Some(0x1122_3344_5566_7788));
        assert_eq!(far_jump_target(&jump), None);
    }
}
