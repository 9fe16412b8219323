//! The functions that the C half of `kdetour.ko` calls. Their C declarations are in `kernel/linux/rust.h`.
//!
//! Every one of them, but for the breakpoint hook in the host, is called with the module's mutex held, in process
//! context, where sleeping is allowed.

use crate::code::code;
use crate::counts::{count_refusal, forget_refusals};
use crate::method;
use crate::patch::PatchRecord;
use crate::report::ErrorRecord;
use crate::survey::write_survey;
use crate::text::{Text, put_text};
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::iter;
use core::slice;
use iced_x86::{Decoder, DecoderOptions};
use kdetour::host::linux_kernel::LinuxKernel;
use kdetour::host::{Drain, Host, Span};
use kdetour::{Attach, Error, Handle, Kdetour, Method, Protocol, Record, Session, SessionError, State};

// The C half of kdetour.ko, kernel/linux/requests.c.
unsafe extern "C" {
    /// Tells a client what its detour has to call as the original.
    fn kd_announce(announce: u64, handle: u64, original: u64, attached: bool);
}

/// Tells a detour's client its original.
fn announce(record: &Record, original: u64) {
    let Record { original: announce, handle, state, .. } = *record;
    // SAFETY: `announce` is what the request said, which by `kd_attach`'s contract is true for as long as the record
    // exists; the module's mutex is held, as in every function of this file.
    unsafe { kd_announce(announce, handle.as_raw(), original, state == State::Attached) }
}

/// The detours of the running kernel.
struct Running(UnsafeCell<Option<Kdetour<LinuxKernel>>>);

// SAFETY: every access is from a function of this file, and those are called with the module's mutex held.
unsafe impl Sync for Running {}

static RUNNING: Running = Running(UnsafeCell::new(None));

/// Runs `f` with the detours of the running kernel.
///
/// # Safety
/// The module's mutex is held.
pub(crate) unsafe fn with<R>(f: impl FnOnce(&mut Kdetour<LinuxKernel>) -> R) -> Option<R> {
    // SAFETY: the mutex makes this the only access; `f` cannot reach this function again.
    let running = unsafe { &mut *RUNNING.0.get() };
    running.as_mut().map(f)
}

/// `struct kd_request`: a detour to attach, or one that drains, to attach again.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// 0, or the detour that drains.
    handle: u64,
    target: u64,
    detour: u64,
    announce: u64,
    in_flight: u64,
    owner: u64,
    method: u32,
    unused: u32,
    /// Its client's own memory for the slot; 0 for none.
    slot: u64,
    slot_len: u64,
}

impl Request {
    fn attach(&self) -> Attach {
        let Self { target, detour, announce: original, in_flight, owner, slot: address, .. } = *self;
        // The C half has looked at it.
        let method = method::of(self.method.cast_signed()).unwrap_or_default();
        let len = usize::try_from(self.slot_len).unwrap_or(0);
        let slot = (address != 0).then_some(Span { address, len });
        Attach { method, target, detour, original, in_flight, owner, slot, chain: true, ..Attach::default() }
    }
}

const _: () = assert!(size_of::<Request>() == 8 * 8 + 2 * 4);

/// `struct kd_info`: one line of the list of detours.
#[repr(C)]
#[derive(Debug)]
pub struct Info {
    handle: u64,
    target: u64,
    window: u64,
    detour: u64,
    slot: u64,
    owner: u64,
    in_flight: u64,
    calls: u64,
    announce: u64,
    function: u64,
    slot_len: u32,
    displaced_len: u32,
    attached: u32,
    method: u32,
    planned: u32,
    order: u32,
    of: u32,
    unused: u32,
    original: [u8; 20],
    now: [u8; 20],
    shape: [u8; 20],
    protocol: [u8; 12],
}

const _: () = assert!(size_of::<Info>() == 10 * 8 + 8 * 4 + 3 * 20 + 12);

