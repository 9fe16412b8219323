/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* A task brought to stand on one instruction: preempted there, or interrupted there. */
#ifndef KD_PARK_H
#define KD_PARK_H

#include <linux/irq_work.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <linux/types.h>

/* Who calls, and where it is to stand. */
struct park {
	long (*function)(long value);
	long value;
	u64 at;
	/* NULL: it is preempted there and stays away. Else an interrupt comes there, and this is its handler. */
	void (*on_top)(struct park *park);

	struct task_struct *task;
	struct perf_event * __percpu *breakpoint;
	struct irq_work work;
	u64 stopped_at;
	long result;
	bool arrived, finished;
};

/* Starts the task, and waits until it is there. 0, or an errno with everything undone. */
int park_start(struct park *park);
/* Whether it still is: runnable, on no processor, and the frame of its interrupt has that address. */
bool park_stands(struct park *park);
/* The same in the interrupt itself. */
bool park_is_interrupted(struct park *park);
/* Lets it go on. */
void park_release(struct park *park);
/* Waits until it has returned, and ends it. Whether it did. */
bool park_finish(struct park *park);

#endif
