// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* What the kernel knows about a function: bounds, ftrace site, and whose the bytes near its entry are. */
#include <linux/bug.h>
#include <linux/module.h>
#include <linux/string.h>
#include "host.h"
#include "lookup.h"

/* From the window's start on, the furthest byte that a displaced instruction can have. */
#define NEAR_ENTRY 24
#define FENTRY_SIZE 5

typedef bool (*owns_t)(unsigned long first, unsigned long last);

static __always_inline bool owns_exception(unsigned long first, unsigned long last)
{
	for (; first <= last; first++)
		if (kd_k_search_exception_tables(first))
			return true;
	return false;
}

static __always_inline bool owns_jump_label(unsigned long first, unsigned long last)
{
	return kd_k_jump_label_text_reserved((void *)first, (void *)last);
}

static __always_inline bool owns_static_call(unsigned long first, unsigned long last)
{
	return kd_k_static_call_text_reserved((void *)first, (void *)last);
}

static __always_inline bool owns_alternative(unsigned long first, unsigned long last)
{
	return kd_k_alternatives_text_reserved((void *)first, (void *)last);
}

static __always_inline bool owns_ftrace(unsigned long first, unsigned long last)
{
	return kd_k_ftrace_text_reserved((void *)first, (void *)last);
}

/* find_bug goes through the whole table: ask it only about instructions that can be in it. */
static __always_inline bool owns_bug(unsigned long first, unsigned long last)
{
	static const u8 ud2[] = { 0x0f, 0x0b };
	u8 bytes[2];

	for (; first <= last; first++)
		if (!kd_host_read(first, bytes, 2) && !memcmp(bytes, ud2, 2) && kd_k_find_bug(first))
			return true;
	return false;
}

/* Asks about all bytes at once, which is nearly always answered with no, and only then about each. */
static __always_inline void reserve(struct kd_function *function, u64 from, u32 owner, owns_t owns)
{
	u64 at, end = from + NEAR_ENTRY;

	if (!owns(from, end - 1))
		return;
	for (at = from; at < end && function->reserved_count < KD_RESERVED; at++) {
		if (!owns(at, at))
			continue;
		function->reserved[function->reserved_count].address = at;
		function->reserved[function->reserved_count].len = 1;
		function->reserved[function->reserved_count].owner = owner;
		function->reserved_count++;
	}
}

static bool is_on_the_way_to_the_hook(unsigned long address)
{
	unsigned int i;

	for (i = 0; i < KD_HOOK_PATH; i++)
		if (kd_hook_path[i] == address)
			return true;
	return false;
}

int kd_host_function(u64 target, struct kd_function *function)
{
	unsigned long size, offset, fentry;
	u64 from = target;
	bool core;
	u8 byte;

	if (kd_host_read(target, &byte, 1))
		return KD_UNREADABLE;
	core = kd_k_core_kernel_text(target);
	if (!core && !kd_k_is_module_text_address(target))
		return KD_NOT_CODE;
	if (!kd_k_kallsyms_lookup_size_offset(target, &size, &offset))
		return KD_NOT_FUNCTION;
	if (offset) {
		function->entry = target - offset;
		return KD_NOT_FUNCTION;
	}
	function->entry = target;
	function->length = size;
	function->next_symbol = target + size;
	function->image_start = kd_stext;
	/* A module may well begin a function with a jump into the kernel. */
	function->image_end = core ? kd_etext : MODULES_END;

	/* The site may lie behind a landing pad; further in it is not an entry site. */
	fentry = kd_k_ftrace_location(target);
	if (fentry >= target && fentry <= target + 4) {
		function->fentry = fentry;
		from = fentry + FENTRY_SIZE;
	}
	if ((target >= kd_cpuidle_start && target < kd_cpuidle_end) || is_on_the_way_to_the_hook(target))
		return KD_FORBIDDEN;
	if (within_module(target, THIS_MODULE) || kd_k_within_kprobe_blacklist(target) ||
	    kd_k_within_kprobe_blacklist(from))
		return KD_FORBIDDEN;

	reserve(function, from, KD_EXCEPTION_TABLE, owns_exception);
	reserve(function, from, KD_JUMP_LABEL, owns_jump_label);
	reserve(function, from, KD_STATIC_CALL, owns_static_call);
	reserve(function, from, KD_ALTERNATIVE, owns_alternative);
	reserve(function, from, KD_FTRACE, owns_ftrace);
	reserve(function, from, KD_BUG_TABLE, owns_bug);
	return KD_OK;
}
