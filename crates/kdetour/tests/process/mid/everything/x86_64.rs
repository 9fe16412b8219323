//! Everything that a thread has is kept: registers, flags, vectors, masks, floating point, the red zone.

use super::*;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Everything that a thread has, but the stack pointer: loaded before the detoured instruction, stored behind it.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Everything {
    /// rax, rcx, rdx, rbx, rbp, rsi, rdi, r8 to r15
    general: [u64; 15],
    flags: u64,
    red_zone: [u64; 16],
    x87: [u64; 2],
    mxcsr: u32,
    x87_control: u32,
    /// As far as the processor has them.
    vectors: [[u64; 8]; 32],
    masks: [u64; 8],
}

static SCRATCH: AtomicU64 = AtomicU64::new(0);

/// A function that loads everything, does nothing, and stores everything: from `rdi`, to `rsi`. The stack is aligned
/// where it does nothing if `extra` is 0, and not if it is 8.
macro_rules! carries {
    ($name:ident, $here:ident, $extra:literal, [$($load:literal)*], [$($store:literal)*]) => {
        global_asm!(
            ".pushsection .text.kdetour_tests, \"ax\", @progbits",
            ".balign 16",
            concat!(".globl ", stringify!($name), ", ", stringify!($here)),
            concat!(".type ", stringify!($name), ", @function"),
            concat!(stringify!($name), ":"),
            "push rbx",
            "push rbp",
            "push r12",
            "push r13",
            "push r14",
            "push r15",
            "sub rsp, 24 + {extra}",
            "mov [rsp], rsi",
            "stmxcsr [rsp + 8]",
            "fnstcw [rsp + 12]",
            $($load,)*
            // As many as there may be, whether they were used or not.
            ".set used, {vectors} + {masks}",
            "fldcw [rdi + {x87_control}]",
            "ldmxcsr [rdi + {mxcsr}]",
            "fld qword ptr [rdi + {x87}]",
            "fld qword ptr [rdi + {x87} + 8]",
            "push qword ptr [rdi + {flags}]",
            "popfq",
            ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "mov rax, [rdi + {red_zone} + 8 * \\i]",
            "mov [rsp - 8 - 8 * \\i], rax",
            ".endr",
            "mov rax, [rdi]",
            "mov rcx, [rdi + 8]",
            "mov rdx, [rdi + 16]",
            "mov rbx, [rdi + 24]",
            "mov rbp, [rdi + 32]",
            "mov rsi, [rdi + 40]",
            ".irp i,8,9,10,11,12,13,14,15",
            "mov r\\i, [rdi + 8 * \\i - 8]",
            ".endr",
            "mov rdi, [rdi + 48]",
            concat!(stringify!($here), ":"),
            "nop",
            "nop",
            "nop",
            "nop",
            "nop",
            "mov [rip + {scratch}], rdi",
            "mov rdi, [rsp]",
            "mov [rdi], rax",
            "mov [rdi + 8], rcx",
            "mov [rdi + 16], rdx",
            "mov [rdi + 24], rbx",
            "mov [rdi + 32], rbp",
            "mov [rdi + 40], rsi",
            ".irp i,8,9,10,11,12,13,14,15",
            "mov [rdi + 8 * \\i - 8], r\\i",
            ".endr",
            "mov rax, [rip + {scratch}]",
            "mov [rdi + 48], rax",
            ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "mov rax, [rsp - 8 - 8 * \\i]",
            "mov [rdi + {red_zone} + 8 * \\i], rax",
            ".endr",
            "pushfq",
            "pop qword ptr [rdi + {flags}]",
            "cld",
            "fstp qword ptr [rdi + {x87} + 8]",
            "fstp qword ptr [rdi + {x87}]",
            "fnstcw [rdi + {x87_control}]",
            "stmxcsr [rdi + {mxcsr}]",
            $($store,)*
            "ldmxcsr [rsp + 8]",
            "fldcw [rsp + 12]",
            "add rsp, 24 + {extra}",
            "pop r15",
            "pop r14",
            "pop r13",
            "pop r12",
            "pop rbp",
            "pop rbx",
            "ret",
            concat!(".size ", stringify!($name), ", . - ", stringify!($name)),
            ".popsection",
            extra = const $extra,
            flags = const std::mem::offset_of!(Everything, flags),
            red_zone = const std::mem::offset_of!(Everything, red_zone),
            x87 = const std::mem::offset_of!(Everything, x87),
            mxcsr = const std::mem::offset_of!(Everything, mxcsr),
            x87_control = const std::mem::offset_of!(Everything, x87_control),
            vectors = const std::mem::offset_of!(Everything, vectors),
            masks = const std::mem::offset_of!(Everything, masks),
            scratch = sym SCRATCH,
        );
    };
}

