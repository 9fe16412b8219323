// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * The rendezvous: stop_machine, with a look at every task first.
 *
 * While all processors are parked in their stopper threads every other task is switched out. If it was preempted
 * its instruction pointer is in an interrupt frame on its stack; if it sleeps in a call its return addresses are
 * there. So a task that will come back to an interior boundary has that very number in its stack, above its stack
 * pointer. A number that only looks like one makes the commit give up, which is harmless.
 */
#include <linux/atomic.h>
#include <linux/cpu.h>
#include <linux/cpumask.h>
#include <linux/irqflags.h>
#include <linux/mutex.h>
#include <linux/sched/signal.h>
#include <linux/sched/task_stack.h>
#include <linux/stop_machine.h>
#include <asm/sync_core.h>
#include "host.h"
#include "lookup.h"
#include "rust.h"
#include "stats.h"

struct rendezvous {
	const u64 *boundaries;
	size_t count;
	const struct task_struct *caller;
	void *work;
	u64 place;
	int answer;
	atomic_t arrived;
	bool done;
};

static bool is_boundary(const struct rendezvous *all, u64 word)
{
	size_t low = 0, high = all->count;

	if (word < all->boundaries[0] || word > all->boundaries[all->count - 1])
		return false;
	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (all->boundaries[middle] == word)
			return true;
		if (all->boundaries[middle] < word)
			low = middle + 1;
		else
			high = middle;
	}
	return false;
}

/* The boundary on which a task stands or to which it returns, 0 if there is none. */
static u64 find_task(const struct rendezvous *all)
{
	struct task_struct *group, *task;

	for_each_process_thread(group, task) {
		unsigned long *word, *end;

		/*
		 * The stopper threads themselves were nowhere near when they were woken. The task that asks waits in
		 * stop_machine, called from no window since none has a call inside; but in the gaps of its stack there
		 * may be what planning left there: the very boundaries.
		 */
		if (READ_ONCE(task->on_cpu) || task == all->caller || !task_stack_page(task))
			continue;
		word = (unsigned long *)task->thread.sp;
		end = task_stack_page(task) + THREAD_SIZE;
		if ((void *)word < task_stack_page(task) || word > end)
			continue;
		for (; word < end; word++)
			if (is_boundary(all, READ_ONCE_NOCHECK(*word)))
				return READ_ONCE_NOCHECK(*word);
	}
	return 0;
}

static int lead(struct rendezvous *all)
{
	/* Whoever holds it may be in the middle of its own steps, and waits like everybody else. */
	if (mutex_is_locked(kd_text_mutex) || mutex_is_locked(kd_kprobe_mutex))
		return KD_TEXT_BUSY;
	if (all->count)
		all->place = find_task(all);
	if (all->place)
		return KD_THREAD_IN_WINDOW;
	return kd_rendezvous_work(all->work) ? KD_WORK_FAILED : KD_OK;
}

/* On every processor, interrupts off. */
static int meet(void *argument)
{
	struct rendezvous *all = argument;
	bool leads = atomic_inc_return(&all->arrived) == 1;
	u64 start = 0;

	if (leads) {
		/*
		 * Interrupts are off everywhere, but one of the others may still be on its way here, through functions that may be
		 * targets, and be held up in there for long if its processor is a virtual one.
		 */
		while (atomic_read(&all->arrived) < num_online_cpus())
			cpu_relax();
		start = kd_now();
		all->answer = lead(all);
		smp_store_release(&all->done, true);
	} else {
		while (!smp_load_acquire(&all->done))
			cpu_relax();
	}
	sync_core();
	/* The clock itself may be what was written: only now has this processor fetched it anew. */
	if (leads)
		kd_took(KD_PARKED_TIME, kd_now() - start);
	return 0;
}

/*
 * A task that is exiting leaves the list of tasks a while before it stops running, and where tasks are preempted anywhere it
 * could be inside a window then.
 */
static bool could_miss_a_task(size_t count)
{
	return count && preempt_model_preemptible();
}

int kd_host_rendezvous(const u64 *boundaries, size_t count, void *work, u64 *place)
{
	struct rendezvous all = {
		.boundaries = boundaries, .count = count, .caller = current, .work = work, .arrived = ATOMIC_INIT(0),
	};
	u64 start;
	int error;

	if (could_miss_a_task(count))
		return KD_PREEMPTIBLE;
	start = kd_now();
	error = stop_machine(meet, &all, cpu_online_mask);
	kd_count(KD_RENDEZVOUS, 1);
	kd_took(KD_COMMIT_TIME, kd_now() - start);

	*place = all.place;
	return error ? error : all.answer;
}

int kd_host_solo(const u64 *boundaries, size_t count, void *work, u64 *place)
{
	struct rendezvous all = {
		.boundaries = boundaries, .count = count, .caller = current, .work = work, .arrived = ATOMIC_INIT(0),
		.answer = KD_OTHER_PROCESSORS,
	};
	unsigned long flags;
	u64 start;

	if (could_miss_a_task(count))
		return KD_PREEMPTIBLE;
	start = kd_now();
	/* None comes meanwhile. */
	cpus_read_lock();
	if (num_online_cpus() == 1) {
		local_irq_save(flags);
		meet(&all);
		local_irq_restore(flags);
		kd_took(KD_COMMIT_TIME, kd_now() - start);
	}
	cpus_read_unlock();

	*place = all.place;
	return all.answer;
}
