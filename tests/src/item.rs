//! A case under one plan, as `native/runner.c` reads it (`struct item`).

use crate::case::{Case, ENTRY};
use kdetour_plan::{Plan, Shape};

/// Sizes of the arrays in `struct item`.
const NAME: usize = 64;
const SHAPE: usize = 32;
const PAIRS: usize = 24;
const RUNS: usize = 8;
const ARGUMENTS: usize = 32;
const SLOT: usize = 512;

/// What the runner is told. Fields may be changed to see whether it notices.
#[derive(Clone, Debug)]
pub struct Item {
    case: Case,
    /// The case's name and what is special about the plan.
    pub name: String,
    shape: Shape,
    base: u64,
    /// Bytes of the slot.
    pub slot: Vec<u8>,
    /// Where the slot is.
    pub slot_address: u64,
    trampoline_offset: usize,
    detour: u64,
    /// Bytes that are written at the window.
    pub patch: Vec<u8>,
    patch_old: Vec<u8>,
    patch_address: u64,
    cave: Option<(u64, [u8; 5], [u8; 5])>,
    /// The map from old to new addresses.
    pub map: Vec<(u64, u64)>,
    /// How many of its pairs are instructions; one more is the way back.
    pub displaced: usize,
    returns_to_slot: bool,
}

impl Item {
    /// The case at `base` under `plan`.
    pub fn new(case: &Case, base: u64, variant: &str, plan: &Plan) -> Self {
        let patch = plan.patch();
        Self {
            case: case.clone(),
            name: format!("{}{variant}", case.name),
            shape: plan.shape(),
            base,
            slot: plan.slot_bytes().to_vec(),
            slot_address: plan.slot(),
            trampoline_offset: plan.trampoline_offset(),
            detour: patch.detour(),
            patch: patch.new_bytes().to_vec(),
            patch_old: patch.window_bytes().to_vec(),
            patch_address: patch.address(),
            cave: patch.cave().map(|cave| (cave.cave.address, cave.cave.expected, cave.new)),
            map: plan.ip_map().pairs().to_vec(),
            displaced: plan.displaced().count(),
            returns_to_slot: plan.returns_to_slot(),
        }
    }

    /// The plan's shape.
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// Whether the runner goes through it step by step.
    pub const fn is_stepped(&self) -> bool {
        !self.case.no_steps
    }

    /// Its bytes in the runner's file.
    pub fn write(&self, out: &mut Vec<u8>) {
        text(out, &self.name, NAME);
        text(out, self.shape.name(), SHAPE);
        let (cave, cave_old, cave_new) = self.cave.unwrap_or_default();
        for word in [
            self.base,
            self.base + ENTRY as u64,
            self.slot_address,
            self.slot.len() as u64,
            self.slot_address + self.trampoline_offset as u64,
            self.detour,
            self.patch_address,
            self.patch.len() as u64,
            cave,
            if cave == 0 { 0 } else { 5 },
            self.displaced as u64,
            self.map.len() as u64,
        ] {
            out.extend(word.to_le_bytes());
        }
        for pair in 0..PAIRS {
            let (old, new) = self.map.get(pair).copied().unwrap_or_default();
            out.extend(old.to_le_bytes());
            out.extend(new.to_le_bytes());
        }
        let case = &self.case;
        let flags = [case.no_steps, self.returns_to_slot].map(u64::from);
        for word in [case.runs.len() as u64, case.entries.unwrap_or(0)].into_iter().chain(flags) {
            out.extend(word.to_le_bytes());
        }
        assert!(case.runs.len() <= RUNS, "{} has too many runs", case.name);
        for index in 0..RUNS {
            // Values that no case names: something in every register.
            let mut registers: [u64; 16] = std::array::from_fn(|at| {
                0x1111_2222_3333_0000_u64.wrapping_mul(at as u64 + 3) + 77 * at as u64
            });
            let mut arguments: [u64; ARGUMENTS] = std::array::from_fn(|at| 0x4545_0000 + at as u64);
            let mut flags = 0;
            if let Some(run) = case.runs.get(index) {
                for (register, value) in &run.registers {
                    registers[*register] = value.at(self.base);
                }
                for (argument, value) in &run.arguments {
                    arguments[*argument] = value.at(self.base);
                }
                flags = run.flags;
            }
            registers
                .iter()
                .chain([&flags])
                .chain(&arguments)
                .for_each(|word| out.extend(word.to_le_bytes()));
        }
        padded(out, &self.patch_old, 16);
        padded(out, &self.patch, 16);
        padded(out, &cave_old, 8);
        padded(out, &cave_new, 8);
        padded(out, &self.slot, SLOT);
        out.extend(&case.code);
        out.extend(case.data_at(self.base));
    }
}

fn text(out: &mut Vec<u8>, text: &str, len: usize) {
    assert!(text.len() < len, "{text} is too long a name");
    padded(out, text.as_bytes(), len);
}

fn padded(out: &mut Vec<u8>, bytes: &[u8], len: usize) {
    assert!(bytes.len() <= len, "{} bytes do not fit {len}", bytes.len());
    out.extend(bytes);
    out.resize(out.len() + len - bytes.len(), 0);
}
