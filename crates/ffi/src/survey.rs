//! What a survey finds, as lines of text.

use crate::text::Text;
use core::fmt::{self, Write as _};
use kdetour::host::{Host, View as _};
use kdetour::{Kdetour, Protocol, Record, State, Surveyor, accepted};

/// Writes what a survey of `target` finds, one fact a line. `protocol` is by whom the detour would be written.
pub(crate) fn write_survey<H: Host>(
    to: &mut Text<'_>,
    kdetour: &Kdetour<H>,
    target: u64,
    protocol: Protocol,
) -> fmt::Result {
    let host = kdetour.host();
    writeln!(to, "target {target:#x}")?;
    if let Ok(function) = host.view().and_then(|view| view.function(target)) {
        writeln!(to, "length {}", function.length.unwrap_or(0))?;
        writeln!(to, "fentry {:#x}", function.fentry.unwrap_or(0))?;
    }
    let mut bytes = [0; 32];
    if host.read(target, &mut bytes).is_ok() {
        write!(to, "bytes ")?;
        write_hex(to, &bytes)?;
    }
    let attached = |record: &&Record| record.state == State::Attached;
    match kdetour.detours_of(target).filter(attached).count() {
        0 => {}
        count => writeln!(to, "detours {count}")?,
    }
    let mut surveyor = Surveyor::default();
    let found = kdetour.survey(target, &mut surveyor);
    let offered = found.and_then(|survey| Ok((survey.best(&accepted(host, protocol))?, survey)));
    match offered {
        Err(error) => writeln!(to, "error {error}\nreason {}\nverdict no", error.name()),
        Ok((offer, survey)) => {
            writeln!(to, "window {:#x} {}", survey.window(), offer.shape().window_len())?;
            writeln!(to, "shape {}", offer.shape())?;
            for displaced in survey.displaced(&offer) {
                write!(to, "displaced {:#x} ", displaced.address())?;
                write_hex(to, displaced.bytes())?;
            }
            survey.hazards(&offer).try_for_each(|hazard| writeln!(to, "hazard {hazard}"))?;
            writeln!(to, "verdict can be detoured")
        }
    }
}

fn write_hex(to: &mut Text<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(to, "{byte:02x}"))?;
    to.write_char('\n')
}
