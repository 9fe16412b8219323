// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * How a task is brought to stand on one instruction (park.h).
 *
 *	hardware breakpoint	the task comes to the instruction; its handler asks for an interrupt of this processor
 *	interrupt		arrives as soon as the handler has returned, which is before the instruction
 *	  the next tick		finds a deadline task that has yielded, as far as it sees, and takes it from the processor
 *				for the rest of its period, which is a minute
 *
 * A hardware breakpoint alone does not do: it is left as an NMI is, without a look at who should run. And a task that is
 * kept away by one that spins would keep RCU away too.
 */
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/hw_breakpoint.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/sched/task.h>
#include <linux/sched/task_stack.h>
#include <linux/string.h>
#include <uapi/linux/sched/types.h>
#include "park.h"

#define WAIT_MS 10000
#define RUNTIME_NS 500000000ull
/* As far as sched_deadline_period_max_us allows, which the script raises. */
#define PERIOD_NS 60000000000ull
/* Where an interrupt's handler keeps the processor to itself. */
#define PROCESSOR 1
#define TICKS 2
/* How often a task is sent. */
#define TRIES 5
/* More than an interrupt leaves on a stack. */
#define SCRUBBED 1024

/* The one that is under way. */
static struct park *parking;

static int deadline(struct task_struct *task)
{
	struct sched_attr attributes = {
		.size = sizeof(attributes), .sched_policy = SCHED_DEADLINE,
		.sched_runtime = RUNTIME_NS, .sched_deadline = PERIOD_NS, .sched_period = PERIOD_NS,
	};

	return sched_setattr_nocheck(task, &attributes);
}

/* In the trap of the breakpoint: no locks, nobody woken. */
static void on_breakpoint(struct perf_event *event, struct perf_sample_data *data, struct pt_regs *regs)
{
	struct park *park = READ_ONCE(parking);

	if (!park || current != park->task || park->stopped_at)
		return;
	park->stopped_at = regs->ip;
	irq_work_queue(&park->work);
}

static void on_interrupt(struct irq_work *work)
{
	struct park *park = container_of(work, struct park, work);

	if (park->on_top) {
		park->on_top(park);
		return;
	}
	/*
	 * As sched_yield does it. The scheduler acts upon it at the next tick, which is let come due here: it is taken as
	 * soon as this interrupt is over, still before the instruction.
	 */
	current->dl.dl_yielded = 1;
	mdelay(TICKS * MSEC_PER_SEC / HZ);
}

/* A rendezvous takes every number on a stack that could be the task's place for one: here, the interrupt's frame. */
static noinline void scrub_stack(void)
{
	u8 bytes[SCRUBBED];

	memset(bytes, 0, sizeof(bytes));
	barrier_data(bytes);
}

static int thread(void *argument)
{
	struct park *park = argument;

	if (!park->on_top && deadline(current))
		park->stopped_at = ~0ull;
	else
		WRITE_ONCE(park->result, park->function(park->value));
	scrub_stack();
	smp_store_release(&park->finished, true);
	while (!kthread_should_stop())
		schedule_timeout_interruptible(1);
	return 0;
}

/* An interrupt's frame on the stack: the instruction pointer, and then the kernel's code segment. */
static bool has_frame(struct task_struct *task, unsigned long *from, u64 at)
{
	unsigned long *end = task_stack_page(task) + THREAD_SIZE, *word;

	for (word = from; word + 1 < end; word++)
		if (READ_ONCE_NOCHECK(word[0]) == at && READ_ONCE_NOCHECK(word[1]) == __KERNEL_CS)
			return true;
	return false;
}

bool park_stands(struct park *park)
{
	struct task_struct *task = park->task;

	return park->stopped_at == park->at && !READ_ONCE(park->finished) && READ_ONCE(task->on_rq) == 1 &&
	       !READ_ONCE(task->on_cpu) && task->dl.dl_throttled &&
	       has_frame(task, (unsigned long *)task->thread.sp, park->at);
}

bool park_is_interrupted(struct park *park)
{
	return current == park->task && park->stopped_at == park->at &&
	       has_frame(current, task_stack_page(current), park->at);
}

static bool is_there(struct park *park)
{
	return park->on_top ? smp_load_acquire(&park->arrived) : park_stands(park);
}

static int start_once(struct park *park)
{
	unsigned long end = jiffies + msecs_to_jiffies(WAIT_MS);
	struct perf_event_attr attributes;

	park->stopped_at = 0;
	park->arrived = park->finished = false;
	park->work = IRQ_WORK_INIT_HARD(on_interrupt);
	park->task = kthread_create(thread, park, "kdetour_parked");
	if (IS_ERR(park->task))
		return PTR_ERR(park->task);
	get_task_struct(park->task);
	/*
	 * Not to a processor that a script takes away: the scheduler keeps a deadline task's bandwidth for its whole period,
	 * and some kernels divide by zero when the processor has gone by then.
	 */
	kthread_bind(park->task, park->on_top ? PROCESSOR : 0);

	hw_breakpoint_init(&attributes);
	attributes.bp_addr = park->at;
	attributes.bp_len = sizeof(long);
	attributes.bp_type = HW_BREAKPOINT_X;
	WRITE_ONCE(parking, park);
	park->breakpoint = register_wide_hw_breakpoint(&attributes, on_breakpoint, NULL);
	if (IS_ERR((void __force *)park->breakpoint)) {
		int error = PTR_ERR((void __force *)park->breakpoint);

		kthread_stop(park->task);
		put_task_struct(park->task);
		return error;
	}
	wake_up_process(park->task);
	while (!is_there(park) && !READ_ONCE(park->finished) && time_before(jiffies, end))
		msleep(1);
	/* An interrupt's handler may still be at work: the breakpoint is in nobody's way then, and goes at the end. */
	if (!park->on_top) {
		unregister_wide_hw_breakpoint(park->breakpoint);
		park->breakpoint = NULL;
	}
	if (is_there(park))
		return 0;
	park_release(park);
	park_finish(park);
	return -ETIMEDOUT;
}

/* On an emulator whose host is busy the tick may come late: the task has gone on by then, and another one is sent. */
int park_start(struct park *park)
{
	int tries, result = -ETIMEDOUT;

	for (tries = 0; tries < TRIES && result == -ETIMEDOUT; tries++)
		result = start_once(park);
	return result;
}

void park_release(struct park *park)
{
	struct sched_attr attributes = { .size = sizeof(attributes), .sched_policy = SCHED_NORMAL };

	sched_setattr_nocheck(park->task, &attributes);
}

bool park_finish(struct park *park)
{
	unsigned long end = jiffies + msecs_to_jiffies(WAIT_MS);
	bool finished;

	while (!smp_load_acquire(&park->finished) && time_before(jiffies, end))
		msleep(1);
	finished = park->finished;
	if (park->breakpoint)
		unregister_wide_hw_breakpoint(park->breakpoint);
	park->breakpoint = NULL;
	irq_work_sync(&park->work);
	kthread_stop(park->task);
	put_task_struct(park->task);
	WRITE_ONCE(parking, NULL);
	return finished;
}