/// The same for a stack that is aligned, and for one that is not.
macro_rules! carries_both {
    ($one:ident, $one_here:ident, $two:ident, $two_here:ident, $load:tt, $store:tt) => {
        carries!($one, $one_here, 0, $load, $store);
        carries!($two, $two_here, 8, $load, $store);
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
        ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
        "movdqu xmm\\i, [rdi + {vectors} + 64 * \\i]"
        ".endr"
    ],
    [
        ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
        "movdqu [rdi + {vectors} + 64 * \\i], xmm\\i"
        ".endr"
    ]
);
carries_both!(
    avx_one,
    avx_one_here,
    avx_two,
    avx_two_here,
    [
        ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
        "vmovdqu ymm\\i, [rdi + {vectors} + 64 * \\i]"
        ".endr"
    ],
    [
        ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
        "vmovdqu [rdi + {vectors} + 64 * \\i], ymm\\i"
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
        ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"
        "vmovdqu64 zmm\\i, [rdi + {vectors} + 64 * \\i]"
        ".endr"
        ".irp i,0,1,2,3,4,5,6,7"
        "kmovq k\\i, [rdi + {masks} + 8 * \\i]"
        ".endr"
    ],
    [
        ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"
        "vmovdqu64 [rdi + {vectors} + 64 * \\i], zmm\\i"
        ".endr"
        ".irp i,0,1,2,3,4,5,6,7"
        "kmovq [rdi + {masks} + 8 * \\i], k\\i"
        ".endr"
        "vzeroupper"
    ]
);

/// What a callback found when it was called.
static CALLS: AtomicU64 = AtomicU64::new(0);
static STACK: AtomicU64 = AtomicU64::new(0);
static FLAGS: AtomicU64 = AtomicU64::new(0);
static MXCSR: AtomicU64 = AtomicU64::new(0);
static X87_CONTROL: AtomicU64 = AtomicU64::new(0);
static X87_STATUS: AtomicU64 = AtomicU64::new(0);

/// A callback that remembers what it found, and leaves nothing as it was that it may change, and more.
macro_rules! clobbers {
    ($name:ident, [$($vectors:literal)*]) => {
        global_asm!(
            ".pushsection .text.kdetour_tests, \"ax\", @progbits",
            ".balign 16",
            concat!(".globl ", stringify!($name)),
            concat!(stringify!($name), ":"),
            "mov [rip + {stack}], rsp",
            "pushfq",
            "pop [rip + {flags}]",
            "stmxcsr [rip + {mxcsr}]",
            "fnstcw [rip + {x87_control}]",
            // An empty stack takes eight values without an exception.
            "fld1",
            "fldpi",
            "fld1",
            "fldpi",
            "fld1",
            "fldpi",
            "fld1",
            "fldpi",
            "fnstsw [rip + {x87_status}]",
            "push 0x0c7f",
            "fldcw [rsp]",
            "mov dword ptr [rsp], 0xffbf",
            "ldmxcsr [rsp]",
            "pop rax",
            "lock inc qword ptr [rip + {calls}]",
            ".irp i,rax,rcx,rdx,rsi,rdi,r8,r9,r10,r11",
            "mov \\i, 0x5a5a5a5a",
            ".endr",
            // The red zone of whoever called has to lie above this.
            ".irp i,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
            "mov [rsp - 8 * \\i], rax",
            ".endr",
            $($vectors,)*
            "cmp rax, -1",
            "ret",
            ".popsection",
            stack = sym STACK,
            flags = sym FLAGS,
            mxcsr = sym MXCSR,
            x87_control = sym X87_CONTROL,
            x87_status = sym X87_STATUS,
            calls = sym CALLS,
        );
        unsafe extern "C" {
            safe fn $name(registers: &mut Registers);
        }
    };
}

