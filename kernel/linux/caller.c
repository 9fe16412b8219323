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
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/stacktrace.h>
#include "caller.h"
#include "kdetour.h"
#include "lookup.h"
#include "main.h"

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

void kd_unlock(void)
{
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

static unsigned long start_of(unsigned long address)
{
	unsigned long size, offset;

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
