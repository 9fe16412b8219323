// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * kdetour_room.ko: 2 MiB for trampolines, 65,536 of them at two granules each, for whoever detours thousands of functions.
 * Load it after kdetour.ko. It can be unloaded when no trampoline is in it.
 *
 * The room is text that the file does not hold: an executable section without bytes, which is zero when the module is
 * loaded, and full of INT3 when kdetour.ko has it. objtool cannot read such a section, so it does not see this file (Kbuild).
 */
#include <linux/module.h>
#include <linux/stringify.h>
#include "room.h"

#define ROOM_SIZE 0x200000

extern char kdetour_room_text[];

asm(".pushsection .kdetour_room, \"ax\", @nobits\n"
    ".balign 4096\n"
    ".globl kdetour_room_text\n"
    ".type kdetour_room_text, @function\n"
    "kdetour_room_text:\n"
    "	.skip " __stringify(ROOM_SIZE) "\n"
    ".size kdetour_room_text, . - kdetour_room_text\n"
    ".popsection\n");

static struct kdetour_room room = { .start = kdetour_room_text, .size = ROOM_SIZE, .owner = THIS_MODULE };

static int __init room_init(void)
{
	return kdetour_add_room(&room);
}

static void __exit room_exit(void)
{
	kdetour_remove_room(&room);
}

module_init(room_init);
module_exit(room_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_AUTHOR("the kdetour developers");
MODULE_DESCRIPTION("Room for the trampolines of many detours");