clobbers!(
    clobbers_sse,
    [
        ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
        "pcmpeqd xmm\\i, xmm\\i"
        ".endr"
    ]
);
clobbers!(
    clobbers_avx,
    [
        "vpcmpeqd xmm0, xmm0, xmm0"
        "vinsertf128 ymm0, ymm0, xmm0, 1"
        ".irp i,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
        "vmovdqa ymm\\i, ymm0"
        ".endr"
    ]
);
clobbers!(
    clobbers_avx512,
    [
        ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"
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
        all.general.fill_with(|| self.next());
        all.red_zone.fill_with(|| self.next());
        // CF, PF, AF, ZF, SF, DF, OF; IF and the bit that is always set.
        all.flags = self.next() & 0xcd5 | 0x202;
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
    const ROUNDS: u64 = 3000;
    let turn = turn();
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut check = |carry: Carry, detoured: bool| {
        let from = random.everything(sizes.0, sizes.1, sizes.2);
        let mut to = Everything::default();
        let calls = CALLS.load(Relaxed);
        // SAFETY: the function keeps what its convention says, and the processor has the registers.
        unsafe { carry(&from, &mut to) };
        assert!(from == to, "{detoured}: {from:#x?}\n{to:#x?}");
        assert_eq!(CALLS.load(Relaxed) - calls, u64::from(detoured));
    };
    for (carry, here) in functions {
        (0..100).for_each(|_| check(carry, false));
        let before = text(here, 16);
        // SAFETY: nothing that the function uses is changed, as is to be shown.
        let mut detour = unsafe { MidDetour::attach_with(&turn.alone, here, callback) }.unwrap();
        for _ in 0..ROUNDS {
            check(carry, true);
            assert_eq!(STACK.load(Relaxed) % 16, 8, "a call from an aligned stack");
            assert_eq!(FLAGS.load(Relaxed) & 0x400, 0, "the direction flag is clear");
            assert_eq!(MXCSR.load(Relaxed), 0x1f80);
            assert_eq!((X87_CONTROL.load(Relaxed), X87_STATUS.load(Relaxed) & 0x7f), (0x37f, 0));
        }
        detour.detach_with(&turn.alone).unwrap();
        assert_eq!(text(here, 16), before);
        check(carry, false);
    }
}

#[test]
fn everything_is_kept() {
    let functions = [(sse_one as Carry, place(sse_one_here)), (sse_two, place(sse_two_here))];
    carried(functions, (16, 2, 0), clobbers_sse);
}

#[test]
fn upper_halves_are_kept() {
    if !is_x86_feature_detected!("avx") {
        eprintln!("not tested: this processor has no AVX");
        return;
    }
    let functions = [(avx_one as Carry, place(avx_one_here)), (avx_two, place(avx_two_here))];
    carried(functions, (16, 4, 0), clobbers_avx);
}

#[test]
fn wide_vectors_and_masks_are_kept() {
    if !is_x86_feature_detected!("avx512bw") {
        eprintln!("not tested: this processor has no AVX-512");
        return;
    }
    let functions = [(avx512_one as Carry, place(avx512_one_here)), (avx512_two, place(avx512_two_here))];
    carried(functions, (32, 8, 8), clobbers_avx512);
}

/// Whatever a callback writes is what the function goes on with.
#[test]
fn everything_can_be_changed() {
    extern "C" fn turns_over(registers: &mut Registers) {
        CALLS.fetch_add(1, Relaxed);
        let Registers { rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, .. } =
            registers;
        for register in [rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] {
            *register = !*register;
        }
        registers.rflags ^= 0xcd5;
        registers.xmm_mut().iter_mut().for_each(|register| *register = !*register);
    }
    let turn = turn();
    let mut random = Random(0xfedc_ba98_7654_3211);
    // SAFETY: the function stores what it has, and gives what it must keep back from its stack.
    let mut detour = unsafe { MidDetour::attach_with(&turn.alone, place(sse_two_here), turns_over) }.unwrap();
    for _ in 0..1000 {
        let from = random.everything(16, 2, 0);
        let mut to = Everything::default();
        // SAFETY: as above.
        unsafe { sse_two(&from, &mut to) };
        let mut expected = from;
        expected.general.iter_mut().for_each(|register| *register = !*register);
        expected.flags ^= 0xcd5;
        expected
            .vectors
            .iter_mut()
            .take(16)
            .flat_map(|vector| &mut vector[..2])
            .for_each(|lane| *lane = !*lane);
        assert!(to == expected, "{expected:#x?}\n{to:#x?}");
    }
    detour.detach_with(&turn.alone).unwrap();
}

/// Signals come at every place of the stub and the thunk, and their frames lie below whatever the stack pointer is then.
#[test]
fn signals_change_nothing() {
    static SIGNALS: AtomicU64 = AtomicU64::new(0);

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
    let (stop, calls) = (AtomicU64::new(0), CALLS.load(Relaxed));
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
            let from = random.everything(16, 2, 0);
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
