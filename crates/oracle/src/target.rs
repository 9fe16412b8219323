//! The target as its bytes say it is: the window, and the instructions that a patch of a shape displaces.

use crate::Given;
use crate::calls::{is_call, is_to_stay};
use crate::reader::{decode, goes_on, is_fill, is_near_branch, wrap};
use iced_x86::{Instruction, Mnemonic};
use kdetour_plan::{Hazard, Mode, Offer, Plan, Refusal, Shape, Survey};

/// A displaced instruction.
pub(crate) struct Original<'a> {
    pub(crate) one: Instruction,
    pub(crate) bytes: &'a [u8],
}

/// What stands at the target.
pub(crate) struct Target<'a> {
    pub(crate) mode: Mode,
    pub(crate) shape: Shape,
    pub(crate) entry: u64,
    /// Start of the window.
    pub(crate) window: u64,
    /// Bytes that the patch writes there.
    pub(crate) window_len: usize,
    /// The bytes from the window's start on.
    pub(crate) code: &'a [u8],
    /// From the window's start to the function's end.
    pub(crate) length: Option<usize>,
    pub(crate) originals: Vec<Original<'a>>,
    /// Bytes of the displaced instructions.
    pub(crate) code_len: usize,
    /// The same, and the padding that the window takes.
    pub(crate) covered: usize,
    /// Whether the patch leaves all bytes but the first as they are.
    pub(crate) one_byte: bool,
}

/// Bytes that a patch of a shape writes.
fn window_len(shape: Shape) -> usize {
    match shape {
        Shape::Breakpoint => 1,
        Shape::ShortJump => 2,
        Shape::Jump14 => 14,
        _ => 5,
    }
}

impl<'a> Target<'a> {
    pub(crate) fn read(given: &Given<'a>, shape: Shape, new: &[u8]) -> Result<Self, String> {
        let (mode, entry, bytes) = (given.code.mode(), given.code.address(), given.code.bytes());
        let pad: &[u8] = match mode.bits() {
            32 => &[0xf3, 0x0f, 0x1e, 0xfb],
            _ => &[0xf3, 0x0f, 0x1e, 0xfa],
        };
        let skip = match given.context.fentry {
            Some(site) => usize::try_from(site.wrapping_sub(entry)).map_err(|_| "site before entry")? + 5,
            None if bytes.starts_with(pad) => pad.len(),
            None => 0,
        };
        ensure!(skip <= 9, "{skip} bytes between entry and window");
        let code = bytes.get(skip..).ok_or("window behind the bytes")?;
        let window = wrap(mode, entry.wrapping_add(skip as u64));
        let length = given.code.length().map(|length| length.saturating_sub(skip));
        let window_len = window_len(shape);
        let (originals, code_len) = displaced(mode, code, window, window_len)?;
        let covered = code_len.max(window_len);
        let one_byte = shape == Shape::Jump5Kept && new.get(1..) == code.get(1..window_len);
        let target = Self {
            mode,
            shape,
            entry,
            window,
            window_len,
            code,
            length,
            originals,
            code_len,
            covered,
            one_byte,
        };
        target.check_padding()?;
        Ok(target)
    }

    /// The plan displaces the same instructions, in a window at the same place.
    pub(crate) fn agrees(&self, given: &Given<'_>, survey: &Survey, plan: &Plan) -> Result<(), String> {
        ensure!(given.options.shapes.contains(self.shape), "shape {} was not asked for", self.shape);
        ensure!(survey.window() == self.window, "window at {:#x}, not {:#x}", survey.window(), self.window);
        let offer = self.offer(given, survey);
        let offer = offer.map_err(|refusal| format!("a shape that is not offered: {refusal}"))?;
        let ours: Vec<_> = self.originals.iter().map(|one| (one.one.ip(), one.bytes)).collect();
        let theirs: Vec<_> = survey.displaced(&offer).map(|one| (one.address(), one.bytes())).collect();
        ensure!(theirs == ours, "survey displaces {theirs:x?}, decoded {ours:x?}");
        let theirs: Vec<_> = plan.displaced().map(|one| (one.address(), one.bytes())).collect();
        ensure!(theirs == ours, "plan displaces {theirs:x?}, decoded {ours:x?}");
        let needs = plan.slot_bytes().len();
        // Outside the offered reach a plan may still be made, in forms that take more.
        let offered = offer.reach().contains(plan.slot());
        ensure!(!offered || needs <= offer.need(), "{needs} bytes, {} were said to be needed", offer.need());
        if let Some(length) = self.length {
            ensure!(self.code_len <= length, "displaces bytes behind the function's end");
        }
        self.check_hazards(given, survey.hazards(&offer))?;
        self.check_shape()
    }

