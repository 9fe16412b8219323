// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* What the kernel knows about a function: bounds, ftrace site, and whose the bytes near its entry are. */
#include <linux/bug.h>
#include <linux/kallsyms.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/preempt.h>
#include <linux/slab.h>
#include <linux/string.h>
#include "clients.h"
#include "cold.h"
#include "hook_path.h"
#include "host.h"
#include "landings.h"
#include "lookup.h"
#include "rewritten.h"
#include "untouchable.h"

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

/* Unlike the others, this one is asked about what lies in front of the second address. */
static __always_inline bool owns_alternative(unsigned long first, unsigned long last)
{
	return kd_k_alternatives_text_reserved((void *)first, (void *)last + 1);
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

static __always_inline bool owns_kprobe(unsigned long first, unsigned long last)
{
	return kd_host_kprobe(first, last - first + 1);
}

/* A static call's trampoline, which the kernel rewrites whole: a jump or return, and then a mark. */
static bool is_static_call_trampoline(u64 address)
{
	static const u8 mark[] = { 0x0f, 0xb9, 0xcc };	/* ud1 %esp, %ecx */
	u8 bytes[3];

	return !kd_host_read(address + 5, bytes, 3) && !memcmp(bytes, mark, 3);
}

/*
 * Whether there is code that stays: of the kernel, or of a module that is not about to go, of whose going clients.c will hear. Text that only
 * initialises is freed soon, and nobody is told. *in is the module, which does not go while kd_mutex is held: the notifier
 * in clients.c waits for that.
 */
static int check_code(u64 address, struct module **in)
{
	struct module *module;
	int answer = KD_OK;

	*in = NULL;
	if (kd_k_core_kernel_text(address))
		return KD_OK;
	/* Modules are freed after an RCU grace period. */
	preempt_disable();
	module = kd_k___module_text_address(address);
	if (!module)
		answer = KD_NOT_CODE;
	else if (module == THIS_MODULE || module->state == MODULE_STATE_GOING ||
		 within_module_init(address, module) ||
		 (module->state == MODULE_STATE_COMING && !kd_is_coming(module)))
		answer = KD_FORBIDDEN;
	preempt_enable();
	*in = module;
	return answer;
}

int kd_host_detour(u64 detour)
{
	struct module *module;

	return check_code(detour, &module);
}

/* Joins neighbouring bytes of one owner; what does not fit makes the last piece longer, which forbids more. */
static void add_reserved(struct kd_function *function, u64 at, u32 len, u32 owner)
{
	u32 count = function->reserved_count;
	u64 end = at + len;

	if (count) {
		u64 start = function->reserved[count - 1].address;
		u64 last_end = start + function->reserved[count - 1].len;

		if (count == KD_RESERVED || (function->reserved[count - 1].owner == owner && last_end == at)) {
			start = min(start, at);
			function->reserved[count - 1].address = start;
			function->reserved[count - 1].len = max(last_end, end) - start;
			return;
		}
	}
	function->reserved[count].address = at;
	function->reserved[count].len = len;
	function->reserved[count].owner = owner;
	function->reserved_count++;
}

/* Asks about all bytes at once, which is nearly always answered with no, and only then about each. */
static __always_inline void reserve(struct kd_function *function, u64 from, u64 end, u32 owner, owns_t owns)
{
	u64 at;

	if (!owns(from, end - 1))
		return;
	for (at = from; at < end; at++)
		if (owns(at, at))
			add_reserved(function, at, 1, owner);
}

/* Those whom the kernel asks want all bytes in one module's text. */
static u64 end_of_question(u64 from, const struct module *module)
{
	u64 end = from + NEAR_ENTRY;

	preempt_disable();
	while (module && end > from + 1 && kd_k___module_text_address(end - 1) != module)
		end--;
	preempt_enable();
	return end;
}

static int add_part(void *to, unsigned long address)
{
	struct kd_function *function = to;
	unsigned long size, offset;

	if (!address || !kd_k_kallsyms_lookup_size_offset(address, &size, &offset) || offset)
		return 0;
	/* More than fit, and nobody could say any more that nothing branches into the window. */
	if (function->part_count == KD_PARTS)
		return -E2BIG;
	function->parts[function->part_count].address = address;
	function->parts[function->part_count].len = size;
	function->part_count++;
	return 0;
}

/* What has a symbol and is no function: the padding in front of one, and a piece of one, which is jumped to. */
static bool is_piece(const char *symbol)
{
	const char *dot = strrchr(symbol, '.');

	return strstarts(symbol, "__pfx_") || strstarts(symbol, "__cfi_") || (dot && !strcmp(dot, ".cold"));
}

/*
 * The compiler moves what is hardly ever run into a piece of its own, NAME.cold, which jumps back into the function.
 * Static functions of one name have pieces of one name: all of them are looked at. 0, 1 if the function is such a piece,
 * or an errno.
 */
static int add_cold_parts(struct kd_function *function, bool core)
{
	char *symbol = kmalloc(KSYM_SYMBOL_LEN, GFP_KERNEL);
	char *name = kmalloc(KSYM_SYMBOL_LEN, GFP_KERNEL);
	char *module;
	int result = symbol && name ? 0 : -ENOMEM;

	if (!result) {
		/* name, or name [module] */
		sprint_symbol_no_offset(symbol, function->entry);
		module = symbol;
		strsep(&module, " ");
		if (is_piece(symbol)) {
			result = 1;
		} else if (core) {
			result = kd_cold_pieces(symbol, add_part, function);
		} else if (module && module[0] == '[') {
			snprintf(name, KSYM_SYMBOL_LEN, "%.*s:%s.cold", (int)strcspn(module + 1, "]"), module + 1, symbol);
			result = add_part(function, kd_k_kallsyms_lookup_name(name));
		}
	}
	kfree(name);
	kfree(symbol);
	/* The kernel's answer for a name that does not exist. */
	return result == -ESRCH ? 0 : result;
}

int kd_host_function(u64 target, struct kd_function *function)
{
	unsigned long size, offset, fentry;
	u64 from = target, end;
	struct module *module;
	int error;
	u8 byte;

	if (kd_host_read(target, &byte, 1))
		return KD_UNREADABLE;
	error = check_code(target, &module);
	if (error)
		return error;
	if (kd_k_within_kprobe_blacklist(target))
		return KD_FORBIDDEN;
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
	function->image_end = module ? MODULES_END : kd_etext;

	/* The site may lie behind a landing pad; further in it is not an entry site. */
	fentry = kd_k_ftrace_location(target);
	if (fentry >= target && fentry <= target + 4) {
		function->fentry = fentry;
		from = fentry + FENTRY_SIZE;
	}
	if ((target >= kd_cpuidle_start && target < kd_cpuidle_end) || kd_on_hook_path(target) ||
	    kd_untouchable(target))
		return KD_FORBIDDEN;
	if (kd_k_within_kprobe_blacklist(from))
		return KD_FORBIDDEN;

	error = add_cold_parts(function, !module);
	if (error == 1) {
		function->entry = 0;
		return KD_NOT_FUNCTION;
	}
	if (error)
		return error;
	kd_find_landings(function, module);
	end = end_of_question(from, module);
	reserve(function, from, end, KD_EXCEPTION_TABLE, owns_exception);
	if (kd_may_be_rewritten(from, end, module)) {
		reserve(function, from, end, KD_JUMP_LABEL, owns_jump_label);
		reserve(function, from, end, KD_STATIC_CALL, owns_static_call);
	}
	mutex_lock(kd_text_mutex);
	reserve(function, from, end, KD_ALTERNATIVE, owns_alternative);
	mutex_unlock(kd_text_mutex);
	reserve(function, from, end, KD_FTRACE, owns_ftrace);
	reserve(function, from, end, KD_BUG_TABLE, owns_bug);
	reserve(function, from, end, KD_KPROBE, owns_kprobe);
	if (is_static_call_trampoline(target))
		add_reserved(function, target, 5, KD_STATIC_CALL);
	return KD_OK;
}
