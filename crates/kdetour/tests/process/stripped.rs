//! A library without symbols: its unwind information still says where functions begin and end, and their jumps where their pieces are.

use crate::cold::{drains_behind, kdetour_test_waits};
use crate::imports::MACHINE;
use crate::support::{in_a_process_of_its_own, text, turn};
use kdetour::host::linux_process::LinuxProcess;
use kdetour::host::{Host, View};
use kdetour::plan::{Refusal, Shape, Shapes};
use kdetour::typed::{Detour, MidDetour, Registers, reclaim, with_process};
use kdetour::{Attach, Error};
use std::ffi::{CString, c_void};
use std::mem::transmute;
use std::process::Command;
use std::time::Duration;
use std::{env, fs, process};

/// `far` jumps into its own window from behind three hundred bytes, `near` is ordinary, and no symbol is left of either;
/// `bare` has no unwind information. `parted` calls what it is given, if that is anything, and does so elsewhere. `table` leads to them.
#[cfg(target_arch = "x86_64")]
const SOURCE: &str = r#"
    .text
    .p2align 4
far:
    .cfi_startproc
    push %rbx
1:  mov %rdi, %rbx
    add %rsi, %rbx
    cmp $100, %rbx
    jb 2f
    mov %rbx, %rax
    pop %rbx
    ret
    .skip 300, 0x90
2:  add $100, %rdi
    jmp 1b
    .cfi_endproc
    .p2align 4
near:
    .cfi_startproc
    push %rbx
    mov %rdi, %rbx
    lea (%rbx,%rsi), %rax
    pop %rbx
    ret
    .cfi_endproc
    .p2align 4
parted:
    .cfi_startproc
    test %rdi, %rdi
    jne 3f
    xor %eax, %eax
    ret
    .cfi_endproc
    .p2align 4
bare:
    push %rbx
    mov %rdi, %rbx
    lea (%rbx,%rsi), %rax
    pop %rbx
    ret
    .p2align 4
3:  .cfi_startproc
    sub $8, %rsp
    .cfi_adjust_cfa_offset 8
    call *%rdi
    add $8, %rsp
    .cfi_adjust_cfa_offset -8
    ret
    .cfi_endproc
    .section .data.rel.ro, "aw"
    .p2align 3
    .globl table
    .type table, @object
table:
    .quad far, near, bare, parted
    .size table, . - table
    .section .note.GNU-stack, "", @progbits
"#;
/// How long `near` is, and where in it the register has the first argument.
#[cfg(target_arch = "x86_64")]
const NEAR: (usize, u64) = (10, 4);

/// `far` jumps into its own window from behind three hundred bytes, `near` is ordinary, and no symbol is left of either;
/// `bare` has no unwind information. `parted` calls what it is given, if that is anything, and does so elsewhere. `table` leads to them.
#[cfg(target_arch = "x86")]
const SOURCE: &str = r#"
    .text
    .p2align 4
far:
    .cfi_startproc
    push %ebx
1:  mov 8(%esp), %ebx
    add 12(%esp), %ebx
    cmp $100, %ebx
    jb 2f
    mov %ebx, %eax
    pop %ebx
    ret
    .skip 300, 0x90
2:  addl $100, 8(%esp)
    jmp 1b
    .cfi_endproc
    .p2align 4
near:
    .cfi_startproc
    push %ebx
    mov 8(%esp), %ebx
    add 12(%esp), %ebx
    mov %ebx, %eax
    pop %ebx
    ret
    .cfi_endproc
    .p2align 4
parted:
    .cfi_startproc
    cmpl $0, 4(%esp)
    jne 3f
    xor %eax, %eax
    ret
    .cfi_endproc
    .p2align 4
bare:
    push %ebx
    mov 8(%esp), %ebx
    add 12(%esp), %ebx
    mov %ebx, %eax
    pop %ebx
    ret
    .p2align 4
3:  .cfi_startproc
    sub $12, %esp
    .cfi_adjust_cfa_offset 12
    call *16(%esp)
    add $12, %esp
    .cfi_adjust_cfa_offset -12
    ret
    .cfi_endproc
    .section .data.rel.ro, "aw"
    .p2align 3
    .globl table
    .type table, @object
table:
    .long far, near, bare, parted
    .size table, . - table
    .section .note.GNU-stack, "", @progbits