/// Fills the record, if there is one, counts a refusal, and gives the error's number.
///
/// # Safety
/// `record` is null or a writable `struct kdetour_error`; the mutex is held.
unsafe fn report(record: *mut ErrorRecord, failure: SessionError) -> i32 {
    if let Error::Refused(refusal) = &failure.error {
        // SAFETY: the mutex is held.
        unsafe { count_refusal(refusal.name()) };
    }
    // SAFETY: by the caller's word.
    if let Some(record) = unsafe { record.as_mut() } {
        record.tell(&failure);
    }
    code(&failure.error)
}

/// Starts. 0, or an error's number.
///
/// # Safety
/// The C half has finished `kd_lookup_init`; the module's mutex is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_start() -> i32 {
    // SAFETY: by the caller's word.
    let host = unsafe { LinuxKernel::new() };
    // SAFETY: the mutex makes this the only access.
    unsafe { *RUNNING.0.get() = Some(Kdetour::new(host)) };
    // The decoder makes its tables when it is first used, and `kd_length` may be where nothing can be allocated.
    length(&[0x90], 0);
    0
}

/// Ends: gives back all memory but the decoder's tables.
///
/// # Safety
/// Nothing is attached, the breakpoint hook is gone; the module's mutex is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_stop() {
    // SAFETY: the mutex is held.
    unsafe { forget_refusals() };
    // SAFETY: the mutex makes this the only access.
    if let Some(kdetour) = unsafe { (*RUNNING.0.get()).take() } {
        kdetour.stop();
    }
}

/// Commits by one of `enum kdetour_protocol`, and tells clients their originals.
fn commit(session: Session<'_, LinuxKernel>, protocol: u32) -> Result<Vec<Handle>, SessionError> {
    match protocol {
        0 => session.commit_live(&mut announce),
        1 => session.commit_rendezvous(&mut announce),
        2 => session.commit_solo(&mut announce),
        _ => Err(SessionError { index: 0, error: Error::Host(0) }),
    }
}

/// Attaches `count` detours in one session, or none; `handles` receives theirs. 0, or an error's number: then those that it had
/// attached for a moment, and that are to be drained, in no order that matters; the others are 0.
///
/// # Safety
/// `requests` and `handles` point to `count` of their kind, `error` is null or a record, the mutex is held. Each
/// request's detour has its target's signature, its `announce` is what `kd_announce` understands, until the detour has been
/// reclaimed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_attach(
    requests: *const Request,
    count: usize,
    protocol: u32,
    handles: *mut u64,
    error: *mut ErrorRecord,
) -> i32 {
    // SAFETY: by the caller's word.
    let (requests, out) =
        unsafe { (slice::from_raw_parts(requests, count), slice::from_raw_parts_mut(handles, count)) };
    let attach = |kdetour: &mut Kdetour<LinuxKernel>| {
        let session = requests.iter().fold(kdetour.session(), |session, request| {
            // SAFETY: by the caller's word the detour has its target's signature; the C half detaches and drains it
            // before its module's memory goes, the slot's too.
            unsafe {
                match request.handle {
                    0 => session.attach(request.attach()),
                    again => session.reattach(Handle::from_raw(again), request.announce),
                }
            }
        });
        let outcome = commit(session, protocol);
        let given = outcome.as_ref().map_or(kdetour.left_behind(), Vec::as_slice);
        let all = given.iter().map(|handle| handle.as_raw()).chain(iter::repeat(0));
        out.iter_mut().zip(all).for_each(|(to, from)| *to = from);
        outcome
    };
    // SAFETY: the mutex is held.
    let outcome = unsafe { with(attach) };
    match outcome {
        Some(Ok(_)) => 0,
        // SAFETY: by the caller's word.
        Some(Err(failure)) => unsafe { report(error, failure) },
        // SAFETY: as above.
        None => unsafe { report(error, SessionError { index: 0, error: Error::NotAttached }) },
    }
}

