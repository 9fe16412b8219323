//! Instructions that depend on their address, or end, or look odd. `?` is any byte, `~` a small displacement.

/// For 64-bit code.
pub const BITS64: &[&str] = &[
    "eb ~",                               // jmp rel8
    "e9 ~ 00 00 00",                      // jmp rel32
    "e9 ? ? ? ?",                         // jmp rel32
    "48 e9 ~ ff ff ff",                   // rex.w jmp rel32
    "66 e9 ? ? ? ?",                      // jmp with an operand-size prefix
    "f2 eb ~",                            // bnd jmp rel8
    "74 ~",                               // je rel8
    "7f ~",                               // jg rel8
    "3e 75 ~",                            // jne rel8 with a hint
    "0f 8c ~ ff ff ff",                   // jl rel32
    "0f 8c ? ? ? ?",                      // jl rel32
    "e2 ~",                               // loop rel8
    "67 e2 ~",                            // loop rel8, ECX
    "e1 ~",                               // loope rel8
    "e0 ~",                               // loopne rel8
    "e3 ~",                               // jrcxz rel8
    "67 e3 ~",                            // jecxz rel8
    "c7 f8 ~ 00 00 00",                   // xbegin rel32
    "66 c7 f8 ~ ff",                      // xbegin rel16
    "e8 ~ 00 00 00",                      // call rel32
    "e8 ? ? ? ?",                         // call rel32
    "e8 00 00 00 00",                     // call $+5
    "66 66 48 e8 ? ? ? ?",                // padded call rel32
    "ff d0",                              // call rax
    "41 ff d3",                           // call r11
    "3e ff d0",                           // notrack call rax
    "ff 14 24",                           // call [rsp]
    "ff d4",                              // call rsp
    "ff 57 ?",                            // call [rdi+disp8]
    "41 ff 94 c4 ? ? ? ?",                // call [r12+rax*8+disp32]
    "ff 15 ? ? 00 00",                    // call [rip+disp32]
    "65 ff 15 ? ? 00 00",                 // call gs:[rip+disp32]
    "67 ff 15 ? ? 00 00",                 // call [eip+disp32]
    "ff 1d ? ? 00 00",                    // call far [rip+disp32]
    "ff 25 ? ? 00 00",                    // jmp [rip+disp32]
    "ff e0",                              // jmp rax
    "c3",                                 // ret
    "f3 c3",                              // rep ret
    "c2 08 00",                           // ret 8
    "48 8b 05 ? ? ? ?",                   // mov rax, [rip+disp32]
    "48 8d 05 ~ ff ff ff",                // lea rax, [rip+disp32]
    "48 8b 05 ~ ff ff ff",                // mov rax, [rip+disp32]
    "80 3d ? ? 00 00 ?",                  // cmp byte [rip+disp32], imm8
    "66 c7 05 ? ? 00 00 ? ?",             // mov word [rip+disp32], imm16
    "48 c7 05 ? ? 00 00 ? ? ? ?",         // mov qword [rip+disp32], imm32
    "f0 48 0f c1 05 ? ? 00 00",           // lock xadd [rip+disp32], rax
    "65 48 8b 05 ? ? 00 00",              // mov rax, gs:[rip+disp32]
    "67 8b 05 ? ? 00 00",                 // mov eax, [eip+disp32]
    "c5 fd 6f 05 ? ? 00 00",              // vmovdqa ymm0, [rip+disp32]
    "c4 e3 7d 0f 05 ? ? 00 00 ?",         // vpalignr ymm0, ymm0, [rip+disp32], imm8
    "62 f1 fe 48 6f 05 ? ? 00 00",        // vmovdqu64 zmm0, [rip+disp32]
    "62 f3 75 59 25 05 ? ? 00 00 ?",      // vpternlogd zmm0{k1}, zmm1, [rip+disp32]{1to16}, imm8
    "8f ea 78 10 05 ? ? 00 00 ? ? 00 00", // bextr eax, [rip+disp32], imm32 (XOP)
    "0f 0f 05 ? ? 00 00 9e",              // pfadd mm0, [rip+disp32]
    "0f ae 05 ? ? ff ff",                 // fxsave [rip+disp32]
    "48 8b 04 25 ? ? ? ?",                // mov rax, [disp32]
    "48 b8 ? ? ? ? ? ? ? ?",              // mov rax, imm64
    "48 a1 ? ? ? ? ? ? ? ?",              // mov rax, [moffs64]
    "55",                                 // push rbp
    "48 89 e5",                           // mov rbp, rsp
    "41 57",                              // push r15
    "48 81 ec ? ? 00 00",                 // sub rsp, imm32
    "31 c0",                              // xor eax, eax
    "90",                                 // nop
    "66 90",                              // two-byte nop
    "0f 1f 44 00 00",                     // five-byte nop
    "66 2e 0f 1f 84 00 00 00 00 00",      // ten-byte nop
    "f3 0f 1e fa",                        // endbr64
    "cc",                                 // int3
    "0f 0b",                              // ud2
    "0f 05",                              // syscall
    "cd 80",                              // int 0x80
    "fb",                                 // sti
    "8e d0",                              // mov ss, eax
    "f4",                                 // hlt
    "06",                                 // no instruction
];

