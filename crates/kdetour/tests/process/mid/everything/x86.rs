//! Everything that a thread has is kept: registers, flags, vectors, masks, floating point.

use super::*;
use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Everything that a thread has, but the stack pointer: loaded before the detoured instruction, stored behind it.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Everything {
    /// eax, ecx, edx, ebx, ebp, esi, edi
    general: [u32; 7],
    flags: u32,
    x87: [u64; 2],
    mxcsr: u32,
    x87_control: u32,
    /// As far as the processor has them.
    vectors: [[u64; 8]; 8],
    masks: [u64; 8],
}

/// A function that loads everything, does nothing, and stores everything: from its first argument, to the second one. The stack is
/// aligned where it does nothing if `extra` is 0, and not if it is 4.
macro_rules! carries {
    ($name:ident, $here:ident, $extra:literal, [$($load:literal)*], [$($store:literal)*]) => {
        global_asm!(
            ".pushsection .text.kdetour_tests, \"ax\", @progbits",
            ".balign 16",
            concat!(".globl ", stringify!($name), ", ", stringify!($here)),
            concat!(".type ", stringify!($name), ", @function"),
            concat!(stringify!($name), ":"),
            "push ebx",
            "push ebp",
            "push esi",
            "push edi",
            "sub esp, 28 + {extra}",
            "mov edi, [esp + 48 + {extra}]",
            "mov eax, [esp + 52 + {extra}]",
            "mov [esp], eax",
            "stmxcsr [esp + 4]",
            "fnstcw [esp + 8]",
            $($load,)*
            // As many as there may be, whether they were used or not.
            ".set used, {vectors} + {masks}",
            "fldcw [edi + {x87_control}]",
            "ldmxcsr [edi + {mxcsr}]",
            "fld qword ptr [edi + {x87}]",
            "fld qword ptr [edi + {x87} + 8]",
            "push dword ptr [edi + {flags}]",
            "popfd",
            "mov eax, [edi]",
            "mov ecx, [edi + 4]",
            "mov edx, [edi + 8]",
            "mov ebx, [edi + 12]",
            "mov ebp, [edi + 16]",
            "mov esi, [edi + 20]",
            "mov edi, [edi + 24]",
            concat!(stringify!($here), ":"),
            "nop",
            "nop",
            "nop",
            "nop",
            "nop",
            "mov [esp + 12], edi",
            "mov edi, [esp]",
            "mov [edi], eax",
            "mov [edi + 4], ecx",
            "mov [edi + 8], edx",
            "mov [edi + 12], ebx",
            "mov [edi + 16], ebp",
            "mov [edi + 20], esi",
            "mov eax, [esp + 12]",
            "mov [edi + 24], eax",
            "pushfd",
            "pop dword ptr [edi + {flags}]",
            "cld",
            "fstp qword ptr [edi + {x87} + 8]",
            "fstp qword ptr [edi + {x87}]",
            "fnstcw [edi + {x87_control}]",
            "stmxcsr [edi + {mxcsr}]",
            $($store,)*
            "ldmxcsr [esp + 4]",
            "fldcw [esp + 8]",
            "add esp, 28 + {extra}",
            "pop edi",
            "pop esi",
            "pop ebp",
            "pop ebx",
            "ret",
            concat!(".size ", stringify!($name), ", . - ", stringify!($name)),
            ".popsection",
            extra = const $extra,
            flags = const std::mem::offset_of!(Everything, flags),
            x87 = const std::mem::offset_of!(Everything, x87),
            mxcsr = const std::mem::offset_of!(Everything, mxcsr),
            x87_control = const std::mem::offset_of!(Everything, x87_control),
            vectors = const std::mem::offset_of!(Everything, vectors),
            masks = const std::mem::offset_of!(Everything, masks),
        );
    };
}

/// The same for a stack that is aligned, and for one that is not.
macro_rules! carries_both {
    ($one:ident, $one_here:ident, $two:ident, $two_here:ident, $load:tt, $store:tt) => {
        carries!($one, $one_here, 0, $load, $store);
        carries!($two, $two_here, 4, $load, $store);
        unsafe extern "C" {
            fn $one(from: &Everything, to: &mut Everything);
            fn $two(from: &Everything, to: &mut Everything);
            fn $one_here();
            fn $two_here();
        }
    };
}