/// Detaches `count` detours in one session, or none. They then drain. 0, or an error's number.
///
/// # Safety
/// `handles` points to `count` numbers, `error` is null or a record, the mutex is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_detach(
    handles: *const u64,
    count: usize,
    protocol: u32,
    error: *mut ErrorRecord,
) -> i32 {
    // SAFETY: by the caller's word.
    let handles = unsafe { slice::from_raw_parts(handles, count) };
    // SAFETY: the mutex is held.
    let outcome = unsafe {
        with(|kdetour| {
            let session = handles
                .iter()
                .fold(kdetour.session(), |session, &handle| session.detach(Handle::from_raw(handle)));
            // Whoever stays is told to leave them out, before anybody waits for those who are inside.
            commit(session, protocol)
        })
    };
    match outcome {
        Some(Ok(_)) => 0,
        // SAFETY: by the caller's word.
        Some(Err(failure)) => unsafe { report(error, failure) },
        // SAFETY: as above.
        None => unsafe { report(error, SessionError { index: 0, error: Error::NotAttached }) },
    }
}

/// Plans one detour, to be written later: all but the write. `handle` receives its handle, also where it fails after that was
/// planned: it is to be given back then. `patch` is told what is to be written. 0, or an error's number.
///
/// # Safety
/// As for [`kd_attach`], with one request and one handle; `patch` is null or a writable `struct kdetour_patch`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_plan(
    request: *const Request,
    protocol: u32,
    handle: *mut u64,
    patch: *mut PatchRecord,
    error: *mut ErrorRecord,
) -> i32 {
    // SAFETY: by the caller's word.
    let (request, handle, patch) = unsafe { (&*request, &mut *handle, patch.as_mut()) };
    let by = match protocol {
        0 => Protocol::Live,
        1 => Protocol::Rendezvous,
        _ => Protocol::Local,
    };
    let failed = |error| SessionError { index: 0, error };
    let plan = |kdetour: &mut Kdetour<LinuxKernel>| {
        // SAFETY: as in `kd_attach`.
        let planned = unsafe { kdetour.session().attach(request.attach()) }.plan(by, &mut announce)?;
        let planned = planned.first().copied().ok_or(failed(Error::NotAttached))?;
        *handle = planned.as_raw();
        kdetour.answer_plan(planned).map_err(failed)?;
        let written = kdetour.record(planned).and_then(|record| record.patch);
        if let (Some(patch), Some(written)) = (patch, written) {
            *patch = PatchRecord::of(&written);
        }
        Ok(())
    };
    // SAFETY: the mutex is held.
    match unsafe { with(plan) } {
        Some(Ok(())) => 0,
        // SAFETY: by the caller's word.
        Some(Err(failure)) => unsafe { report(error, failure) },
        // SAFETY: as above.
        None => unsafe { report(error, failed(Error::NotAttached)) },
    }
}

/// The patch of a planned detour has been written by its client: it is attached. 0, or an error's number.
///
/// # Safety
/// It was written where nobody stood inside the window, and every processor has fetched its bytes anew since; `error` is null or a
/// record, the mutex is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_written(handle: u64, error: *mut ErrorRecord) -> i32 {
    // SAFETY: the mutex is held, and the rest is the caller's word.
    let outcome = unsafe { with(|kdetour| kdetour.assume(Handle::from_raw(handle), &mut announce)) };
    let Err(why) = outcome.unwrap_or(Err(Error::NotAttached)) else { return 0 };
    // SAFETY: by the caller's word.
    unsafe { report(error, SessionError { index: 0, error: why }) }
}

/// Makes sure that the patch of a planned detour is not in the text, so that it may be given back; of any other it says nothing.
/// 0, or an error's number.
///
/// # Safety
/// `error` is null or a record; the mutex is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_check_unwritten(handle: u64, error: *mut ErrorRecord) -> i32 {
    // SAFETY: the mutex is held.
    let outcome = unsafe { with(|kdetour| kdetour.may_be_given_up(Handle::from_raw(handle))) };
    let Some(Err(why)) = outcome else { return 0 };
    // SAFETY: by the caller's word.
    unsafe { report(error, SessionError { index: 0, error: why }) }
}