    /// Every displaced call is told of, and every displaced branch to the start.
    fn check_hazards(&self, given: &Given<'_>, told: impl Iterator<Item = Hazard>) -> Result<(), String> {
        let ours = self.originals.iter().filter_map(|Original { one, .. }| {
            let address = one.ip();
            if is_call(one) {
                return Some(match is_to_stay(given, one) {
                    true => Hazard::ReturnsToSlot { address },
                    false => Hazard::Call { address, returns_to: one.next_ip() },
                });
            }
            let to = one.near_branch_target();
            let to_start = is_near_branch(one) && (to == self.window || self.is_in_front(to));
            to_start.then_some(Hazard::LoopToStart { address })
        });
        let ours: Vec<_> = ours.collect();
        let of_these = |hazard: &Hazard| {
            matches!(hazard, Hazard::Call { .. } | Hazard::ReturnsToSlot { .. } | Hazard::LoopToStart { .. })
        };
        let theirs: Vec<_> = told.filter(of_these).collect();
        ensure!(theirs == ours, "tells of {theirs:x?}, displaced are {ours:x?}");
        Ok(())
    }

    /// Where each displaced instruction begins.
    pub(crate) fn boundaries(&self) -> impl Iterator<Item = u64> + '_ {
        self.originals.iter().map(|original| original.one.ip())
    }

    /// What the survey offers for such a patch.
    pub(crate) fn offer(&self, given: &Given<'_>, survey: &Survey) -> Result<Offer, Refusal> {
        match survey.offer(self.shape, &given.options) {
            Err(_) if self.one_byte && given.options.one_byte => survey.one_byte_offer(&given.options),
            offer => offer,
        }
    }

    /// Distances from the window's start at which an instruction begins, inside the window and behind its start.
    pub(crate) fn interior(&self) -> impl Iterator<Item = usize> + '_ {
        let offsets = self.boundaries().map(|ip| self.distance(ip)).skip(1);
        offsets.filter_map(|offset| usize::try_from(offset).ok()).filter(|&offset| offset < self.window_len)
    }

    pub(crate) fn distance(&self, address: u64) -> u64 {
        wrap(self.mode, address.wrapping_sub(self.window))
    }

    /// Whether an address is the entry, or between it and the window: what stands there leads into the window.
    pub(crate) fn is_in_front(&self, address: u64) -> bool {
        wrap(self.mode, address.wrapping_sub(self.entry))
            < wrap(self.mode, self.window.wrapping_sub(self.entry))
    }

    /// Where the code goes on behind the displaced instructions, if it does.
    pub(crate) fn resume(&self) -> Option<u64> {
        let last = self.originals.last()?;
        goes_on(&last.one).then(|| wrap(self.mode, self.window.wrapping_add(self.code_len as u64)))
    }

    /// What is overwritten behind the last displaced instruction is never run.
    fn check_padding(&self) -> Result<(), String> {
        let mut at = self.code_len;
        while at < self.window_len {
            ensure!(self.resume().is_none(), "runs into padding");
            let (one, own) = decode(self.mode, self.code.get(at..).unwrap_or(&[]), self.window + at as u64)?;
            ensure!(is_fill(self.mode, &one), "overwrites {one:?}, which is no padding");
            at += own.len();
        }
        Ok(())
    }

    fn check_shape(&self) -> Result<(), String> {
        let interior = self.interior().count();
        match self.shape {
            Shape::WholeInstruction | Shape::ShortJump => {
                ensure!(interior == 0, "{} over {interior} interior boundaries", self.shape);
            }
            // Where all but one byte is kept it does not matter where instructions begin.
            Shape::Jump5Kept if self.one_byte => {}
            Shape::Jump5Kept | Shape::Jump5Trapped | Shape::Jump5 => {
                ensure!(interior > 0, "{} over no interior boundary", self.shape);
            }
            _ => {}
        }
        ensure!(self.shape != Shape::Jump14 || self.mode.bits() == 64, "fourteen bytes in 32-bit code");
        let inside = |original: &&Original<'_>| {
            let next = original.one.next_ip();
            is_call(&original.one) && self.distance(next) < self.window_len as u64
        };
        match self.originals.iter().find(inside) {
            // Such a call would have to end first, and no grace period ends it.
            Some(call) if matches!(self.shape, Shape::Jump5 | Shape::Jump14) => {
                Err(format!("{:#x} returns into the window", call.one.ip()))
            }
            _ => Ok(()),
        }
    }
}

/// Whole instructions until the window is full, or until nothing reaches the next one.
fn displaced(
    mode: Mode,
    code: &[u8],
    window: u64,
    window_len: usize,
) -> Result<(Vec<Original<'_>>, usize), String> {
    let mut found: Vec<Original<'_>> = Vec::new();
    let mut at = 0;
    while at < window_len {
        let ip = wrap(mode, window.wrapping_add(at as u64));
        let leads_here = |original: &Original<'_>| {
            is_near_branch(&original.one)
                && original.one.mnemonic() != Mnemonic::Call
                && original.one.near_branch_target() == ip
        };
        let reached =
            found.last().is_none_or(|original| goes_on(&original.one)) || found.iter().any(leads_here);
        if !reached {
            break;
        }
        let (one, bytes) = decode(mode, code.get(at..).unwrap_or(&[]), ip)?;
        at += bytes.len();
        found.push(Original { one, bytes });
    }
    Ok((found, at))
}
