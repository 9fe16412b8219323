//! A process that must not be dumped, of a user who may nothing: `/proc/self/mem` cannot be opened.

use crate::support::callers::Callers;
use crate::support::runner::{Clock, fail};
use crate::support::sites::{self, Mode, Site};
use crate::support::system::{self, fork, text_by_reading};
use crate::support::targets::{LONGEST, target};
use kdetour::{Error, typed};
use std::fs::File;
use std::time::{Duration, Instant};

/// What becomes of each in such a process: how many toggles, or why not.
fn live(mode: &Mode, prologue: usize, length: Duration) -> Result<(u64, bool), Error> {
    let call = target(prologue, 2);
    let before = text_by_reading(call as *const () as u64, LONGEST);
    let callers = Callers::start(2, call, sites::either);
    let mut site = Site::adding::<0>(call).with(mode);
    let begin = Instant::now();
    let mut toggles = 0;
    let mut outcome = Ok(());
    while outcome.is_ok() && (begin.elapsed() < length || toggles < 5) {
        outcome = site.attach(mode.protocol);
        if outcome.is_ok() {
            if !sites::is_detoured(3, 4, call(3, 4)) {
                fail("attached, and not called");
            }
            if let Err(error) = site.detach(mode.protocol) {
                fail(&format!("{}: attached, but not detached: {error:?}", mode.name));
            }
            toggles += 1;
        }
    }
    callers.stop();
    if text_by_reading(call as *const () as u64, LONGEST) != before {
        fail(&format!("{}: text has changed", mode.name));
    }
    let freed = match typed::reclaim(Duration::from_secs(2)) {
        Ok(_) => true,
        Err(Error::Busy { .. } | Error::ThreadNotReached { .. } | Error::Host(_)) => false,
        Err(error) => fail(&format!("{}: reclaim: {error:?}", mode.name)),
    };
    outcome.map(|()| (toggles, freed))
}

pub(crate) fn undumpable(clock: &Clock) -> String {
    const MODES: [Mode; 5] =
        [sites::EXCHANGE, sites::EXCHANGE_KEPT, sites::EXCHANGE_TRAPPED, sites::LIVE, sites::RENDEZVOUS];
    let mut all = Vec::new();
    for (number, mode) in MODES.iter().enumerate() {
        let length = clock.length() / 6;
        let mut ends = [0; 2];
        // SAFETY: two numbers are written.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        let child = fork(|| {
            // SAFETY: gives up what this child may do; for a user who may nothing anyway they fail.
            unsafe {
                libc::setgid(65534);
                libc::setuid(65534);
                libc::prctl(libc::PR_SET_DUMPABLE, 0);
            }
            if File::options().read(true).write(true).open("/proc/self/mem").is_ok() {
                fail("a process that must not be dumped opens its own memory");
            }
            let line = match live(mode, number % 3, length) {
                Ok((toggles, freed)) => {
                    format!("{toggles} toggles{}", if freed { "" } else { ", not freed" })
                }
                Err(error) => format!("{error:?}"),
            };
            // SAFETY: the line's bytes.
            unsafe { libc::write(ends[1], line.as_ptr().cast(), line.len()) };
            0
        });
        let ended = system::wait(child.expect("a process"));
        assert_eq!(ended, 0, "{}: the child ended so (its code, or minus its signal)", mode.name);
        let mut line = vec![0_u8; 500];
        // SAFETY: room for so many bytes.
        let length = unsafe { libc::read(ends[0], line.as_mut_ptr().cast(), line.len()) };
        line.truncate(usize::try_from(length).unwrap_or(0));
        for end in ends {
            // SAFETY: opened above.
            unsafe { libc::close(end) };
        }
        all.push(format!("{}: {}", mode.name, String::from_utf8_lossy(&line)));
    }
    all.join("; ")
}
