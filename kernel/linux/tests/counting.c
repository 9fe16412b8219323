// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * counting.ko: what counting.h says.
 *
 * Each detour leaves every register, the flags and the stack as they were. All of them are written when the module is
 * loaded, into text that the file does not hold (see kdetour_room.c): as source they would be 57,344 functions.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/stringify.h>
#include <linux/vmalloc.h>
#include "counting.h"

#define TEXT_SIZE (COUNTING_MOST * COUNTING_SIZE)

static_assert(TEXT_SIZE % PAGE_SIZE == 0);
/* The assembler is given the product. */
static_assert(TEXT_SIZE == 0x1c0000);

extern char counting_text[];

asm(".pushsection .counting, \"ax\", @nobits\n"
    ".balign 4096\n"
    ".globl counting_text\n"
    ".type counting_text, @function\n"
    "counting_text:\n"
    "	.skip 0x1c0000\n"
    ".size counting_text, . - counting_text\n"
    ".popsection\n");

static void *originals[COUNTING_MOST];
static u64 calls[COUNTING_MOST];

const struct counting counting = { .detours = counting_text, .originals = originals, .calls = calls };
EXPORT_SYMBOL_GPL(counting);

static void write_one(u8 *to, unsigned int number)
{
	static const u8 form[] = {
		0xf3, 0x0f, 0x1e, 0xfa,				/*  0 endbr64 */
		0x9c,						/*  4 pushfq */
		0xf0, 0x48, 0xff, 0x05, 0, 0, 0, 0,		/*  5 lock incq calls[number](%rip) */
		0x9d,						/* 13 popfq */
		0xff, 0x25, 0, 0, 0, 0,				/* 14 jmp *originals[number](%rip) */
	};
	u64 at = (u64)counting_text + number * COUNTING_SIZE;
	s32 to_calls = (u64)&calls[number] - (at + 13);
	s32 to_original = (u64)&originals[number] - (at + sizeof(form));

	memset(to, 0xcc, COUNTING_SIZE);
	memcpy(to, form, sizeof(form));
	memcpy(to + 9, &to_calls, sizeof(to_calls));
	memcpy(to + 16, &to_original, sizeof(to_original));
}

static int __init counting_init(void)
{
	unsigned int i, count = TEXT_SIZE / PAGE_SIZE;
	struct page **pages;
	u8 *alias;

	pages = kvmalloc_array(count, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return -ENOMEM;
	for (i = 0; i < count; i++)
		pages[i] = pfn_to_page(slow_virt_to_phys(counting_text + i * PAGE_SIZE) >> PAGE_SHIFT);
	alias = vmap(pages, count, VM_MAP, PAGE_KERNEL);
	kvfree(pages);
	if (!alias)
		return -ENOMEM;
	for (i = 0; i < COUNTING_MOST; i++)
		write_one(alias + i * COUNTING_SIZE, i);
	vunmap(alias);
	return 0;
}

static void __exit counting_exit(void)
{
}

module_init(counting_init);
module_exit(counting_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("counting detours for tests of kdetour.ko");
