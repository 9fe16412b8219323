//! What the unwinder knows of the calling thread's own frames.
//!
//! Nobody writes all of a frame. In what is not written lie words of calls that are over, and there are some that nobody has ever written whole: the tag
//! of an `enum`, one byte, beside three bytes of an address is an address again. Of a thread that stands still that cannot be told from an
//! address by which it will return. Of the calling thread it can, as far as each frame from here on is followed by the next.
//!
//! ```text
//!   ...                          of this function
//!   return address  <- place     in the function that called it: there a call is in front of it
//!   ...                          that one's frame: nobody returns by what lies in here
//!   return address  <- place
//! ```

use super::super::nt::Nt;
use super::super::regions::Region;
use super::stack::follows_call;
use crate::address::widen;

/// Whether the word at `place`, on the calling thread's stack, lies within a frame that the unwinder knows: nobody returns by it.
///
/// Code of which the unwinder knows nothing ends the search, and so does a frame above which there is no address that a call
/// has left, and code in no image: what is told of a slot is not true of its last instruction. What lies beyond may be anything.
#[inline(never)]
pub(super) fn hold(nt: &Nt, place: u64) -> bool {
    let mut search = Search { nt, place, below: 0, is_within: false };
    walk(&mut search);
    search.is_within
}

/// From frame to frame, upwards.
struct Search<'a> {
    nt: &'a Nt,
    place: u64,
    /// Where the last return address was; 0 in front of the first.
    below: u64,
    is_within: bool,
}

impl Search<'_> {
    /// The next function's stack pointer, behind the address by which it is returned to. Whether it goes on.
    fn goes_on(&mut self, ip: usize, sp: usize) -> bool {
        const WORD: usize = size_of::<usize>();
        let Some(place) = sp.checked_sub(WORD).filter(|place| place.is_multiple_of(WORD)).map(widen) else {
            return false;
        };
        let mut found = [0; WORD];
        let is_there = self.nt.read(place, &mut found).is_ok() && usize::from_le_bytes(found) == ip;
        if !is_there || place <= self.below || !follows_call(self.nt, widen(ip)) {
            return false;
        }
        self.is_within = self.below != 0 && self.below < self.place && self.place < place;
        self.below = place;
        place < self.place && Region::of(self.nt, widen(ip)).is_some_and(|region| region.is_image())
    }
}

#[cfg(target_arch = "x86_64")]
fn walk(search: &mut Search<'_>) {
    use super::super::nt::Context;
    use crate::address::narrow;
    use core::ptr;
    use windows_sys::Win32::System::Diagnostics::Debug::{
        RtlCaptureContext, RtlLookupFunctionEntry, RtlVirtualUnwind, UNW_FLAG_NHANDLER,
    };

    let mut context = Context::of(0);
    // SAFETY: there is room for a context, as it has to be aligned.
    unsafe { RtlCaptureContext(&raw mut context.0) };
    loop {
        let (mut base, mut data, mut frame) = (0, ptr::null_mut(), 0);
        // SAFETY: it looks the address up, whatever it is.
        let entry = unsafe { RtlLookupFunctionEntry(context.0.Rip, &raw mut base, ptr::null_mut()) };
        if entry.is_null() {
            return;
        }
        // SAFETY: the entry of this address, the registers in its function, and room for what is answered.
        let _ = unsafe {
            RtlVirtualUnwind(
                UNW_FLAG_NHANDLER,
                base,
                context.0.Rip,
                entry,
                &raw mut context.0,
                &raw mut data,
                &raw mut frame,
                ptr::null_mut(),
            )
        };
        if !search.goes_on(narrow(context.0.Rip), narrow(context.0.Rsp)) {
            return;
        }
    }
}

