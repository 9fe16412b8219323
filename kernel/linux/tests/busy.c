// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * busy: what examples/popup.c has to get along with.
 *
 *	off	write milliseconds: for so long the last processor has its interrupts off
 *	spin	write 1: a thread of the first processor does nothing but call busy_work; write 0: it ends
 *
 * It knows nothing of kdetour.
 */
#include <linux/cpumask.h>
#include <linux/err.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/smp.h>

/* Not mdelay: where the host is busy, an emulated processor's loops have been counted wrong. */
static void stay(void *milliseconds)
{
	u64 until = ktime_get_mono_fast_ns() + (unsigned long)milliseconds * NSEC_PER_MSEC;

	while (ktime_get_mono_fast_ns() < until)
		cpu_relax();
}

static int off_set(const char *value, const struct kernel_param *unused)
{
	static call_single_data_t call;
	unsigned long milliseconds;
	int error = kstrtoul(value, 0, &milliseconds);

	if (error)
		return error;
	INIT_CSD(&call, stay, (void *)milliseconds);
	preempt_disable();
	error = smp_call_function_single_async(cpumask_last(cpu_online_mask), &call);
	preempt_enable();
	return error;
}
static const struct kernel_param_ops off_ops = { .set = off_set };
module_param_cb(off, &off_ops, NULL, 0200);

/* Long enough that an interrupt finds it, and not its caller. */
noinline void busy_work(void);
noinline void busy_work(void)
{
	unsigned int i;

	for (i = 0; i < 100000; i++)
		barrier();
}

static int busy_loop(void *unused)
{
	while (!kthread_should_stop()) {
		busy_work();
		/* Whoever attaches waits for this. */
		cond_resched_tasks_rcu_qs();
	}
	return 0;
}

static struct task_struct *spinner;

static void stop(void)
{
	if (spinner)
		kthread_stop(spinner);
	spinner = NULL;
}

static int spin_set(const char *value, const struct kernel_param *unused)
{
	struct task_struct *task;
	bool on;
	int error = kstrtobool(value, &on);

	if (error)
		return error;
	stop();
	if (!on)
		return 0;
	task = kthread_create_on_cpu(busy_loop, NULL, 0, "busy/%u");
	if (IS_ERR(task))
		return PTR_ERR(task);
	spinner = task;
	wake_up_process(task);
	return 0;
}
static const struct kernel_param_ops spin_ops = { .set = spin_set };
module_param_cb(spin, &spin_ops, NULL, 0200);

static void __exit busy_exit(void)
{
	stop();
}

static int __init busy_init(void)
{
	return 0;
}

module_init(busy_init);
module_exit(busy_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("a processor that is busy");