carries_both!(
    sse_one,
    sse_one_here,
    sse_two,
    sse_two_here,
    [
        ".irp i,0,1,2,3,4,5,6,7"
        "movdqu xmm\\i, [edi + {vectors} + 64 * \\i]"
        ".endr"
    ],
    [
        ".irp i,0,1,2,3,4,5,6,7"
        "movdqu [edi + {vectors} + 64 * \\i], xmm\\i"
        ".endr"
    ]
);
carries_both!(
    avx_one,
    avx_one_here,
    avx_two,
    avx_two_here,
    [
        ".irp i,0,1,2,3,4,5,6,7"
        "vmovdqu ymm\\i, [edi + {vectors} + 64 * \\i]"
        ".endr"
    ],
    [
        ".irp i,0,1,2,3,4,5,6,7"
        "vmovdqu [edi + {vectors} + 64 * \\i], ymm\\i"
        ".endr"
        "vzeroupper"
    ]
);
carries_both!(
    avx512_one,
    avx512_one_here,
    avx512_two,
    avx512_two_here,
    [
        ".irp i,0,1,2,3,4,5,6,7"
        "vmovdqu64 zmm\\i, [edi + {vectors} + 64 * \\i]"
        ".endr"
        ".irp i,0,1,2,3,4,5,6,7"
        "kmovq k\\i, [edi + {masks} + 8 * \\i]"
        ".endr"
    ],
    [
        ".irp i,0,1,2,3,4,5,6,7"
        "vmovdqu64 [edi + {vectors} + 64 * \\i], zmm\\i"
        ".endr"
        ".irp i,0,1,2,3,4,5,6,7"
        "kmovq [edi + {masks} + 8 * \\i], k\\i"
        ".endr"
        "vzeroupper"
    ]
);

/// How often a callback was called.
static CALLS: AtomicU32 = AtomicU32::new(0);
/// What it found then: stack pointer, flags, MXCSR, and the control and status words of the x87.
static FOUND: [AtomicU32; 5] = [const { AtomicU32::new(0) }; 5];

/// Remembers what was found: what this function needs is no business of the one that calls it.
extern "C" fn remember(found: &[u32; 5]) {
    CALLS.fetch_add(1, Relaxed);
    FOUND.iter().zip(found).for_each(|(to, from)| to.store(*from, Relaxed));
}

/// A callback that remembers what it found, and leaves nothing as it was that it may change, and more.
macro_rules! clobbers {
    ($name:ident, [$($vectors:literal)*]) => {
        global_asm!(
            ".pushsection .text.kdetour_tests, \"ax\", @progbits",
            ".balign 16",
            concat!(".globl ", stringify!($name)),
            concat!(stringify!($name), ":"),
            // What is found is put into the lowest 20 bytes of what follows.
            "mov eax, esp",
            "pushfd",
            "pop edx",
            "sub esp, 28",
            "mov [esp + 4], eax",
            "mov [esp + 8], edx",
            "stmxcsr [esp + 12]",
            "mov dword ptr [esp + 16], 0",
            "fnstcw [esp + 16]",
            // An empty stack takes eight values without an exception.
            "fld1",
            "fldpi",
            "fld1",
            "fldpi",
            "fld1",
            "fldpi",
            "fld1",
            "fldpi",
            "mov dword ptr [esp + 20], 0",
            "fnstsw [esp + 20]",
            "fninit",
            "lea eax, [esp + 4]",
            "mov [esp], eax",
            "call {remember}",
            "add esp, 28",
            "fldpi",
            "push 0x0c7f",
            "fldcw [esp]",
            "mov dword ptr [esp], 0xffbf",
            "ldmxcsr [esp]",
            "pop eax",
            "mov eax, 0x5a5a5a5a",
            "mov ecx, eax",
            "mov edx, eax",
            // What a function has is not below the stack pointer.
            ".irp i,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
            "mov [esp - 4 * \\i], eax",
            ".endr",
            $($vectors,)*
            "cmp eax, -1",
            "ret",
            ".popsection",
            remember = sym remember,
        );
        unsafe extern "C" {
            safe fn $name(registers: &mut Registers);
        }
    };
}

