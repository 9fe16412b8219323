//! Somebody else's hook: at the target before ours, over ours, and after ours is gone.

use crate::support::runner::{Clock, tell};
use crate::support::sites::{self, Mode, Site};
use crate::support::system::{poke, text};
use crate::support::targets::{LONGEST, PLACES, PROLOGUES, expected, target};
use kdetour::{Error, Protocol, typed};
use std::ptr;
use std::time::Duration;

const MODES: [Mode; 4] = [sites::EXCHANGE, sites::EXCHANGE_TRAPPED, sites::LIVE, sites::RENDEZVOUS];

/// Where a foreign hook leads: memory outside of every module.
fn elsewhere(near: u64) -> u64 {
    for distance in 1..200_u64 {
        let wanted = ptr::without_provenance_mut((near & !0xfff).wrapping_sub(distance << 20) as usize);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: nothing is replaced.
        let place = unsafe { libc::mmap(wanted, 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if place == libc::MAP_FAILED || place != wanted {
            continue;
        }
        // mov eax, 9; ret
        let code = [0xb8, 9, 0, 0, 0, 0xc3];
        // SAFETY: the new page, which becomes text.
        unsafe {
            ptr::copy_nonoverlapping(code.as_ptr(), place.cast::<u8>(), code.len());
            assert_eq!(libc::mprotect(place, 4096, libc::PROT_READ | libc::PROT_EXEC), 0);
        }
        return place.expose_provenance() as u64;
    }
    panic!("no place for a foreign hook");
}

fn hooks(at: u64, to: u64) -> Vec<(&'static str, Vec<u8>)> {
    let relative = (to.wrapping_sub(at + 5) as i64 as i32).to_le_bytes();
    let mut near = vec![0xe9];
    near.extend(relative);
    // By a pointer that is behind it.
    let (mut far, mut by_register) = (vec![0xff, 0x25], Vec::new());
    if cfg!(target_arch = "x86") {
        far.extend((at as u32 + 6).to_le_bytes());
        by_register.push(0xb8);
    } else {
        far.extend([0; 4]);
        by_register.extend([0x48, 0xb8]);
    }
    for hook in [&mut far, &mut by_register] {
        hook.extend((to as usize).to_le_bytes());
    }
    by_register.extend([0xff, 0xe0]);
    vec![
        ("jmp rel32", near),
        ("jmp by a pointer", far),
        ("int3", vec![0xcc]),
        ("mov rax; jmp rax", by_register),
    ]
}

pub(crate) fn foreign(clock: &Clock) -> String {
    let to = elsewhere(target(0, 0) as *const () as u64);
    let (mut before, mut over, mut after) = (0, 0, 0);
    let mut named = std::collections::BTreeSet::new();
    let mut number = 0;
    while number < PROLOGUES.len() || !clock.is_over() {
        let call = target(number % PROLOGUES.len(), number % PLACES.len());
        let mode = MODES[number % MODES.len()];
        number += 1;
        let at = call as *const () as u64;
        // What is on the landing pad is in nobody's way.
        let window = if (number - 1) % PROLOGUES.len() == 4 { at + 4 } else { at };
        let original = text(at, LONGEST);
        for (name, hook) in hooks(at, to) {
            tell(&format!("{name} before {}", mode.name));
            poke(at, &hook);
            let hooked = text(at, LONGEST);
            let mut site = Site::adding::<0>(call).with(&mode);
            match site.attach(mode.protocol) {
                Err(Error::Refused(refusal)) => drop(named.insert(format!("{name}: {}", refusal.name()))),
                Err(error) => panic!("{name}: {error:?}"),
                // Nobody can tell this one from a function that begins so; then it has to work.
                Ok(()) if name == "mov rax; jmp rax" => {
                    assert_eq!(call(1, 2), 9 + (1 << 44), "{name}");
                    site.detach(mode.protocol).expect("detaches");
                    named.insert(format!("{name}: detoured"));
                }
                Ok(()) => panic!("{name}: attached over it by {}", mode.name),
            }
            assert_eq!(text(at, LONGEST), hooked, "{name}: something was written");
            poke(at, &original);
            typed::reclaim(Duration::from_secs(5)).expect("nobody calls");
            before += 1;
        }
        for (name, hook) in hooks(window, to) {
            let what = format!(
                "{name} over {}, {}, {}",
                mode.name,
                PROLOGUES[(number - 1) % PROLOGUES.len()],
                PLACES[(number - 1) % PLACES.len()]
            );
            tell(&what);
            let mut site = Site::adding::<1>(call).with(&mode);
            match site.attach(mode.protocol) {
                Ok(()) => {}
                Err(Error::Refused(_) | Error::NoSlot { .. }) if mode.shape.is_some() => continue,
                Err(error) => panic!("{what}: {error:?}"),
            }
            let ours = text(at, LONGEST);
            poke(window, &hook);
            let hooked = text(at, LONGEST);
            for protocol in [mode.protocol, Protocol::Exchange] {
                match site.detach(protocol) {
                    Err(Error::Changed { address, expected, found }) => {
                        let offset = usize::try_from(address.wrapping_sub(at)).expect("near");
                        assert_eq!((ours[offset], hooked[offset]), (expected, found), "{what}");
                    }
                    other => panic!("{what}: {other:?}, ours {ours:02x?}"),
                }
                assert_eq!(text(at, LONGEST), hooked, "{what}: something was written");
            }
            assert!(
                typed::reclaim(Duration::from_secs(5)).is_ok_and(|count| count == 0),
                "{what}: it is attached"
            );
            poke(at, &ours);
            assert!(sites::is_detoured(1, 2, call(1, 2)), "{what}");
            site.detach(mode.protocol).expect("detaches when the hook is gone");
            assert_eq!(text(at, LONGEST), original, "{what}");
            over += 1;

            tell(&format!("{name} after {}", mode.name));
            poke(window, &hook);
            let hooked = text(at, LONGEST);
            let error = site.attach(mode.protocol).expect_err("it would be written over");
            assert!(matches!(error, Error::Changed { .. } | Error::Refused(_)), "{what}: {error:?}");
            assert_eq!(text(at, LONGEST), hooked, "{what}: something was written");
            poke(at, &original);
            site.attach(mode.protocol).expect("attaches when the hook is gone");
            site.detach(mode.protocol).expect("detaches");
            assert_eq!(typed::reclaim(Duration::from_secs(5)), Ok(1), "{what}");
            assert_eq!(call(1, 2), expected(1, 2), "{what}");
            after += 1;
        }
    }
    // SAFETY: nothing leads there any more.
    unsafe { libc::munmap(ptr::with_exposed_provenance_mut(to as usize), 4096) };
    let named: Vec<String> = named.into_iter().collect();
    format!("{before} hooks before, {over} over, {after} after ours; {}", named.join("; "))
}