/// The same for 32-bit code.
pub const BITS32: &[&str] = &[
    "eb ~",                        // jmp rel8
    "e9 ~ 00 00 00",               // jmp rel32
    "e9 ~ ff ff ff",               // jmp rel32
    "e9 ? ? ? ?",                  // jmp rel32
    "66 e9 ~ ff",                  // jmp rel16
    "66 eb ~",                     // jmp rel8, 16-bit operand size
    "74 ~",                        // je rel8
    "7f ~",                        // jg rel8
    "3e 75 ~",                     // jne rel8 with a hint
    "66 74 ~",                     // je rel8, 16-bit operand size
    "0f 8c ~ ff ff ff",            // jl rel32
    "0f 8c ? ? ? ?",               // jl rel32
    "e2 ~",                        // loop rel8
    "67 e2 ~",                     // loop rel8, CX
    "e1 ~",                        // loope rel8
    "e0 ~",                        // loopne rel8
    "e3 ~",                        // jecxz rel8
    "67 e3 ~",                     // jcxz rel8
    "c7 f8 ~ 00 00 00",            // xbegin rel32
    "66 c7 f8 ~ ff",               // xbegin rel16
    "e8 ~ 00 00 00",               // call rel32
    "e8 ? ? ? ?",                  // call rel32
    "e8 00 00 00 00",              // call $+5
    "66 e8 ~ ff",                  // call rel16
    "ff d0",                       // call eax
    "66 ff d0",                    // call ax
    "3e ff d0",                    // notrack call eax
    "ff 14 24",                    // call [esp]
    "ff d4",                       // call esp
    "ff 57 ?",                     // call [edi+disp8]
    "ff 94 c3 ? ? ? ?",            // call [ebx+eax*8+disp32]
    "67 ff 10",                    // call [bx+si]
    "ff 15 ? ? 00 00",             // call [disp32]
    "65 ff 15 10 00 00 00",        // call gs:[0x10]
    "ff 1d ? ? 00 00",             // call far [disp32]
    "9a ? ? ? ? 23 00",            // call far
    "ea ? ? ? ? 23 00",            // jmp far
    "ff 25 ? ? 00 00",             // jmp [disp32]
    "ff 24 85 ? ? 40 00",          // jmp [eax*4+disp32]
    "8b 84 83 ? ? ff ff",          // mov eax, [ebx+eax*4+disp32]
    "ff e0",                       // jmp eax
    "c3",                          // ret
    "c2 08 00",                    // ret 8
    "8b 05 ? ? 40 00",             // mov eax, [disp32]
    "a1 ? ? 40 00",                // mov eax, [moffs32]
    "64 a1 00 00 00 00",           // mov eax, fs:[0]
    "8d 83 ? ? ff ff",             // lea eax, [ebx+disp32]
    "c7 05 ? ? 40 00 ? ? ? ?",     // mov dword [disp32], imm32
    "68 ? ? ? ?",                  // push imm32
    "b8 ? ? 40 00",                // mov eax, imm32
    "c5 fd 6f 05 ? ? 00 00",       // vmovdqa ymm0, [disp32]
    "62 f1 fe 48 6f 05 ? ? 00 00", // vmovdqu64 zmm0, [disp32]
    "55",                          // push ebp
    "89 e5",                       // mov ebp, esp
    "8b ff",                       // mov edi, edi
    "57",                          // push edi
    "81 ec ? ? 00 00",             // sub esp, imm32
    "83 ec ?",                     // sub esp, imm8
    "31 c0",                       // xor eax, eax
    "40",                          // inc eax
    "60",                          // pushad
    "06",                          // push es
    "90",                          // nop
    "66 90",                       // two-byte nop
    "8d 76 00",                    // lea esi, [esi+0]
    "8d b4 26 00 00 00 00",        // lea esi, [esi+0]
    "f3 0f 1e fb",                 // endbr32
    "cc",                          // int3
    "ce",                          // into
    "0f 0b",                       // ud2
    "cd 80",                       // int 0x80
    "fb",                          // sti
    "17",                          // pop ss
    "0f 04",                       // no instruction
];
