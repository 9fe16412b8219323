//! Every instruction of 64-bit code is told, where nothing can be allocated.
//!
//! While a thread is marked, what it allocates comes from the module's own arena, which ends when the start is over: an
//! allocation from then on ends this test.

#![expect(clippy::unwrap_used, reason = "a test: it may fail")]

use iced_x86::{Code, Decoder, DecoderOptions};
use kdetour_words::linux_kernel::{MEMORY, TABLES, kd_words, kd_words_memory, kd_words_start};
use kdetour_words::{LINE, Line, TEXT};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;

thread_local! { static MARKED: Cell<bool> = const { Cell::new(false) }; }

struct Either;

// SAFETY: each is an allocator; a marked thread frees only what it has allocated while it was marked.
unsafe impl GlobalAlloc for Either {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller's word.
        unsafe { if MARKED.get() { MEMORY.alloc(layout) } else { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        // SAFETY: by the caller's word.
        unsafe { if MARKED.get() { MEMORY.dealloc(piece, layout) } else { System.dealloc(piece, layout) } }
    }
}

#[global_allocator]
static ALLOCATOR: Either = Either;

/// What the module does while it may allocate nothing.
fn marked<R>(f: impl FnOnce() -> R) -> R {
    MARKED.set(true);
    let result = f();
    MARKED.set(false);
    result
}

/// By the second of two lines.
fn told(code: &[u8], address: u64, text: &mut [u8]) -> i32 {
    // SAFETY: both are slices; there are two lines, and one thread.
    marked(|| unsafe { kd_words(1, code.as_ptr(), code.len(), address, text.as_mut_ptr(), text.len()) })
}

/// Whether this ModRM is tried: behind VEX, EVEX, XOP and long heads only [SIB], [disp32], [SIB+disp32] and two registers, each with any
/// `reg`.
fn is_tried(head: &[u8], modrm: u8) -> bool {
    let whole = match head {
        [0xc5, _] => false,
        [_, before, 0x0f] => before & 0xf0 != 0x40,
        _ => head.len() < 3,
    };
    whole || [0x04, 0x05, 0x84, 0xc0, 0xc1].contains(&(modrm & 0xc7))
}

const AT: u64 = 0xffff_ffff_8100_0000;

/// What comes before an opcode: legacy prefixes, REX, and the bytes that choose a map; with what one byte behind the opcode still chooses.
fn heads() -> Vec<Vec<u8>> {
    let prefixes: [&[u8]; 17] = [
        &[],
        &[0x66],
        &[0xf2],
        &[0xf3],
        &[0xf0],
        &[0x67],
        &[0x2e],
        &[0x3e],
        &[0x64],
        &[0x65],
        &[0xf0, 0xf2],
        &[0xf0, 0xf3],
        &[0x66, 0x67],
        &[0x66, 0xf2],
        &[0x66, 0xf3],
        &[0x67, 0xf2],
        &[0x67, 0xf3],
    ];
    let mut heads = Vec::new();
    for prefix in prefixes {
        for rex in [None, Some(0x48), Some(0x4d)] {
            for map in [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a], &[0x0f, 0x0f]] {
                heads.push(prefix.iter().copied().chain(rex).chain(map.iter().copied()).collect());
            }
        }
    }
    let two = |a: &[u8], b: &[u8]| a.iter().flat_map(|&a| b.iter().map(move |&b| (a, b))).collect::<Vec<_>>();
    // VEX of two bytes; VEX (C4) and XOP (8F) of three: maps, then W, vvvv, L, pp. EVEX: maps, W and pp, then z, L'L, b, aaa.
    let last: Vec<u8> = (0..=255).filter(|byte| byte & 0x38 == 0x38 || byte & 0x78 == 0).collect();
    heads.extend(last.iter().map(|&last| vec![0xc5, last]));
    heads.extend(
        two(&[0xe0, 0xe1, 0xe2, 0xe3, 0xe5, 0xe6, 0xe7], &last)
            .into_iter()
            .map(|(map, last)| vec![0xc4, map, last]),
    );
    heads.extend(two(&[0xe8, 0xe9, 0xea], &last).into_iter().map(|(map, last)| vec![0x8f, map, last]));
    let third = [0x08, 0x0f, 0x18, 0x28, 0x2b, 0x48, 0x4c, 0x58, 0x89, 0x99, 0xca];
    for map in [0xf1, 0xf2, 0xf3, 0xf5, 0xf6] {
        let second = two(&[0x7c, 0x7d, 0x7e, 0x7f, 0xfc, 0xfd, 0xfe, 0xff], &third);
        heads.extend(second.into_iter().map(|(second, third)| vec![0x62, map, second, third]));
    }
    heads
}

