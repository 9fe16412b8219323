//! Writes the functions that the program `process` detours: real prologues in front of bodies that can be checked.
//!
//! ```text
//!   process_dense     COUNT functions, 64 bytes apart
//!   process_sparse    SPARSE functions, one in each page, somewhere in its first half
//!   process_wrapper   WRAPPERS functions, 64 bytes apart: each calls what its cell says, and nothing else
//! ```
//!
//! On Windows their argument is in another register, and unwind information tells where each begins and ends.

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
    let system = System::of(&env::var("CARGO_CFG_TARGET_OS").unwrap_or_default());
    let mut text = system.section("text", "process_dense");
    begin(&mut text, "process_dense", 4096);
    for index in 0..DENSE {
        system.function(&mut text, "dense", index, ".balign 64, 0xcc", prologue(index));
    }
    text += &system.section("text", "process_sparse");
    begin(&mut text, "process_sparse", 4096);
    for index in 0..SPARSE {
        let place = format!(".org process_sparse + {}, 0xcc", index * 4096 + index % 128 * 16);
        system.function(&mut text, "sparse", index, &place, prologue(index));
    }
    text += ".balign 4096, 0xcc\n";
    text += &system.section("text", "process_wrapper");
    begin(&mut text, "process_wrapper", 4096);
    for index in 0..WRAPPERS {
        system.wrapper(&mut text, index);
    }
    text += &system.section("data", "process");
    _ = write!(
        text,
        ".balign 64\n.globl process_cells\nprocess_cells: .zero {}\nprocess_word: .quad 1\n.text\n",
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

/// For whom the functions are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum System {
    Linux,
    Windows,
}

impl System {
    fn of(name: &str) -> Self {
        if name == "windows" { Self::Windows } else { Self::Linux }
    }

    fn section(self, kind: &str, name: &str) -> String {
        match (self, kind) {
            (Self::Linux, "text") => format!(".section .text.{name},\"ax\",@progbits\n"),
            (Self::Linux, _) => format!(".section .data.{name},\"aw\",@progbits\n"),
            (Self::Windows, _) => format!(".{kind}\n"),
        }
    }

    /// A symbol, and what says that a function begins there; `frame` is what it takes of the stack, and 0 where nobody asks.
    fn opened(self, name: &str, frame: usize) -> String {
        match (self, frame) {
            (Self::Linux, _) => format!(".type {name}, @function\n{name}:\n"),
            (Self::Windows, 0) => format!(".seh_proc {name}\n{name}:\n.seh_endprologue\n"),
            (Self::Windows, _) => format!(".seh_proc {name}\n{name}:\n"),
        }
    }

    fn closed(self, name: &str) -> String {
        match self {
            Self::Linux => format!(".size {name}, . - {name}\n"),
            Self::Windows => ".seh_endproc\n".to_owned(),
        }
    }

    /// A function that returns its argument and its number.
    fn function(
        self,
        text: &mut String,
        name: &str,
        index: usize,
        place: &str,
        (prologue, epilogue, _): (&str, &str, usize),
    ) {
        let name = format!("process_{name}_{index}");
        let (opened, closed) = (self.opened(&name, 0), self.closed(&name));
        let code = format!("{prologue}\nlea rax, [rdi + {index}]\n{epilogue}\nret\n");
        let code = if self == Self::Windows { code.replace("rdi", "rcx") } else { code };
        _ = writeln!(text, "{place}\n{opened}{code}{closed}");
    }

    /// A function that calls what its cell says. On Windows a callee has room of its own in its caller's frame.
    fn wrapper(self, text: &mut String, index: usize) {
        let name = format!("process_wrapper_{index}");
        let (frame, cell) = (if self == Self::Windows { 40 } else { 8 }, index * 8);
        let told = match self {
            Self::Linux => String::new(),
            Self::Windows => format!(".seh_stackalloc {frame}\n.seh_endprologue\n"),
        };
        let (opened, closed) = (self.opened(&name, frame), self.closed(&name));
        _ = writeln!(
            text,
            ".balign 64, 0xcc\n{opened}sub rsp, {frame}\n{told}call [rip + process_cells + {cell}]\n\
             add rsp, {frame}\nret\n{closed}"
        );
    }
}