clobbers!(
    clobbers_sse,
    [
        ".irp i,0,1,2,3,4,5,6,7"
        "pcmpeqd xmm\\i, xmm\\i"
        ".endr"
    ]
);
clobbers!(
    clobbers_avx,
    [
        "vpcmpeqd xmm0, xmm0, xmm0"
        "vinsertf128 ymm0, ymm0, xmm0, 1"
        ".irp i,1,2,3,4,5,6,7"
        "vmovdqa ymm\\i, ymm0"
        ".endr"
    ]
);
clobbers!(
    clobbers_avx512,
    [
        ".irp i,0,1,2,3,4,5,6,7"
        "vpternlogd zmm\\i, zmm\\i, zmm\\i, 0xff"
        ".endr"
        ".irp i,0,1,2,3,4,5,6,7"
        "kxnorw k\\i, k\\i, k\\i"
        ".endr"
    ]
);

/// xorshift64*
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// `lanes` of eight bytes of so many vectors have values.
    fn everything(&mut self, vectors: usize, lanes: usize, masks: usize) -> Everything {
        let mut all = Everything::default();
        all.general.fill_with(|| self.next() as u32);
        // CF, PF, AF, ZF, SF, DF, OF; IF and the bit that is always set.
        all.flags = self.next() as u32 & 0xcd5 | 0x202;
        // What fits a double exactly.
        all.x87.fill_with(|| ((self.next() >> 12) as f64).to_bits());
        // Flags, DAZ, rounding, FTZ; all exceptions masked.
        all.mxcsr = self.next() as u32 & 0xe07f | 0x1f80;
        // Precision and rounding; likewise.
        all.x87_control = [0x037f, 0x077f, 0x0b7f, 0x0f7f, 0x027f][(self.next() % 5) as usize];
        for vector in all.vectors.iter_mut().take(vectors) {
            vector.iter_mut().take(lanes).for_each(|lane| *lane = self.next());
        }
        // Now and then all of them are zero, and the processor may say that they are not in use.
        if self.next().is_multiple_of(8) {
            all.vectors = Default::default();
        }
        all.masks.iter_mut().take(masks).for_each(|mask| *mask = self.next());
        all
    }
}

type Carry = unsafe extern "C" fn(&Everything, &mut Everything);

fn place(here: unsafe extern "C" fn()) -> u64 {
    (here as *const ()).addr() as u64
}

/// Random values go through a detour whose callback leaves nothing as it was.
fn carried(
    functions: [(Carry, u64); 2],
    sizes: (usize, usize, usize),
    callback: extern "C" fn(&mut Registers),
) {
    const ROUNDS: u32 = 3000;
    let turn = turn();
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut check = |carry: Carry, detoured: bool| {
        let from = random.everything(sizes.0, sizes.1, sizes.2);
        let mut to = Everything::default();
        let calls = CALLS.load(Relaxed);
        // SAFETY: the function keeps what its convention says, and the processor has the registers.
        unsafe { carry(&from, &mut to) };
        assert!(from == to, "{detoured}: {from:#x?}\n{to:#x?}");
        assert_eq!(CALLS.load(Relaxed) - calls, u32::from(detoured));
    };
    for (carry, here) in functions {
        (0..100).for_each(|_| check(carry, false));
        let before = text(here, 16);
        // SAFETY: nothing that the function uses is changed, as is to be shown.
        let mut detour = unsafe { MidDetour::attach_with(&turn.alone, here, callback) }.unwrap();
        for _ in 0..ROUNDS {
            check(carry, true);
            let [stack, flags, mxcsr, control, status] = FOUND.each_ref().map(|found| found.load(Relaxed));
            assert_eq!(stack % 16, 12, "a call from an aligned stack");
            assert_eq!(flags & 0x400, 0, "the direction flag is clear");
            assert_eq!((mxcsr, control, status & 0x7f), (0x1f80, 0x37f, 0));
        }
        detour.detach_with(&turn.alone).unwrap();
        assert_eq!(text(here, 16), before);
        check(carry, false);
    }
}

