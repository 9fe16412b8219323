//! What is refused, by which name, and that nothing has been done then.

use super::images::{FOREIGN, OTHER, SEVERAL, TRAPPED, WHOLE, headers, room};
use super::memory::Kind;
use super::simulated::Setting;
use super::*;
use crate::host::windows_kernel::nt::{DISPATCH_LEVEL, Nt};
use crate::host::{Host, Park, Span, View};
use crate::plan::{Reach, Refusal};
use crate::slots::SlotMemory;
use crate::{Method, Surveyor};

/// Attaches to an address, which must fail and change nothing.
fn refused(world: &mut World, target: u64) -> Error {
    let before = world.memory().all();
    let failed = world.attach(target, By::Dpc).unwrap_err();
    assert!(world.memory().all() == before, "{failed:?}");
    assert_eq!((world.kdetour.len(), world.kdetour.slots().bytes_in_use()), (0, 0));
    failed
}

#[test]
fn what_is_no_code_that_stays() {
    let mut world = World::new(&[2]);
    let base = world.target.base;
    assert_eq!(refused(&mut world, 0), Error::Null);
    for nothing in [8, 0x7fff_ffff_f000, u64::MAX, base - 8, base + 7 * PAGE] {
        assert_eq!(refused(&mut world, nothing), Error::NotCode { address: nothing });
    }
    for (what, address) in [("headers", base + 0x90), ("data", base + 6 * PAGE), (".pdata", base + 2 * PAGE)]
    {
        assert_eq!(refused(&mut world, address), Error::NotCode { address }, "{what}");
    }
    let address = base + 3 * PAGE;
    assert_eq!(refused(&mut world, address), Error::Pageable { address });
    for section in [4, 5] {
        let address = base + section * PAGE;
        assert_eq!(refused(&mut world, address), Error::Discardable { address });
    }
    let (address, entry) = (world.function(SEVERAL) + 4, world.function(SEVERAL));
    assert_eq!(refused(&mut world, address), Error::NotFunction { address, entry });
    let address = room(&world.own).address + 32;
    assert_eq!(refused(&mut world, address), Error::Forbidden { address });
    // The detour has to be code of a loaded image, too.
    let detour = base + 6 * PAGE;
    let attach = Attach { detour, ..world.attach_of(world.function(WHOLE)) };
    assert_eq!(world.commit(attach, By::Dpc, None), Err(Error::NotCode { address: detour }));
    // And stay there: it is called at any time, and at any level.
    for (section, error) in [
        (3, Error::Pageable { address: base + 3 * PAGE }),
        (4, Error::Discardable { address: base + 4 * PAGE }),
        (5, Error::Discardable { address: base + 5 * PAGE }),
    ] {
        let attach = Attach { detour: base + section * PAGE, ..attach };
        assert_eq!(world.commit(attach, By::Dpc, None), Err(error));
    }
}

#[test]
fn other_hooks() {
    let mut world = World::new(&[1]);
    let address = world.function(FOREIGN);
    let to = address + 5 + 0x4000_0000;
    assert_eq!(refused(&mut world, address), Error::Refused(Refusal::Foreign { address, to }));
    let address = world.function(TRAPPED);
    assert_eq!(refused(&mut world, address), Error::Refused(Refusal::Breakpoint { address }));
}

#[test]
fn what_needs_somebody_who_answers_breakpoints() {
    let mut world = World::new(&[1]);
    let target = world.function(WHOLE);
    for method in [Method::Breakpoint, Method::DebugRegister] {
        let attach = Attach { method, ..world.attach_of(target) };
        let failed = world.commit(attach, By::Dpc, None);
        assert_eq!(failed, Err(Error::Refused(Refusal::NoShape { address: target })), "{method:?}");
    }
    let attach = Attach { method: Method::Pointer, ..world.attach_of(world.target.base + 6 * PAGE) };
    let address = attach.target;
    assert_eq!(world.commit(attach, By::Dpc, None), Err(Error::NotData { address }));
    assert_eq!(world.kdetour.len(), 0);
}

