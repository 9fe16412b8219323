// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * Static trampolines. Their callers come and go at any time, so one is never written where they are: the slot is filled while
 * nobody gets there, and then one instruction of five bytes, in which nobody can stand, is exchanged for another of five bytes.
 *
 *	empty		jmp target		if it was never filled and the target is not known: jmp kdetour_empty_trampoline
 *	filled		nop, and on into the slot
 *
 * That is done as the kernel does it with its own text: a breakpoint, the other bytes, the first byte, each followed by a
 * serializing instruction on every processor.
 */
#include <linux/compiler.h>
#include <linux/cpu.h>
#include <linux/kprobes.h>
#include <linux/limits.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/string.h>
#include "host.h"
#include "kernel_detours.h"
#include "lookup.h"
#include "main.h"
#include "report.h"
#include "reserved.h"

#define INT3 0xcc
#define JUMP 5
/* Where its parts are: kernel_detours.h. */
#define JUMP_AT 4
#define REFERENCE_AT 9
#define SLOT_AT 16
/* More no plan asks for. */
#define MOST_ROOM 4096

static const u8 nop[JUMP] = { 0x0f, 0x1f, 0x44, 0x00, 0x00 };	/* nopl 0(%rax,%rax) */

struct kdetour_trampoline *kd_reserved_at(u64 code)
{
	static const u8 reference[] = { 0x0f, 0x1f, 0x05 };	/* nopl disp32(%rip) */
	struct kdetour_trampoline *one, read;
	u8 bytes[SLOT_AT];
	s32 by;

	if (kd_host_read(code, bytes, sizeof(bytes)) || memcmp(bytes + REFERENCE_AT, reference, sizeof(reference)))
		return NULL;
	memcpy(&by, bytes + REFERENCE_AT + sizeof(reference), sizeof(by));
	one = (void *)(code + SLOT_AT + by);
	if (kd_host_read((u64)one, &read, sizeof(read)) || read.magic != KDETOUR_TRAMPOLINE_MAGIC ||
	    (u64)read.code != code || !read.room || read.room > MOST_ROOM || read.detour.trampoline != one)
		return NULL;
	return one;
}

int kd_reserved_slot(const struct kdetour *detour, u32 index, u64 *slot, u64 *len, struct kdetour_error *story)
{
	const struct kdetour_trampoline *one = detour->trampoline;
	u64 code = 0;
	bool own;

	*slot = *len = 0;
	if (!one)
		return 0;
	if (!kd_host_read((u64)&one->code, &code, sizeof(code)) && kd_reserved_at(code) == one && &one->detour == detour) {
		/* The owner does not go while kd_mutex is held. */
		preempt_disable();
		own = kd_k___module_text_address(code) == detour->owner &&
		      kd_k___module_text_address(code + SLOT_AT + one->room - 1) == detour->owner &&
		      !within_module_init(code, detour->owner);
		preempt_enable();
		if (own) {
			*slot = code + SLOT_AT;
			*len = one->room;
			return 0;
		}
	}
	kd_set_error(story, KDETOUR_ARGUMENT, index, code, "the trampoline was not reserved in the owner's text by DETOUR_TRAMPOLINE");
	return story->code;
}

/* The one that is being led elsewhere, and where it has led until now. With kd_mutex held; read by whoever meets its breakpoint. */
static u64 leading, led_to;

u64 notrace kd_reserved_breakpoint(u64 at)
{
	return smp_load_acquire(&leading) == at ? READ_ONCE(led_to) : 0;
}
NOKPROBE_SYMBOL(kd_reserved_breakpoint);

/* Where what stands there leads: the NOP, or a jump. */
static u64 leads(u64 at, const u8 *bytes)
{
	s32 by;

	if (!memcmp(bytes, nop, JUMP))
		return at + JUMP;
	memcpy(&by, bytes + 1, sizeof(by));
	return at + JUMP + by;
}

int kd_reserved_lead(struct kdetour_trampoline *one, u64 to)
{
	u64 at = (u64)one->code + JUMP_AT, page = at & PAGE_MASK;
	s32 by = to - (at + JUMP);
	u8 now[JUMP], bytes[JUMP];
	unsigned int i;
	u8 *alias;

	if (to) {
		bytes[0] = 0xe9;	/* jmp rel32 */
		memcpy(bytes + 1, &by, sizeof(by));
	} else {
		memcpy(bytes, nop, JUMP);
	}
	memcpy(now, (void *)at, JUMP);
	if (!memcmp(now, bytes, JUMP))
		return 0;
	alias = kd_host_map(&page, 1);
	if (!alias)
		return -ENOMEM;
	/* It begins at a multiple of 16: it crosses no page. */
	alias += offset_in_page(at);
	cpus_read_lock();
	WRITE_ONCE(led_to, leads(at, now));
	smp_store_release(&leading, at);
	WRITE_ONCE(alias[0], INT3);
	kd_host_sync_cores();
	for (i = 1; i < JUMP; i++)
		WRITE_ONCE(alias[i], bytes[i]);
	kd_host_sync_cores();
	WRITE_ONCE(alias[0], bytes[0]);
	/* Whoever has met the breakpoint has been sent on by then: its handler has interrupts off. */
	kd_host_sync_cores();
	smp_store_release(&leading, 0);
	cpus_read_unlock();
	kd_host_unmap(alias - offset_in_page(at));
	return 0;
}
