//! At which addresses a relay may be.

use kdetour_plan::Relays;

/// The lowest address from `from` on at which a relay may be.
pub(super) fn next_relay(relays: Relays, from: u64) -> Option<u64> {
    // Displacements in the order of their addresses: the sign turned round.
    const SIGN: u32 = 1 << 31;
    let lowest = i128::from(relays.after) - (1 << 31);
    let least = u32::try_from((i128::from(from) - lowest).max(0)).ok()?;
    let least = if lowest < 0 { least.max(u32::try_from(-lowest).ok()?) } else { least };
    let (mask, value) = (relays.mask, (relays.value ^ SIGN) & relays.mask);
    let different = (least ^ value) & mask;
    let found = match different.checked_ilog2() {
        None => least,
        Some(bit) => {
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
            kept & !mask | value
        }
    };
    let address = u64::try_from(lowest + i128::from(found)).ok()?;
    relays.contains(address).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::super::tests::relays;
    use super::*;

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
            let target = [1 << 40, 0x40_0000, 3 << 30][round % 3] + random() % 5000;
            let relays = relays(target, !free, value & !free);
            let from = relays.after.saturating_add_signed((random().cast_signed() - (1 << 31)) + 7);
            let lowest = |(first, last): (u64, u64)| (last >= from).then_some(first.max(from));
            assert_eq!(
                next_relay(relays, from),
                relays.ranges().filter_map(lowest).min(),
                "{relays:x?} {from:x}"
            );
        }
        assert_eq!(next_relay(relays(1 << 40, 0, 0), 1 << 40), Some(1 << 40));
        assert_eq!(next_relay(relays(1 << 40, 0, 0), 1 << 41), None);
    }
}
