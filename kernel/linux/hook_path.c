// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * What runs between a breakpoint and our hook.
 *
 * A breakpoint in a function that the way of breakpoints needs would lead back to itself, until the stack is used up.
 * Most of the way is entry code, noinstr or on the kprobe blacklist. That is not all of it: kprobes are asked before
 * the die notifiers, so the kernel has no reason to list what only these need. Which functions that are differs from
 * one kernel to the next, so the running one is asked, once, when the module is loaded:
 *
 *	exc_int3, and every notifier that is asked before ours
 *	  what they call, and what that calls, to the end
 *
 * Calls are found without decoding: wherever four bytes behind the opcode of a call or jump lead to the very start of
 * a function there may be one. Bytes that only look so forbid a function too many. What is called through a pointer is
 * not found: that is the notifiers, which are asked for by the chain, and the probes of tracepoints.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/string.h>
#include "hook_path.h"
#include "host.h"
#include "lookup.h"

/* There are a few dozen on Debian's kernels, most of which nobody may probe anyway. */
#define MOST 512

static unsigned long way[MOST];
static unsigned int way_count;

/*
 * Where the way is not followed further. Whoever is missing here only makes the way longer than it is.
 *
 *	irqentry_*_user_mode	exc_int3 calls them for breakpoints of programs
 *	do_trap, die, die_addr	nobody wanted the breakpoint
 *	reenter_kprobe		a kprobe in the handler of another one, by a breakpoint of its own
 *	hw_breakpoint_exceptions_notify
 *				is asked before ours, and returns at once for anything but a debug exception
 *	kgdb_ll_trap		returns at once unless a debugger of kernels is connected
 *	__rcu_irq_enter_check_tick, rcu_read_unlock_special
 *				exc_int3 is entered as an NMI is, and there they return at once
 *	preempt_schedule*	are not called either: nobody is preempted there
 *	__stack_chk_fail	does not return
 *	__fentry__		is never called once the kernel has booted
 */
static const char *const ends[] = {
	"irqentry_enter_from_user_mode", "irqentry_exit_to_user_mode", "do_trap", "die", "die_addr", "reenter_kprobe",
	"hw_breakpoint_exceptions_notify", "kgdb_ll_trap", "__rcu_irq_enter_check_tick", "rcu_read_unlock_special",
	"preempt_schedule", "preempt_schedule_notrace", "__stack_chk_fail", "__fentry__",
};
static unsigned long end_addresses[ARRAY_SIZE(ends)];

static bool is_end(unsigned long function)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ends); i++)
		if (end_addresses[i] == function)
			return true;
	return false;
}

bool kd_on_hook_path(unsigned long function)
{
	unsigned int i;

	for (i = 0; i < way_count; i++)
		if (way[i] == function)
			return true;
	return false;
}

static int add(unsigned long function)
{
	if (kd_on_hook_path(function))
		return 0;
	if (way_count == MOST)
		return -E2BIG;
	way[way_count++] = function;
	return 0;
}

/* Where a call or jump would lead whose opcode stands there; 0 if none does. */
static unsigned long branch_at(unsigned long address)
{
	u8 bytes[6];
	s32 by;

	if (kd_host_read(address, bytes, sizeof(bytes)))
		return 0;
	if (bytes[0] == 0xe8 || bytes[0] == 0xe9) {			/* call rel32, jmp rel32 */
		memcpy(&by, bytes + 1, 4);
		return address + 5 + by;
	}
	if (bytes[0] == 0x0f && (bytes[1] & 0xf0) == 0x80) {		/* jcc rel32 */
		memcpy(&by, bytes + 2, 4);
		return address + 6 + by;
	}
	return 0;
}

/* The function that a call of this address calls; 0 if it is none's start. */
static unsigned long callee(unsigned long address)
{
	unsigned long size, offset;

	/* Most bytes lead nowhere near: ask for a symbol only where there is code. */
	if (!kd_k_core_kernel_text(address) && !within_module(address, THIS_MODULE))
		return 0;
	if (!kd_k_kallsyms_lookup_size_offset(address, &size, &offset))
		return 0;
	if (!offset)
		return address;
#ifdef CONFIG_FUNCTION_PADDING_BYTES
	/* Where the depth of calls is tracked they enter by the padding in front, which has a symbol of its own. */
	if (size == CONFIG_FUNCTION_PADDING_BYTES)
		return address - offset + size;
#endif
	return 0;
}

/* Adds what a function calls. */
static int follow(unsigned long function)
{
	unsigned long size, offset, at;
	int error = 0;

	if (!kd_k_kallsyms_lookup_size_offset(function, &size, &offset) || offset)
		return 0;
	for (at = function; at < function + size && !error; at++) {
		unsigned long to = callee(branch_at(at));

		if (to)
			error = add(to);
	}
	return error;
}

/* The notifiers that are asked before ours: of one priority, those that came first. Later ones come behind it. */
static int add_notifiers(const struct notifier_block *hook)
{
	const struct atomic_notifier_head *chain = (void *)kd_k_kallsyms_lookup_name("die_chain");
	const struct notifier_block *one;
	int error = 0;

	if (!chain) {
		pr_err("this kernel has no die_chain; kdetour cannot work safely without it\n");
		return -EOPNOTSUPP;
	}
	rcu_read_lock();
	for (one = rcu_dereference(chain->head); one && !error; one = rcu_dereference(one->next)) {
		error = add((unsigned long)one->notifier_call);
		if (one == hook)
			break;
	}
	rcu_read_unlock();
	return error;
}

int kd_hook_path_init(const struct notifier_block *hook)
{
	unsigned long trap = kd_k_kallsyms_lookup_name("exc_int3");
	unsigned int i;
	int error;

	if (!trap) {
		pr_err("this kernel has no exc_int3; kdetour cannot work safely without it\n");
		return -EOPNOTSUPP;
	}
	for (i = 0; i < ARRAY_SIZE(ends); i++)
		end_addresses[i] = kd_k_kallsyms_lookup_name(ends[i]);
	error = add(trap);
	if (!error)
		error = add_notifiers(hook);
	/* What is found on the way is followed in its turn. */
	for (i = 0; i < way_count && !error; i++)
		if (!is_end(way[i]))
			error = follow(way[i]);
	if (error == -E2BIG)
		pr_err("more than %u functions may run between a breakpoint and kdetour: not safe here\n", MOST);
	return error;
}