"#;
/// How long `near` is, and where in it the register has the first argument.
#[cfg(target_arch = "x86")]
const NEAR: (usize, u64) = (13, 5);

type Target = extern "C" fn(usize, usize) -> usize;

/// The four functions.
fn load() -> [Target; 4] {
    let folder = env::temp_dir().join(format!("kdetour-stripped-{}", process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (source, library) = (folder.join("stripped.s"), folder.join("libstripped.so"));
    fs::write(&source, SOURCE).unwrap();
    let mut build = Command::new("cc");
    build.args([MACHINE, "-shared", "-s", "-nostdlib"]).arg(&source).arg("-o").arg(&library);
    assert!(build.status().unwrap().success());
    let path = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: strings are given; the library runs nothing when it is loaded, and stays.
    let table: *mut c_void =
        unsafe { libc::dlsym(libc::dlopen(path.as_ptr(), libc::RTLD_NOW), c"table".as_ptr()) };
    assert!(!table.is_null());
    fs::remove_dir_all(&folder).unwrap();
    // SAFETY: that is what is there.
    unsafe { transmute::<[usize; 4], [Target; 4]>(table.cast::<[usize; 4]>().read()) }
}

extern "C" fn nothing(_: usize, _: usize) -> usize {
    0
}

#[test]
fn bounds_come_from_the_unwind_information() {
    if !in_a_process_of_its_own("stripped::bounds_come_from_the_unwind_information") {
        return;
    }
    let turn = turn();
    let [far, near, bare, _] = load();
    assert_eq!((far(1, 2), near(1, 2), bare(1, 2)), (103, 3, 3));
    let host = LinuxProcess::new().unwrap();
    let length = |target: Target| host.view().unwrap().function(target as usize as u64).unwrap().length;
    assert_eq!((length(near), length(bare)), (Some(NEAR.0), None));
    assert!(length(far).is_some_and(|length| length > 300));

    // A branch that only the whole function shows.
    let before = text(far as usize as u64, 64);
    let jump = Attach {
        target: far as usize as u64,
        detour: nothing as *const () as u64,
        shapes: Some(Shapes::only(Shape::Jump5)),
        ..Attach::default()
    };
    let refused = with_process(|kdetour| {
        // SAFETY: both have one signature.
        let session = unsafe { kdetour.session().attach(jump) };
        session.commit_local(&turn.alone, &mut |_, _| ()).map_err(|failed| failed.error)
    });
    let into = far as usize as u64 + 1;
    assert!(
        matches!(refused, Err(Error::Refused(Refusal::BranchIntoWindow { into: found, .. })) if found == into),
        "{refused:x?}"
    );
    assert_eq!(text(far as usize as u64, 64), before);

    // What is no entry is refused with the entry.
    let entry = near as usize as u64;
    // SAFETY: it is refused.
    let inside = unsafe { transmute::<usize, Target>(entry as usize + 1) };
    // SAFETY: it is refused.
    let error = unsafe { Detour::attach(inside, nothing) }.unwrap_err();
    assert_eq!(error, Error::NotFunction { address: entry + 1, entry });

    // Inside a function without a name.
    extern "C" fn ten_more(registers: &mut Registers) {
        #[cfg(target_arch = "x86_64")]
        let register = &mut registers.rbx;
        #[cfg(target_arch = "x86")]
        let register = &mut registers.ebx;
        *register += 10;
    }
    // SAFETY: the register is the function's own.
    let mid = unsafe { MidDetour::attach(entry + NEAR.1, ten_more) }.unwrap();
    assert_eq!(near(1, 2), 13);
    drop(mid);
    assert_eq!(near(1, 2), 3);
    reclaim(Duration::from_secs(10)).unwrap();
}

/// A thread that sleeps in the piece of a detour that the compiler has moved away: no symbol tells where that is.
#[test]
fn a_piece_without_a_name_is_waited_for() {
    if !in_a_process_of_its_own("stripped::a_piece_without_a_name_is_waited_for") {
        return;
    }
    let _turn = turn();
    let [_, near, _, parted] = load();
    // SAFETY: both have one signature.
    let detour = unsafe { Detour::attach(near, parted) }.unwrap();
    assert_eq!(near(0, 2), 0);
    drains_behind(detour, move || near(kdetour_test_waits as *const () as usize, 2));
}
