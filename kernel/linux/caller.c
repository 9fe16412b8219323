// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * Who calls, and from where. What would sleep where that is forbidden, or wait for itself, is told so instead.
 *
 * The kernel does not count everything. A spinlock or preempt_disable() is seen if it has CONFIG_PREEMPT_COUNT, and
 * rcu_read_lock() if it has CONFIG_PREEMPT_RCU, as Debian's kernels have, whatever their preempt= says; interrupt handlers
 * and disabled interrupts are always seen. A lock that sleeps is never seen, nor that a detour waits for another task that
 * calls kdetour.
 */
#include <linux/irqflags.h>
#include <linux/kallsyms.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/stacktrace.h>
#include <linux/string.h>
#include "caller.h"
#include "kdetour.h"
#include "lookup.h"
#include "main.h"
#include "report.h"
#include "rust.h"

/* How many callers are looked at. */
#define CALLERS 64

DEFINE_MUTEX(kd_mutex);
/* Who holds it. */
static struct task_struct *holder;

void kd_lock(void)
{
	mutex_lock(&kd_mutex);
	WRITE_ONCE(holder, current);
}

/*
 * As long as anything is attached or drains this module stays, even if whoever attached it has found the functions by
 * symbol_get and does not depend on it.
 */
static void hold_module(void)
{
	static bool held;
	struct kd_usage usage;
	bool hold;

	kd_usage(&usage);
	hold = usage.attached || usage.draining;
	if (hold && !held)
		__module_get(THIS_MODULE);
	if (!hold && held)
		module_put(THIS_MODULE);
	held = hold;
}

void kd_unlock(void)
{
	hold_module();
	WRITE_ONCE(holder, NULL);
	mutex_unlock(&kd_mutex);
}

int kd_check_caller(struct kdetour_error *story)
{
	if (in_atomic() || irqs_disabled() || rcu_preempt_depth())
		kd_set_error(story, KDETOUR_ATOMIC, 0, 0,
			     "called where sleeping is forbidden: with a spinlock held, interrupts or preemption off, in a handler or under RCU");
	/* Only this task itself can have written its name there. */
	else if (READ_ONCE(holder) == current)
		kd_set_error(story, KDETOUR_INSIDE, 0, 0,
			     "called by a detour that kdetour itself has run into while it attaches or detaches");
	return story->code;
}

/* The function that a piece of one is of: the compiler moves what is hardly ever run into NAME.cold. 0 if it is none. */
static unsigned long whole_of(char *symbol)
{
	char *module = symbol, *dot, *name;
	unsigned long whole;

	/* NAME.cold [module] */
	strsep(&module, " ");
	dot = strrchr(symbol, '.');
	if (!dot || strcmp(dot, ".cold"))
		return 0;
	*dot = '\0';
	if (!module || module[0] != '[')
		return kd_k_kallsyms_lookup_name(symbol);
	name = kasprintf(GFP_KERNEL, "%.*s:%s", (int)strcspn(module + 1, "]"), module + 1, symbol);
	whole = name ? kd_k_kallsyms_lookup_name(name) : 0;
	kfree(name);
	return whole;
}

/* The function that an address is in. */
static unsigned long start_of(unsigned long address)
{
	char *symbol = kmalloc(KSYM_SYMBOL_LEN, GFP_KERNEL);
	unsigned long size, offset, whole = 0;

	if (symbol) {
		sprint_symbol_no_offset(symbol, address);
		whole = whole_of(symbol);
		kfree(symbol);
	}
	if (whole)
		return whole;
	return kd_k_kallsyms_lookup_size_offset(address, &size, &offset) ? address - offset : 0;
}

int kd_check_waiter(struct kdetour *const *detours, unsigned int count, struct kdetour_error *story)
{
	unsigned long callers[CALLERS];
	unsigned int i, j, found = stack_trace_save(callers, CALLERS, 0);

	for (i = 0; i < found; i++) {
		unsigned long start = start_of(callers[i]);

		for (j = 0; start && j < count; j++)
			if (detours[j] && (unsigned long)detours[j]->detour == start) {
				kd_set_error(story, KDETOUR_INSIDE, j, start,
					     "called from inside this very detour: waiting for its calls would be waiting for itself");
				return story->code;
			}
	}
	return 0;
}
