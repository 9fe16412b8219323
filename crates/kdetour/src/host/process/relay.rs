//! At which addresses a relay may be.

use kdetour_plan::{Mode, Relays};

/// The lowest address from `from` on at which a relay may be.
pub(crate) fn next_relay(relays: Relays, from: u64) -> Option<u64> {
    match relays.mode() {
        Mode::Bits32 => next_relay_round(relays, from),
        _ => next_relay_between(relays, from),
    }
}

/// Where displacements do not lead round the end of the address space.
fn next_relay_between(relays: Relays, from: u64) -> Option<u64> {
    // Displacements in the order of their addresses: the sign turned round.
    const SIGN: u32 = 1 << 31;
    let lowest = i128::from(relays.after) - (1 << 31);
    let least = u32::try_from((i128::from(from) - lowest).max(0)).ok()?;
    let least = if lowest < 0 { least.max(u32::try_from(-lowest).ok()?) } else { least };
    let found = next_value(relays.mask, relays.value ^ SIGN, least)?;
    let address = u64::try_from(lowest + i128::from(found)).ok()?;
    relays.contains(address).then_some(address)
}

/// Where they do: the addresses below `after` are reached by those displacements, taken as unsigned, that are higher.
fn next_relay_round(relays: Relays, from: u64) -> Option<u64> {
    let Relays { after, mask, value, .. } = relays;
    let (after, from) = (u32::try_from(after).ok()?, u32::try_from(from).ok()?);
    let below = (from < after).then(|| next_value(mask, value, from.wrapping_sub(after))).flatten();
    let found = match below {
        Some(distance) => after.wrapping_add(distance),
        None => {
            let distance = next_value(mask, value, from.saturating_sub(after))?;
            u32::try_from(u64::from(after) + u64::from(distance)).ok()?
        }
    };
    Some(u64::from(found)).filter(|&found| relays.contains(found))
}

/// The lowest number from `least` on that has the bits of `value` where `mask` is set.
fn next_value(mask: u32, value: u32, least: u32) -> Option<u32> {
    let value = value & mask;
    let different = (least ^ value) & mask;
    let Some(bit) = different.checked_ilog2() else { return Some(least) };
    let above = u32::MAX.checked_shl(bit + 1).unwrap_or(0);
    let kept = if value & (1 << bit) != 0 {
        least & above
    } else {
        // A given bit is lower than ours, so that a free one above it has to become higher.
        let free = !least & !mask & above;
        let raised = free & free.wrapping_neg();
        if raised == 0 {
            return None;
        }
        least & raised.wrapping_neg() | raised
    };
    Some(kept & !mask | value)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use Mode::{Bits32, Bits64};
    use kdetour_plan::{Code, Context, Options, Survey};

    /// The relays for which the displacement of the jump at `target` has `value` where `mask` is set.
    pub(crate) fn relays_in(mode: Mode, target: u64, mask: u32, value: u32) -> Relays {
        // push rbp / mov rbp, rsp / ret; in 32-bit mode the second one is two.
        let bytes = [0x55, 0x48, 0x89, 0xe5, 0xc3];
        let code = Code::in_mode(mode, target, &bytes).with_length(bytes.len());
        let survey = Survey::of(&code, &Context::default()).unwrap();
        let options = Options::default();
        let mut relays = survey.offers(&options).find_map(|offer| offer.relays(&options).next()).unwrap();
        (relays.after, relays.mask, relays.value) = (target + 5, mask, value);
        relays
    }

    #[test]
    fn the_next_relay_is_the_first_of_the_ranges() {
        let mut seed = 1_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed >> 32
        };
        for round in 0..4000 {
            // Few free bits, so that there are few ranges.
            let free = (0..6).fold(0xff << (random() % 25), |free, _| free | 1_u32 << (random() % 32));
            let value = u32::try_from(random()).unwrap();
            let places = [(Bits64, 1 << 40), (Bits64, 0x40_0000), (Bits32, 0x40_0000), (Bits32, 3 << 30)];
            let (mode, target) = places[round % 4];
            let relays = relays_in(mode, target + random() % 5000, !free, value & !free);
            let from = relays.after.saturating_add_signed((random().cast_signed() - (1 << 31)) + 7);
            let from = from.min(mode.last_address());
            let lowest = |(first, last): (u64, u64)| (last >= from).then_some(first.max(from));
            assert_eq!(
                next_relay(relays, from),
                relays.ranges().filter_map(lowest).min(),
                "{relays:x?} {from:x}"
            );
        }
        assert_eq!(next_relay(relays_in(Bits64, 1 << 40, 0, 0), 1 << 40), Some(1 << 40));
        assert_eq!(next_relay(relays_in(Bits64, 1 << 40, 0, 0), 1 << 41), None);
    }
}