/// Everything is one test: the memory begins and ends once.
#[test]
fn every_instruction_is_told_and_nothing_is_allocated() {
    const LINES: usize = 2;
    let mut memory = vec![0_u8; kd_words_memory(LINES)];
    // SAFETY: the memory is this test's, and stays until it ends.
    marked(|| unsafe { kd_words_start(memory.as_mut_ptr(), memory.len(), LINES) });
    // SAFETY: a byte has a size.
    assert!(unsafe { MEMORY.alloc(Layout::new::<u8>()) }.is_null(), "the memory has not ended");
    let (taken, room) = (MEMORY.end(), LINES * (LINE + size_of::<Line>()));
    println!("the tables took {} of {TABLES} bytes", taken - room);
    assert!(
        taken <= room + TABLES && taken + TABLES / 8 > room + TABLES,
        "they took {}: correct TABLES",
        taken - room
    );

    answers();

    let (mut seen, mut longest, mut count) = (BTreeSet::new(), (0, String::new()), 0_u64);
    for head in heads() {
        for opcode in 0..=255 {
            for modrm in (0..=255_u8).filter(|modrm| is_tried(&head, *modrm)) {
                // SIB, displacement, immediates: as long as there can be any.
                let mut code = head.clone();
                code.extend([
                    opcode, modrm, 0xa5, 0x81, 0x92, 0xa3, 0xb4, 0x15, 0xd6, 0xe7, 0xf8, 0x89, 0x9a, 0xab,
                    0xbc,
                ]);
                // 3DNow!'s opcode is the byte behind its operands.
                if head.ends_with(&[0x0f, 0x0f]) {
                    code.truncate(head.len());
                    code.extend([0xc0 | modrm & 0x3f, opcode]);
                }
                let mut text = [0xee; LINE];
                let length = told(&code, AT, &mut text);
                let mut decoder = Decoder::with_ip(64, &code[..code.len().min(15)], AT, DecoderOptions::NONE);
                let instruction = decoder.decode();
                if instruction.is_invalid() {
                    assert!(length < 0, "{code:02x?}");
                    assert_eq!(text, [0xee; LINE], "{code:02x?}");
                    continue;
                }
                assert_eq!(usize::try_from(length), Ok(instruction.len()), "{code:02x?}");
                let end = text.iter().position(|&byte| byte == 0).unwrap();
                let words = str::from_utf8(&text[..end]).unwrap();
                assert!(words.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{words}");
                count += 1;
                seen.insert(instruction.code() as usize);
                if words.len() > longest.0 {
                    longest = (words.len(), words.to_owned());
                }
            }
        }
    }
    // Neither what has to be asked for (other processors, what is gone, AMD's short branches), nor what
    // iced-x86's decoder never gives, nor two instructions with one name.
    let wanted = |code: &Code| {
        let info = code.op_code();
        let unreached = [Code::Ud0, Code::Montmul_64].contains(code)
            || info.operand_size() == 16 && !info.intel_decoder64();
        info.is_instruction() && info.mode64() && info.decoder_option() == 0 && !info.fwait() && !unreached
    };
    let unseen: Vec<_> =
        Code::values().filter(wanted).filter(|&code| !seen.contains(&(code as usize))).collect();
    println!(
        "{count} instructions of {} kinds; the longest text has {} characters: {}",
        seen.len(),
        longest.0,
        longest.1
    );
    assert!(unseen.is_empty(), "{} are not told: {unseen:?}", unseen.len());
    assert!(longest.0 < TEXT, "TEXT is too small");
}

/// What is told, and what is refused.
fn answers() {
    let tell = |code: &[u8]| {
        let mut text = [0xee; TEXT];
        let length = told(code, AT, &mut text);
        let end = text.iter().position(|&byte| byte == 0);
        (length, end.map(|end| String::from_utf8(text[..end].to_vec()).unwrap()).unwrap_or_default())
    };
    let cases: [(&[u8], &str); 14] = [
        (&[0x55], "push rbp"),
        (&[0xf3, 0x0f, 0x1e, 0xfa], "endbr64"),
        (&[0xe8, 0xfb, 0, 0, 0], "call 0xffffffff81000100"),
        (&[0xeb, 0xfe], "jmp 0xffffffff81000000"),
        (&[0x0f, 0x84, 0xfa, 0, 0, 0], "je 0xffffffff81000100"),
        (&[0xff, 0x15, 0xfa, 0, 0, 0], "call qword ptr [0xffffffff81000100]"),
        (&[0x48, 0x8b, 0x05, 0xf9, 0, 0, 0], "mov rax, [0xffffffff81000100]"),
        (&[0x65, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0], "mov rax, gs:[0x28]"),
        (&[0xc7, 0x45, 0xfc, 1, 0, 0, 0], "mov dword ptr [rbp-0x4], 0x1"),
        (&[0xf0, 0x0f, 0xb1, 0x17], "lock cmpxchg [rdi], edx"),
        (&[0xf3, 0x48, 0xa5], "rep movsq [rdi], [rsi]"),
        (&[0x0f, 0x0b], "ud2"),
        (&[0xf3, 0x90], "pause"),
        (&[0x48, 0xb8, 8, 7, 6, 5, 4, 3, 2, 1], "mov rax, 0x102030405060708"),
    ];
    for (code, text) in cases {
        let found = tell(code);
        assert_eq!((usize::try_from(found.0).unwrap(), found.1.as_str()), (code.len(), text), "{code:02x?}");
        // What is behind it does not matter; without its last byte it is cut.
        let more = [code, &[0xff; 15]].concat();
        assert_eq!(tell(&more), found);
        assert_eq!(tell(&code[..code.len() - 1]), (-61, String::new()), "{code:02x?}");
    }
    // push es; 16 bytes of prefixes are too many, whether there are more of them or not.
    assert_eq!(tell(&[0x06; 15]), (-84, String::new()));
    assert_eq!(tell(&[0x66; 15]), (-84, String::new()));
    assert_eq!(tell(&[0x66; 14]), (-61, String::new()));
    // "push rbp", and its NUL.
    let mut text = [0xee; 9];
    assert_eq!((told(&[0x55], AT, &mut text[..8]), text), (-28, [0xee; 9]));
    assert_eq!((told(&[0x55], AT, &mut text), &text), (1, b"push rbp\0"));
    assert_eq!(told(&[0x55], AT, &mut []), -28);
}