#[test]
fn everything_is_kept() {
    let functions = [(sse_one as Carry, place(sse_one_here)), (sse_two, place(sse_two_here))];
    carried(functions, (8, 2, 0), clobbers_sse);
}

#[test]
fn upper_halves_are_kept() {
    if !is_x86_feature_detected!("avx") {
        eprintln!("not tested: this processor has no AVX");
        return;
    }
    let functions = [(avx_one as Carry, place(avx_one_here)), (avx_two, place(avx_two_here))];
    carried(functions, (8, 4, 0), clobbers_avx);
}

#[test]
fn wide_vectors_and_masks_are_kept() {
    if !is_x86_feature_detected!("avx512bw") {
        eprintln!("not tested: this processor has no AVX-512");
        return;
    }
    let functions = [(avx512_one as Carry, place(avx512_one_here)), (avx512_two, place(avx512_two_here))];
    carried(functions, (8, 8, 8), clobbers_avx512);
}

/// Whatever a callback writes is what the function goes on with.
#[test]
fn everything_can_be_changed() {
    extern "C" fn turns_over(registers: &mut Registers) {
        CALLS.fetch_add(1, Relaxed);
        let Registers { eax, ecx, edx, ebx, ebp, esi, edi, .. } = registers;
        for register in [eax, ecx, edx, ebx, ebp, esi, edi] {
            *register = !*register;
        }
        registers.eflags ^= 0xcd5;
        registers.xmm_mut().iter_mut().for_each(|register| *register = !*register);
    }
    let turn = turn();
    let mut random = Random(0xfedc_ba98_7654_3211);
    // SAFETY: the function stores what it has, and gives what it must keep back from its stack.
    let mut detour = unsafe { MidDetour::attach_with(&turn.alone, place(sse_two_here), turns_over) }.unwrap();
    for _ in 0..1000 {
        let from = random.everything(8, 2, 0);
        let mut to = Everything::default();
        // SAFETY: as above.
        unsafe { sse_two(&from, &mut to) };
        let mut expected = from;
        expected.general.iter_mut().for_each(|register| *register = !*register);
        expected.flags ^= 0xcd5;
        expected
            .vectors
            .iter_mut()
            .take(8)
            .flat_map(|vector| &mut vector[..2])
            .for_each(|lane| *lane = !*lane);
        assert!(to == expected, "{expected:#x?}\n{to:#x?}");
    }
    detour.detach_with(&turn.alone).unwrap();
}

/// Signals come at every place of the stub and the thunk, and their frames lie below whatever the stack pointer is then.
#[test]
fn signals_change_nothing() {
    static SIGNALS: AtomicU32 = AtomicU32::new(0);

    extern "C" fn handler(_: libc::c_int) {
        SIGNALS.fetch_add(1, Relaxed);
        black_box([0xa5_u8; 2048]);
    }

    let turn = turn();
    // SAFETY: the handler does nothing that a handler may not do, and no other test uses this signal.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = (handler as extern "C" fn(libc::c_int) as *const ()).addr();
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()), 0);
    }
    // SAFETY: nothing that the function uses is changed.
    let mut detour =
        unsafe { MidDetour::attach_with(&turn.alone, place(sse_one_here), clobbers_sse) }.unwrap();
    // SAFETY: it has no conditions.
    let here = unsafe { libc::pthread_self() };
    let (stop, calls) = (AtomicU32::new(0), CALLS.load(Relaxed));
    let mut random = Random(0x0bad_cafe_dead_beef);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while stop.load(Relaxed) == 0 {
                // SAFETY: that thread waits for this one before it ends.
                unsafe { libc::pthread_kill(here, libc::SIGUSR2) };
            }
        });
        // However much the signals hold it up.
        while SIGNALS.load(Relaxed) < 3000 || CALLS.load(Relaxed) - calls <= 100 {
            let from = random.everything(8, 2, 0);
            let mut to = Everything::default();
            // SAFETY: the function keeps what its convention says.
            unsafe { sse_one(&from, &mut to) };
            // The thread would be waited for before a panic went on.
            if from != to {
                stop.store(1, Relaxed);
            }
            assert!(from == to, "{from:#x?}\n{to:#x?}");
        }
        stop.store(1, Relaxed);
    });
    detour.detach_with(&turn.alone).unwrap();
}