/// Detaches a detour without writing its target, whose memory is about to go. 0, or an error's number.
///
/// # Safety
/// The mutex is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_forget(handle: u64) -> i32 {
    // SAFETY: the mutex is held.
    // The target's memory is about to go: nobody executes its patch any more.
    match unsafe { with(|kdetour| kdetour.forget(Handle::from_raw(handle), &mut announce)) } {
        Some(Ok(())) => 0,
        Some(Err(error)) => code(&error),
        None => code(&Error::NotAttached),
    }
}

/// What a handle names: 0 nothing, 1 an attached detour, 2 one that drains. With an `announce` other than 0 only the
/// detour that was requested with it counts.
///
/// # Safety
/// The mutex is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_state(handle: u64, announce: u64) -> i32 {
    let is_meant = |record: &&Record| announce == 0 || record.original == announce;
    // SAFETY: the mutex is held.
    let state = unsafe {
        with(|kdetour| kdetour.record(Handle::from_raw(handle)).filter(is_meant).map(|record| record.state))
    };
    match state.flatten() {
        None => 0,
        Some(State::Attached) => 1,
        Some(State::Draining) => 2,
    }
}

/// Frees the slots of drained detours and forgets them. 0, or an error's number: nothing is freed then.
///
/// # Safety
/// `handles` points to `count` numbers; the detours have been drained; the mutex is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_reclaim(handles: *const u64, count: usize) -> i32 {
    // SAFETY: by the caller's word.
    let raw = unsafe { slice::from_raw_parts(handles, count) };
    let mut handles = Vec::new();
    if handles.try_reserve_exact(count).is_err() {
        return code(&Error::OutOfMemory);
    }
    handles.extend(raw.iter().map(|&handle| Handle::from_raw(handle)));
    // SAFETY: the mutex is held, and the detours are drained.
    match unsafe { with(|kdetour| kdetour.reclaim(&handles)) } {
        Some(Ok(())) => 0,
        Some(Err(error)) => code(&error),
        None => code(&Error::NotAttached),
    }
}

/// Describes the first detour at `place` of the list or behind it, and moves `place` behind that; false if there is none.
///
/// # Safety
/// `place` is a writable number, `info` a writable `struct kd_info`; the mutex is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_info(place: *mut usize, info: *mut Info) -> bool {
    // SAFETY: by the caller's word.
    let place = unsafe { &mut *place };
    let next = |kdetour: &Kdetour<LinuxKernel>| {
        let (next, record) = kdetour.next_record(*place)?;
        *place = next;
        // SAFETY: the mutex is held.
        Some(unsafe { describe(kdetour, record) })
    };
    // SAFETY: by the caller's word.
    unsafe { fill(info, next) }
}

/// Describes the detour that a handle names; false if it names nothing.
///
/// # Safety
/// As for [`kd_info`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_describe(handle: u64, info: *mut Info) -> bool {
    let named = |kdetour: &Kdetour<LinuxKernel>| {
        let record = kdetour.record(Handle::from_raw(handle))?;
        // SAFETY: the mutex is held.
        Some(unsafe { describe(kdetour, record) })
    };
    // SAFETY: by the caller's word.
    unsafe { fill(info, named) }
}

/// Writes down what `find` finds.
///
/// # Safety
/// As for [`kd_info`].
unsafe fn fill(info: *mut Info, find: impl FnOnce(&Kdetour<LinuxKernel>) -> Option<Info>) -> bool {
    // SAFETY: the mutex is held.
    let filled = unsafe { with(|kdetour| find(kdetour)) };
    let Some(described) = filled.flatten() else { return false };
    // SAFETY: by the caller's word.
    unsafe { info.write(described) };
    true
}

