// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * The slab in which the slots lie: text of this module, full of INT3 until a trampoline is put there. Modules lie
 * within 2 GiB of the kernel and of each other, so every slot reaches every target.
 */
#include <linux/compiler.h>
#include <linux/stringify.h>
#include "host.h"

/* Room for about two thousand trampolines. */
#define SLAB_SIZE 65536
/* In front of the slots: a landing pad, so that objtool takes the slab for a function that may be referred to. */
#define SLAB_HEAD 16
/* Behind them: an end that nothing runs past. */
#define SLAB_TAIL 16

extern char kd_slab[];

asm(".pushsection .text\n"
    ".balign 16\n"
    ".globl kd_slab\n"
    ".type kd_slab, @function\n"
    "kd_slab:\n"
    "	endbr64\n"
    "	.fill " __stringify(SLAB_SIZE) " - 6, 1, 0xcc\n"
    "	ud2\n"
    ".size kd_slab, . - kd_slab\n"
    ".popsection\n");

u64 kd_host_slab(size_t *len)
{
	static bool given;
	char *slab = kd_slab;

	/* A reference into the middle of a function would look like an indirect branch's target to objtool. */
	OPTIMIZER_HIDE_VAR(slab);
	*len = SLAB_SIZE - SLAB_HEAD - SLAB_TAIL;
	if (given)
		return 0;
	given = true;
	return (u64)slab + SLAB_HEAD;
}
