//! Writes the functions that the program `process` detours: real prologues in front of bodies that can be checked.
//!
//! ```text
//!   process_dense     COUNT functions, 64 bytes apart
//!   process_sparse    SPARSE functions, one in each page, somewhere in its first half
//!   process_wrapper   WRAPPERS functions, 64 bytes apart: each calls what its cell says, and nothing else
//! ```

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs, io};

const DENSE: usize = 10_000;
const SPARSE: usize = 4_000;
const WRAPPERS: usize = 64;

/// How functions begin, what undoes that, and how many of a hundred do so: roughly as libc, libcrypto and libstdc++ do.
const PROLOGUES: [(&str, &str, usize); 15] = [
    ("push rbp; mov rbp, rsp; push rbx", "pop rbx; pop rbp", 8),
    ("push rbx; mov rbx, rdi; sub rsp, 16", "add rsp, 16; pop rbx", 12),
    ("push r15; push r14; push r13", "pop r13; pop r14; pop r15", 10),
    ("push r12; push rbp; push rbx", "pop rbx; pop rbp; pop r12", 8),
    ("push rbp; push rbx; sub rsp, 24", "add rsp, 24; pop rbx; pop rbp", 6),
    ("endbr64; push rbp; mov rbp, rsp; push rbx", "pop rbx; pop rbp", 8),
    ("endbr64; sub rsp, 24; mov rax, rdi", "add rsp, 24", 6),
    ("sub rsp, 8; mov rax, rdi", "add rsp, 8", 10),
    ("push r14; mov r14, rdi; push rbx", "pop rbx; pop r14", 4),
    ("mov rax, rdi; test rdi, rdi; mov rdx, rax", "", 6),
    ("mov eax, 0x12345; mov edx, eax", "", 4),
    ("sub rsp, 0x88; mov rax, rdi", "add rsp, 0x88", 6),
    ("cmp dword ptr [rip + process_word], 0; mov rax, rdi", "", 4),
    ("lea rdx, [rip + process_word]; mov rax, [rdx]", "", 4),
    ("xor eax, eax; cmp rdi, 4; mov rdx, rdi", "", 4),
];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let mut kinds: Vec<usize> = Vec::new();
    for (kind, &(_, _, share)) in PROLOGUES.iter().enumerate() {
        kinds.extend([kind].repeat(share));
    }
    // Neighbours differ: 37 has no divisor in common with their number.
    let prologue = |index: usize| PROLOGUES[kinds[index * 37 % kinds.len()]];
    let mut text = String::from(".pushsection .text.process_dense,\"ax\",@progbits\n");
    begin(&mut text, "process_dense", 4096);
    for index in 0..DENSE {
        function(&mut text, "dense", index, ".balign 64, 0xcc", prologue(index));
    }
    text += ".popsection\n.pushsection .text.process_sparse,\"ax\",@progbits\n";
    begin(&mut text, "process_sparse", 4096);
    for index in 0..SPARSE {
        let place = format!(".org process_sparse + {}, 0xcc", index * 4096 + index % 128 * 16);
        function(&mut text, "sparse", index, &place, prologue(index));
    }
    text += ".balign 4096, 0xcc\n.popsection\n.pushsection .text.process_wrapper,\"ax\",@progbits\n";
    begin(&mut text, "process_wrapper", 4096);
    for index in 0..WRAPPERS {
        let cell = index * 8;
        _ = writeln!(
            text,
            ".balign 64, 0xcc\n.type process_wrapper_{index}, @function\nprocess_wrapper_{index}:\nsub rsp, 8\n\
             call [rip + process_cells + {cell}]\nadd rsp, 8\nret\n.size process_wrapper_{index}, . - process_wrapper_{index}"
        );
    }
    _ = write!(
        text,
        ".popsection\n.pushsection .data.process,\"aw\",@progbits\n.balign 64\n.globl process_cells\n\
         process_cells: .zero {}\nprocess_word: .quad 1\n.popsection\n",
        WRAPPERS * 8
    );
    let folder = env::var_os("OUT_DIR").unwrap_or_default();
    fs::write(Path::new(&folder).join("functions.s"), text)?;
    fs::write(
        Path::new(&folder).join("functions.rs"),
        format!(
            "const DENSE: usize = {DENSE};\nconst SPARSE: usize = {SPARSE};\nconst WRAPPERS: usize = {WRAPPERS};\n"
        ),
    )
}

fn begin(text: &mut String, name: &str, align: usize) {
    _ = writeln!(text, ".balign {align}, 0xcc\n.globl {name}\n{name}:");
}

/// A function that returns its argument and its number.
fn function(
    text: &mut String,
    name: &str,
    index: usize,
    place: &str,
    (prologue, epilogue, _): (&str, &str, usize),
) {
    _ = writeln!(
        text,
        "{place}\n.type process_{name}_{index}, @function\nprocess_{name}_{index}:\n{prologue}\n\
         lea rax, [rdi + {index}]\n{epilogue}\nret\n\
         .size process_{name}_{index}, . - process_{name}_{index}"
    );
}
