//! Branches from one function into another: looked for once, in all code.
//!
//! A survey sees the function that it is about and the parts that are known to belong to it. Others jump there
//! too: a `.cold` part in a stripped file, hand-written assembly that shares a tail, a function whose symbol ends
//! early. Such a branch into the first bytes of a function is what a detour must know of.
//!
//! On the way it is seen where a function ends that is known to reach to the next symbol: at its padding. And if an
//! ordinary instruction is right in front of the next symbol, that is no function, but a label inside this one.

use crate::memory::{Memory, Ranges};
use crate::starts::{Start, What};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use kdetour_plan::Mode;

/// Branches to further inside a function concern no window. A window begins behind a landing pad and an ftrace
/// site, is at most 14 bytes long, and its last instruction at most 15.
const NEAR_ENTRY: u64 = 64;

pub(crate) struct Sweep<'s> {
    pub(crate) file: &'s [u8],
    pub(crate) memory: &'s Memory,
    pub(crate) code: &'s Ranges,
    pub(crate) mode: Mode,
    /// A start without a size reaches up to the next one; its size is found.
    pub(crate) gapless: bool,
    /// At most so many branches are kept.
    pub(crate) limit: usize,
}

impl Sweep<'_> {
    /// The branches' targets. `starts` are sorted by address.
    pub(crate) fn run(&self, starts: &mut [Start]) -> Vec<u64> {
        let mut targets = Vec::new();
        let mut reach = 0;
        let mut index = 0;
        // The function without a size that what is looked at may belong to: its index and number of names.
        let mut owner: Option<(usize, usize)> = None;
        while let Some(first) = starts.get(index).copied() {
            let address = first.address;
            let rest = starts.get(index..).unwrap_or_default();
            let count = rest.iter().take_while(|start| start.address == address).count();
            let group = rest.get(..count).unwrap_or_default();
            let next = rest.get(count).map_or(u64::MAX, |start| start.address);
            let range_end = self.code.around(address).map_or(address, |range| range.end);
            let ends = group.iter().filter_map(Start::end).max();
            reach = ends.map_or(reach, |end| end.max(reach));
            let known = reach > address;
            let end = if known { next.min(reach) } else { next }.min(range_end);
            let is_code = group.iter().any(|start| !matches!(start.what, What::Other | What::Pad));
            if is_code {
                let bytes = self.memory.between(self.file, address, end);
                let (used, goes_on) = self.decode(address, bytes, starts, &mut targets);
                if self.gapless && !known && end == next.min(range_end) {
                    let (from, names) = owner.unwrap_or((index, count));
                    let begin = starts.get(from).map_or(address, |start| start.address);
                    let end = address.saturating_add(used as u64);
                    let size = u32::try_from(end - begin).unwrap_or(0);
                    for start in starts.iter_mut().skip(from).take(names) {
                        start.size = size;
                        // Nothing but padding is the end of something, not a function.
                        if size == 0 {
                            start.what = What::Label;
                        }
                    }
                    reach = reach.max(if goes_on { address } else { end });
                    owner = (goes_on && end == next).then_some((from, names));
                }
            } else {
                owner = None;
            }
            index += count;
        }
        targets.sort_unstable();
        targets.dedup();
        targets
    }

    /// Where the last instruction ends that is no padding, from the start on; and whether it goes on behind it. Whether
    /// a call comes back is not known.
    fn decode(&self, address: u64, bytes: &[u8], starts: &[Start], targets: &mut Vec<u64>) -> (usize, bool) {
        let bits = if self.mode == Mode::Bits32 { 32 } else { 64 };
        let mut decoder = Decoder::with_ip(bits, bytes, address, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        let end = address.saturating_add(bytes.len() as u64);
        let mut used = 0;
        let mut goes_on = false;
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if !is_padding(&instruction) {
                used = decoder.position();
            }
            let flow = instruction.flow_control();
            goes_on = used == decoder.position()
                && !instruction.is_invalid()
                && matches!(flow, FlowControl::Next | FlowControl::ConditionalBranch);
            if !matches!(
                flow,
                FlowControl::UnconditionalBranch
                    | FlowControl::ConditionalBranch
                    | FlowControl::Call
                    | FlowControl::XbeginXabortXend
            ) || !instruction.op0_kind_is_near_branch()
            {
                continue;
            }
            let target = instruction.near_branch_target();
            if (address <= target && target < end) || targets.len() >= self.limit {
                continue;
            }
            let behind = starts.partition_point(|start| start.address <= target);
            let owner = behind.checked_sub(1).and_then(|index| starts.get(index));
            if owner.is_some_and(|owner| owner.address < target && target - owner.address < NEAR_ENTRY) {
                targets.push(target);
            }
        }
        (used, goes_on)
    }
}

fn is_padding(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3)
}

trait NearBranch {
    fn op0_kind_is_near_branch(&self) -> bool;
}

impl NearBranch for Instruction {
    fn op0_kind_is_near_branch(&self) -> bool {
        use iced_x86::OpKind::{NearBranch16, NearBranch32, NearBranch64};
        self.op_count() > 0 && matches!(self.op0_kind(), NearBranch16 | NearBranch32 | NearBranch64)
    }
}