#[test]
fn images_that_patch_protection_guards() {
    let mut world = World::new(&[1]);
    world.running.set(Setting { guards: true, ..Setting::default() });
    let own = world.function(TRAPPED);
    let own = refused(&mut world, own);
    assert!(matches!(own, Error::Refused(_)), "a driver's own is not guarded: {own:?}");
    let kernel = world.memory().base() + PAGE;
    assert_eq!(refused(&mut world, kernel), Error::PatchGuard { address: kernel });
    for name in ["hal.dll", "NDIS.SYS", "ci.dll"] {
        world.running.set_modules(|modules| {
            let target = &mut modules[1];
            *target = Module::new(target.base, target.size, name.as_bytes());
        });
        let address = world.function(WHOLE);
        assert_eq!(refused(&mut world, address), Error::PatchGuard { address }, "{name}");
    }
    // While a debugger is attached nobody is in the way, nor on 32-bit systems.
    for setting in [
        Setting { guards: true, debugged: true, ..Setting::default() },
        Setting { guards: false, ..Setting::default() },
    ] {
        world.running.set(setting);
        let handle = world.attach(kernel, By::Dpc).unwrap();
        assert_eq!(call(kernel), 42);
        world.detach(handle, By::Dpc).unwrap();
    }
}

#[test]
fn session_space() {
    let mut world = World::new(&[1]);
    let address = world.function(WHOLE);
    world.running.set_modules(|modules| {
        let target = &mut modules[1];
        *target = Module::new(target.base, target.size, b"\\??\\C:\\WINDOWS\\System32\\Win32k.sys");
    });
    assert_eq!(refused(&mut world, address), Error::SessionSpace { address });
    // Nothing of it is there in this process: not even its headers may be read. A display driver, neither.
    for name in [&b"win32k.sys"[..], b"display.dll"] {
        world.memory().set_kind(world.target.base, 7, Kind::Elsewhere);
        world.running.set_modules(|modules| {
            let target = &mut modules[1];
            *target = Module::new(target.base, target.size, name);
        });
        assert_eq!(refused(&mut world, address), Error::SessionSpace { address });
        assert_eq!(world.running.broken(), Vec::<std::string::String>::new());
    }
    world.memory().set_kind(world.target.base, 7, Kind::Resident);
    // In a process where it is there: a pointer to what it imports leads to that.
    let (base, session) = (world.target.base, 0xffff_f960_0000_0000);
    world.running.set_modules(|modules| {
        let target = &mut modules[1];
        *target = Module::new(target.base, target.size, b"display.dll");
        modules.push(Module::new(session, 0x1000, b"win32k.sys"));
    });
    let sections = [section(".text", CODE, &[]), section(".rdata", DATA, &[])];
    world.memory().poke(base, &headers(&sections, [(0, 0), (0, 0), (0x2000, 24)]));
    for pointer in [session, session + 0xfff] {
        world.memory().poke(base + 2 * PAGE + 16, &pointer.to_le_bytes());
        assert_eq!(refused(&mut world, address), Error::SessionSpace { address });
    }
    world.memory().poke(base + 2 * PAGE + 16, &(session - 1).to_le_bytes());
    let handle = world.attach(address, By::Dpc).unwrap();
    world.detach(handle, By::Dpc).unwrap();
}

#[test]
fn kernels_in_which_nothing_can_be_patched() {
    let mut world = World::new(&[1]);
    for (setting, error) in [
        (Setting { integrity: true, ..Setting::default() }, Error::CodeIntegrity),
        (Setting { shadow_stacks: true, ..Setting::default() }, Error::ShadowStack),
    ] {
        world.running.set(setting);
        let target = world.function(WHOLE);
        assert_eq!(refused(&mut world, target), error);
        let new = WindowsKernel::new(world.running.nt.clone(), room(&world.own));
        assert_eq!(new.map(|_| ()), Err(error));
    }
}

#[test]
fn room_for_slots_that_is_none() {
    let world = World::new(&[1]);
    let new = |address| WindowsKernel::new(world.running.nt.clone(), Span { address, len: 256 }).map(|_| ());
    let base = world.target.base;
    for (address, error) in [
        (base + 6 * PAGE, Error::NotCode { address: base + 6 * PAGE }),
        (base + 3 * PAGE, Error::Pageable { address: base + 3 * PAGE }),
        (base + 4 * PAGE, Error::Discardable { address: base + 4 * PAGE }),
        (64, Error::NotCode { address: 64 }),
    ] {
        assert_eq!(new(address), Err(error));
    }
    let room = room(&world.own);
    assert_eq!(new(room.address), Ok(()));
    // Its end lies behind the section.
    let longer = Span { address: room.address, len: 8192 };
    let error = Error::NotCode { address: room.address + PAGE };
    assert_eq!(WindowsKernel::new(world.running.nt.clone(), longer).map(|_| ()), Err(error));
}

