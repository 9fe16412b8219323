// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * The slab in which the slots lie: text of this module, full of INT3 until a trampoline is put there. Modules lie
 * within 2 GiB of the kernel and of each other, so every slot reaches every target.
 */
#include <linux/compiler.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/objtool.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/stringify.h>
#include "host.h"
#include "lookup.h"
#include "main.h"
#include "room.h"

/* Room for about two thousand trampolines; kdetour_room.ko brings more. */
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

/*
 * No unwind rule for what is in here. The copies in a slot push registers and move the stack pointer, each slot
 * otherwise, so one rule for all of them would find a caller where a register was saved. With none an unwinder stops,
 * silently, and does not call the trace reliable. That is right even where the caller could be found: somebody in a
 * trampoline is about to go on in the target, whose name is nowhere on the stack, and livepatch must not take it for
 * outside.
 */
STACK_FRAME_NON_STANDARD(kd_slab);

static LIST_HEAD(rooms);
static bool own_given;

size_t kd_slab_bytes(void)
{
	size_t bytes = SLAB_SIZE - SLAB_HEAD - SLAB_TAIL;
	const struct kdetour_room *room;

	list_for_each_entry(room, &rooms, list)
		bytes += room->size;
	return bytes;
}

/* Its own first; then those that modules such as kdetour_room.ko have brought, which cannot go as long as they are used. */
u64 kd_host_slab(size_t *len)
{
	struct kdetour_room *room;
	char *slab = kd_slab;

	/* A reference into the middle of a function would look like an indirect branch's target to objtool. */
	OPTIMIZER_HIDE_VAR(slab);
	if (!own_given) {
		own_given = true;
		*len = SLAB_SIZE - SLAB_HEAD - SLAB_TAIL;
		return (u64)slab + SLAB_HEAD;
	}
	list_for_each_entry(room, &rooms, list)
		if (!room->given && try_module_get(room->owner)) {
			room->given = true;
			*len = room->size;
			return (u64)room->start;
		}
	return 0;
}

bool kd_host_slab_back(u64 start)
{
	struct kdetour_room *room;

	list_for_each_entry(room, &rooms, list)
		if (room->given && (u64)room->start == start) {
			room->given = false;
			module_put(room->owner);
			return true;
		}
	return false;
}

/* It comes as it was loaded; whoever strays there should be stopped. */
static int fill_with_int3(const struct kdetour_room *room)
{
	u64 at, *pages, count = room->size >> PAGE_SHIFT;
	void *alias = NULL;

	pages = kvmalloc_array(count, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return -ENOMEM;
	for (at = 0; at < count; at++)
		pages[at] = (u64)room->start + (at << PAGE_SHIFT);
	alias = kd_host_map(pages, count);
	if (alias) {
		memset(alias, 0xcc, room->size);
		kd_host_unmap(alias);
	}
	kvfree(pages);
	return alias ? 0 : -ENOMEM;
}

int kdetour_add_room(struct kdetour_room *room)
{
	struct module *owner;
	int error;

	preempt_disable();
	owner = kd_k___module_text_address((unsigned long)room->start);
	preempt_enable();
	if (!PAGE_ALIGNED(room->start) || !PAGE_ALIGNED(room->size) || !room->size || owner != room->owner)
		return -EINVAL;
	error = fill_with_int3(room);
	if (error)
		return error;
	kd_host_sync_cores();
	kd_lock();
	room->given = false;
	list_add_tail(&room->list, &rooms);
	kd_unlock();
	return 0;
}
EXPORT_SYMBOL_GPL(kdetour_add_room);

void kdetour_remove_room(struct kdetour_room *room)
{
	/* It is not given: whoever has taken it holds its module. */
	kd_lock();
	list_del(&room->list);
	kd_unlock();
}
EXPORT_SYMBOL_GPL(kdetour_remove_room);
