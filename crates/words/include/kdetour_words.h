/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * kdetour_words.h - instructions in words: a disassembler for Linux modules that works where nothing else does any more.
 *
 * kdetour_words.ko has it, which needs no other module, and which nobody needs: a module that can do without asks at run time,
 * by symbol_get(kdetour_words). The manual is docs/kernel/kdetour_words.md in the project.
 */
#ifndef KDETOUR_WORDS_H
#define KDETOUR_WORDS_H

#include <linux/types.h>

/* Every text fits into so many bytes. */
#define KDETOUR_WORDS_TEXT 96

/*
 * Tells the 64-bit instruction that the `length` bytes at `code` begin with, in Intel's notation, as it is at `address`: "call
 * 0xffffffff81000100". `text` gets it with a NUL behind; 15 bytes of code are always enough. Returns the instruction's length, or
 *	-EINVAL		`code` or `text` is NULL, or `length` or `size` is 0
 *	-EILSEQ		the bytes are no instruction
 *	-ENODATA	the instruction does not end within them, or they end before it can be told that they are none
 *	-ENOSPC		the text does not fit
 *	-EBUSY		calls of it are interrupted by calls of it, more than six deep on this processor
 * and leaves `text` as it was.
 *
 * Context: any, NMI included. Takes no lock, allocates nothing, reads nothing but `code`: copy what may not be mapped first.
 */
int kdetour_words(const void *code, size_t length, u64 address, char *text, size_t size);

#endif