/// # Safety
/// The mutex is held.
unsafe fn describe(kdetour: &Kdetour<LinuxKernel>, record: &Record) -> Info {
    let (order, of) = place_in_chain(kdetour, record);
    let led_to = kdetour.pointer_found(record).unwrap_or(0);
    let pointer = led_to.to_ne_bytes();
    // What is there now, and what was there: code, or a pointer.
    let (window, original) = match &record.patch {
        Some(patch) => (patch.address(), patch.original_bytes()),
        None => (record.target, &pointer[..]),
    };
    let mut described = Info {
        handle: record.handle.as_raw(),
        target: record.target,
        window,
        detour: record.detour,
        slot: record.slot.address,
        owner: record.owner,
        in_flight: record.in_flight,
        // SAFETY: the counter was given with the detour, which has its record yet.
        calls: unsafe { kdetour.host().in_flight(record.in_flight) },
        announce: record.original,
        function: if record.patch.is_some() { record.target } else { led_to },
        slot_len: u32::try_from(record.slot.len).unwrap_or(u32::MAX),
        displaced_len: u32::try_from(original.len()).unwrap_or(0),
        attached: u32::from(record.state == State::Attached),
        method: method::number(record.method).cast_unsigned(),
        planned: u32::from(kdetour.is_planned(record)),
        order,
        of,
        unused: 0,
        original: [0; 20],
        now: [0; 20],
        shape: [0; 20],
        protocol: [0; 12],
    };
    for (to, from) in described.original.iter_mut().zip(original) {
        *to = *from;
    }
    let now = described.now.get_mut(..original.len());
    let _ = kdetour.host().read(window, now.unwrap_or_default());
    match (&record.patch, record.method) {
        (None, _) => put_text(&mut described.shape, "Pointer"),
        // Nothing of the patch is written.
        (Some(_), Method::DebugRegister) => put_text(&mut described.shape, "DebugRegister"),
        (Some(patch), _) => put_text(&mut described.shape, patch.shape()),
    }
    put_text(&mut described.protocol, record.protocol.name());
    described
}

/// Which of a target's attached detours this is, 1 for the one that is called first, and how many there are; 0 for one that
/// drains.
fn place_in_chain(kdetour: &Kdetour<LinuxKernel>, record: &Record) -> (u32, u32) {
    let (mut order, mut of) = (0, 0);
    for one in kdetour.detours_of(record.target).filter(|one| one.state == State::Attached) {
        of += 1;
        // Oldest first: those that come behind it are called before it.
        order = if one.handle == record.handle { 1 } else { order + u32::from(order > 0) };
    }
    (order, of)
}

/// Writes what a survey of `target` finds, line by line, into `text`; how many bytes that took.
///
/// # Safety
/// `text` is writable for `len` bytes; the mutex is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_survey(target: u64, text: *mut u8, len: usize) -> usize {
    // SAFETY: by the caller's word.
    let mut text = Text::new(unsafe { slice::from_raw_parts_mut(text, len) });
    // SAFETY: the mutex is held.
    let _ = unsafe { with(|kdetour| write_survey(&mut text, kdetour, target, Protocol::Live)) };
    text.len()
}

/// Where the code at `address` leads: through jumps by a pointer, as import thunks are, and with `skip` through direct ones too.
/// A detour's jump is not followed. 0 if nothing can be read there.
///
/// # Safety
/// The mutex is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_final_code(address: u64, skip: bool) -> u64 {
    let follow = |kdetour: &mut Kdetour<LinuxKernel>| kdetour.behind_thunks(address, skip).unwrap_or(0);
    // SAFETY: the mutex is held.
    unsafe { with(follow) }.unwrap_or(0)
}

/// The length of the instruction at `bytes`, 0 if it is none or cut; in `leads_to` where it jumps, calls or reads relative to
/// RIP, 0 for nowhere. In any context.
///
/// # Safety
/// `bytes` is readable for `len` bytes, `leads_to` is writable; `kd_start` has returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kd_length(bytes: *const u8, len: usize, address: u64, leads_to: *mut u64) -> usize {
    // SAFETY: by the caller's word.
    let (length, leads) = length(unsafe { slice::from_raw_parts(bytes, len) }, address);
    // SAFETY: by the caller's word.
    unsafe { *leads_to = leads };
    length
}

fn length(bytes: &[u8], address: u64) -> (usize, u64) {
    let instruction = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode();
    if instruction.is_invalid() {
        return (0, 0);
    }
    let leads = if instruction.is_ip_rel_memory_operand() {
        instruction.ip_rel_memory_address()
    } else {
        // 0 for what is no near branch.
        instruction.near_branch_target()
    };
    (instruction.len(), leads)
}