#[test]
fn a_target_that_is_too_far_from_the_room() {
    let mut world = World::new(&[1]);
    // Wherever slots may begin, but not in the room.
    let behind = room(&world.own).address + 4096;
    assert!(world.kdetour.slots.near(32, Reach { first: behind, last: u64::MAX }).is_none());
    // And room that is full.
    let mut taken = 0;
    while world.kdetour.slots.near(64, Reach { first: 0, last: u64::MAX }).is_some() {
        taken += 64;
    }
    assert_eq!(taken, room(&world.own).len);
    let target = world.function(WHOLE);
    assert!(matches!(world.attach(target, By::Dpc), Err(Error::NoSlot { target: at, .. }) if at == target));
}

/// At a raised level every call gives its error before it does anything.
#[test]
fn the_wrong_level() {
    let mut world = World::new(&[1]);
    let handle = world.attach(world.function(WHOLE), By::Dpc).unwrap();
    let nt = world.running.nt.clone();
    let before = world.memory().all();
    let (attach, own) = (world.attach_of(world.function(SEVERAL)), room(&world.own));
    let wrong = Error::Irql { now: DISPATCH_LEVEL, most: 0 };
    let mut surveyor = Surveyor::new();
    // SAFETY: it is lowered below.
    let irql = unsafe { nt.raise(DISPATCH_LEVEL) };
    let mut found = [wrong; 8];
    found[0] = WindowsKernel::new(nt.clone(), own).map_or_else(|error| error, |_| Error::Null);
    found[1] = world.kdetour.host().view().map_or_else(|error| error, |_| Error::Null);
    found[2] =
        world.kdetour.host().read(attach.target, &mut [0]).map_or_else(|error| error, |()| Error::Null);
    found[3] = world.kdetour.host().open_text(&[own]).map_or_else(|error| error, |_| Error::Null);
    found[4] =
        world.kdetour.host().park(By::Ipi, &mut || Ok(())).map_or_else(|error| error, |()| Error::Null);
    found[5] = world.kdetour.drain(&[], Duration::ZERO).map_or_else(|error| error, |()| Error::Null);
    found[6] = world.kdetour.survey(attach.target, &mut surveyor).map_or_else(|error| error, |_| Error::Null);
    // SAFETY: as said.
    unsafe { nt.lower(irql) };
    let session = world.kdetour.session().detach(handle);
    // SAFETY: it is lowered below.
    let irql = unsafe { nt.raise(DISPATCH_LEVEL) };
    let failed = session.commit_parked(By::Ipi, None, &mut |_, _| ());
    // SAFETY: as said.
    unsafe { nt.lower(irql) };
    found[7] = failed.map_or_else(|failed| failed.error, |_| Error::Null);
    // What is dropped there gives memory back, which may be done at that level.
    let gives_back = |broken: &std::string::String| broken.contains("memory was taken or given");
    assert!(world.running.broken().iter().all(gives_back));
    assert_eq!(found, [wrong; 8]);
    assert!(world.memory().all() == before);
}

/// Whatever is in an image's headers and tables, nothing is read that is not there, and nothing panics.
#[test]
fn damaged_images() {
    let world = World::new(&[1]);
    let (base, target) = (world.target.base, world.function(WHOLE));
    let mut whole = std::vec![0; 4096];
    world.memory().read(base, &mut whole);
    let ask = || {
        let view = world.kdetour.host().view().unwrap();
        let mut byte = [0; 8];
        let _ = view.read(target, &mut byte);
        view.function(target).map(|function| function.length)
    };
    assert_eq!(ask(), Ok(Some(6)));
    // Cut off.
    for len in (0..0x300).step_by(2) {
        let mut cut = whole.clone();
        cut[len..].fill(0);
        world.memory().poke(base, &cut);
        let found = ask();
        // The two sections that count are there, or the image is none.
        assert!(
            found == Ok(Some(6)) || matches!(found, Err(Error::NotImage { .. } | Error::NotCode { .. })),
            "{len:#x}: {found:?}"
        );
        assert!(len >= 0x1be || found.is_err(), "{len:#x}: {found:?}");
    }
    let mut random = 1_u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let values = [0, 1, 0x7f, 0x80, 0xff];
    for _ in 0..2000 {
        let mut damaged = whole.clone();
        for _ in 0..=next(4) {
            let at = 0x3c + next(0x200) as usize;
            damaged[at] = values[next(5) as usize];
        }
        world.memory().poke(base, &damaged);
        let _ = ask();
    }
    world.memory().poke(base, &whole);
    // Its tables, too.
    let mut table = std::vec![0; 4096];
    world.memory().read(base + 2 * PAGE, &mut table);
    for _ in 0..500 {
        let mut damaged = table.clone();
        for _ in 0..=next(4) {
            damaged[next(0x50) as usize] = values[next(5) as usize];
        }
        world.memory().poke(base + 2 * PAGE, &damaged);
        let _ = ask();
    }
    assert_eq!(world.running.broken(), Vec::<std::string::String>::new());
}