/// By DWARF's information, which libgcc finds: of GNU's compilers and Rust's.
#[cfg(all(target_arch = "x86", target_env = "gnu"))]
fn walk(search: &mut Search<'_>) {
    use core::ffi::c_void;

    unsafe extern "C" {
        fn _Unwind_Backtrace(
            visit: unsafe extern "C" fn(*mut c_void, *mut c_void) -> i32,
            with: *mut c_void,
        ) -> i32;
        fn _Unwind_GetIP(context: *mut c_void) -> usize;
        fn _Unwind_GetCFA(context: *mut c_void) -> usize;
    }

    /// # Safety
    /// It is called by `_Unwind_Backtrace`, with a search.
    unsafe extern "C" fn visit(context: *mut c_void, search: *mut c_void) -> i32 {
        // `_URC_NO_REASON` and `_URC_END_OF_STACK`; any other number would end it as well.
        const GO_ON: i32 = 0;
        const END: i32 = 5;
        // SAFETY: the caller says so, and nobody else has it.
        let search = unsafe { &mut *search.cast::<Search<'_>>() };
        // SAFETY: the context is the unwinder's. What it calls the frame's address here is that of the frame below, behind its return address.
        let (ip, sp) = unsafe { (_Unwind_GetIP(context), _Unwind_GetCFA(context)) };
        if search.goes_on(ip, sp) { GO_ON } else { END }
    }

    // SAFETY: it calls back with its own context and the search, which lives until it has come back.
    let _ = unsafe { _Unwind_Backtrace(visit, (&raw mut *search).cast()) };
}

#[cfg(not(any(target_arch = "x86_64", target_env = "gnu")))]
const fn walk(_: &mut Search<'_>) {}

#[cfg(test)]
mod tests {
    use super::super::super::nt::Nt;
    use super::super::{Places, Seen, own, stack::Room};
    use super::*;
    use crate::host::process::caller::{stack_pointer, with_return};
    use core::hint::black_box;
    use core::sync::atomic::{AtomicU64, Ordering};

    /// Where the call in `inside` returns to: the same in each test.
    static RETURN: AtomicU64 = AtomicU64::new(0);

    /// What a look of the caller's own stack finds in these bytes of code.
    fn looked(first: u64, len: u64) -> Seen {
        let (nt, mut seen) = (Nt::get().unwrap(), Seen::Unclear);
        let mut room = Room::new().unwrap();
        let place = first..first + len;
        with_return(|sp| {
            seen = own(nt, sp, &mut room, |word| Places(core::slice::from_ref(&place)).hold(word));
            Ok(0)
        })
        .unwrap();
        seen
    }

    /// Calls `work`, with where that call returns to.
    #[inline(never)]
    fn inside(work: &mut dyn FnMut()) {
        work();
        // No jump to it.
        black_box(&work);
    }

    /// The return address that lies directly above the first word that a call leaves: that into `inside`.
    fn find_return(sp: u64) {
        let nt = Nt::get().unwrap();
        let begin = widen((inside as fn(&mut dyn FnMut()) as *const ()).addr());
        let words = (sp..).step_by(size_of::<usize>()).take(1 << 12).map(|place| {
            let mut word = [0; size_of::<usize>()];
            nt.read(place, &mut word).unwrap();
            widen(usize::from_le_bytes(word))
        });
        let mut words = words.filter(|&word| begin < word && word < begin + 64);
        RETURN.store(words.find(|&word| follows_call(nt, word)).unwrap(), Ordering::SeqCst);
    }

    #[test]
    fn whoever_is_inside_is_found() {
        let mut seen = Seen::Clean;
        inside(&mut || {
            find_return(stack_pointer());
            seen = looked(RETURN.load(Ordering::SeqCst), 1);
        });
        assert_eq!(seen, Seen::Inside(RETURN.load(Ordering::SeqCst)));
    }

    /// As the one in which a call was that is over, and whose frame has left gaps.
    #[test]
    fn what_lies_within_a_frame_is_no_return_address() {
        inside(&mut || find_return(stack_pointer()));
        let returned = RETURN.load(Ordering::SeqCst);
        let words = black_box([returned as usize; 8]);
        assert_eq!(looked(returned, 1), Seen::Clean);
        black_box(&words);
    }
    /// Beyond a function in no image, whatever is told of it, a word counts.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn code_in_no_image_ends_the_search() {
        use core::ptr;
        use windows_sys::Win32::System::Diagnostics::Debug::{
            IMAGE_RUNTIME_FUNCTION_ENTRY, IMAGE_RUNTIME_FUNCTION_ENTRY_0, RtlAddFunctionTable,
            RtlDeleteFunctionTable,
        };
        use windows_sys::Win32::System::Memory::{
            MEM_COMMIT, MEM_RELEASE, MEM_RESERVE, PAGE_EXECUTE_READWRITE, VirtualAlloc, VirtualFree,
        };

        // sub rsp, 40 / call rcx / add rsp, 40 / ret
        const CODE: [u8; 11] = [0x48, 0x83, 0xec, 40, 0xff, 0xd1, 0x48, 0x83, 0xc4, 40, 0xc3];
        // Version 1, a prologue of four bytes, one code: behind these, 40 bytes less (UWOP_ALLOC_SMALL).
        const INFO: [u8; 8] = [1, 4, 1, 0, 4, 0x42, 0, 0];
        static SEEN: std::sync::Mutex<Seen> = std::sync::Mutex::new(Seen::Unclear);
        extern "system" fn look() {
            *SEEN.lock().unwrap() = looked(RETURN.load(Ordering::SeqCst), 1);
        }

        inside(&mut || find_return(stack_pointer()));
        let words = black_box([RETURN.load(Ordering::SeqCst) as usize; 8]);
        let entry = [IMAGE_RUNTIME_FUNCTION_ENTRY {
            BeginAddress: 0,
            EndAddress: CODE.len() as u32,
            Anonymous: IMAGE_RUNTIME_FUNCTION_ENTRY_0 { UnwindInfoAddress: 16 },
        }];
        // SAFETY: a page of its own with the code, and what is told of it, until nobody is there any more.
        unsafe {
            let kind = MEM_COMMIT | MEM_RESERVE;
            let page = VirtualAlloc(ptr::null(), 4096, kind, PAGE_EXECUTE_READWRITE).cast::<u8>();
            assert!(!page.is_null());
            page.copy_from(CODE.as_ptr(), CODE.len());
            page.add(16).copy_from(INFO.as_ptr(), INFO.len());
            assert!(RtlAddFunctionTable(entry.as_ptr(), 1, page.expose_provenance() as u64));
            let call = core::mem::transmute::<*mut u8, extern "system" fn(extern "system" fn())>(page);
            call(look);
            assert!(RtlDeleteFunctionTable(entry.as_ptr()));
            VirtualFree(page.cast(), 0, MEM_RELEASE);
        }
        assert_eq!(*SEEN.lock().unwrap(), Seen::Inside(RETURN.load(Ordering::SeqCst)));
        black_box(&words);
    }
}
