/* The tables of images that run here, 64-bit or 32-bit, by one name for both. Behind <elf.h> and <link.h>. */
#ifndef IMAGE_H
#define IMAGE_H

#if defined(__x86_64__)
#define OTHER_CLASS ELFCLASS32
#define THIS_CLASS ELFCLASS64
#define MACHINE EM_X86_64
#define Relocation ElfW(Rela)
#define SHT_RELOCATIONS SHT_RELA
#define DT_RELOCATIONS DT_RELA
#define JUMP_SLOT R_X86_64_JUMP_SLOT
#define GLOB_DAT R_X86_64_GLOB_DAT
#define INFO(symbol_, type_) ELF64_R_INFO(symbol_, type_)
#define SYMBOL(info_) ELF64_R_SYM(info_)
#define TYPE(info_) ELF64_R_TYPE(info_)
#define LAST_SYMBOL 0x7fffffff
/* Further than any image reaches, and so that nothing is there. */
#define FAR (1ul << 46)
#else
#define OTHER_CLASS ELFCLASS64
#define THIS_CLASS ELFCLASS32
#define MACHINE EM_386
#define Relocation ElfW(Rel)
#define SHT_RELOCATIONS SHT_REL
#define DT_RELOCATIONS DT_REL
#define JUMP_SLOT R_386_JMP_SLOT
#define GLOB_DAT R_386_GLOB_DAT
#define INFO(symbol_, type_) ELF32_R_INFO(symbol_, type_)
#define SYMBOL(info_) ELF32_R_SYM(info_)
#define TYPE(info_) ELF32_R_TYPE(info_)
#define LAST_SYMBOL 0x7fffff
#define FAR 0xf8000000ul
#endif

#endif