/// What has gone since it was patched is not touched.
#[test]
fn an_image_that_has_gone() {
    let mut world = World::new(&[1]);
    // Nobody calls it while it is damaged.
    let target = world.function(OTHER);
    let handle = world.attach(target, By::Dpc).unwrap();
    assert_eq!(world.kdetour.forget_gone(handle), Err(Error::AlreadyDetoured { target }), "it is there");
    let before = world.memory().all();
    world.memory().poke(target + 4, &[before_byte(&before, &world, target + 4) ^ 1]);
    let failed = world.kdetour.forget_gone(handle);
    assert!(matches!(failed, Err(Error::Changed { address, .. }) if address == target + 4), "{failed:?}");
    world.memory().poke(target + 4, &[before_byte(&before, &world, target + 4)]);
    // Something keeps it from being looked at: that says nothing.
    world.memory().set_kind(world.target.base, 1, Kind::Elsewhere);
    assert_eq!(world.kdetour.forget_gone(handle), Err(Error::SessionSpace { address: target }));
    world.memory().set_kind(world.target.base, 1, Kind::Resident);
    let header = before_byte(&before, &world, world.target.base);
    world.memory().poke(world.target.base, &[0]);
    assert_eq!(world.kdetour.forget_gone(handle), Err(Error::NotImage { address: world.target.base }));
    world.memory().poke(world.target.base, &[header]);
    world.running.set_modules(|modules| drop(modules.remove(1)));
    assert_eq!(world.detach(handle, By::Dpc), Err(Error::NotCode { address: target }));
    assert!(world.memory().all() == before && world.kdetour.record(handle).is_some());
    world.kdetour.forget_gone(handle).unwrap();
    assert_eq!(world.kdetour.forget_gone(handle), Err(Error::NotAttached));
    world.kdetour.drain(&[handle], PATIENCE).unwrap();
    assert!(world.memory().all() == before);
}

/// One set has targets of a driver that has gone, and of one that has not: the latter are detached.
#[test]
fn those_that_have_gone_keep_nobody_else() {
    let mut world = World::new(&[1]);
    let (gone, kernel) = (world.function(OTHER), world.memory().base() + PAGE);
    let handles = [
        world.attach(gone, By::Dpc).unwrap(),
        world.commit(Attach { cell: None, ..world.attach_of(kernel) }, By::Dpc, None).unwrap(),
    ];
    // Somebody else's bytes are no driver that has gone: all stay attached.
    let mut patched = [0];
    world.memory().read(kernel + 4, &mut patched);
    world.memory().poke(kernel + 4, &[patched[0] ^ 1]);
    let failed = world.kdetour.detach_or_forget(&handles, By::Dpc).unwrap_err();
    assert!(matches!(failed.error, Error::Changed { address, .. } if address == kernel + 4), "{failed:?}");
    assert_eq!(world.kdetour.draining(), 0);
    world.memory().poke(kernel + 4, &patched);
    world.running.set_modules(|modules| drop(modules.remove(1)));
    let all = world.memory().all();
    world.kdetour.detach_or_forget(&handles, By::Dpc).unwrap();
    assert!(world.kdetour.are_all_detached(&handles));
    assert_eq!(call(kernel), 7);
    let at = |address: u64| usize::try_from(address - world.memory().base()).unwrap();
    let page = at(gone & !(PAGE - 1))..at((gone & !(PAGE - 1)) + PAGE);
    assert!(world.memory().all()[page.clone()] == all[page], "what has gone is not touched");
    world.kdetour.drain(&handles, PATIENCE).unwrap();
    world.kdetour.detach_or_forget(&handles, By::Dpc).unwrap();
}

fn before_byte(before: &[u8], world: &World, address: u64) -> u8 {
    before[usize::try_from(address - world.memory().base()).unwrap()]
}
