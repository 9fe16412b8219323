// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * deep: a softirq on each processor that needs need= KiB of stack, at every tick; that is a tasklet, which a timer schedules. It writes
 * to all of what it takes, and looks whether it is still there. The kernel gives it less than 16 KiB.
 *
 *	trace		write 1: a thread spins, and the tasklet takes a trace when it has interrupted that; read the trace. The innermost
 *			function comes first
 *	nmi		write 1: the same from an NMI that comes while the tasklet is at its deepest; read it from trace
 *	steps		write a function's address: the same from each of its instructions, one after the other; read how many the
 *			processor came by, in how many traces the thread was, and a trace without it
 *	cost		read: instructions of one run of softirqs that does nothing, for QEMU with -icount shift=1 (bench_main.c says more)
 *
 * It knows nothing of kdetour.
 */
#include <linux/bottom_half.h>
#include <linux/completion.h>
#include <linux/cpu.h>
#include <linux/hw_breakpoint.h>
#include <linux/interrupt.h>
#include <linux/irqflags.h>
#include <linux/kallsyms.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/perf_event.h>
#include <linux/sizes.h>
#include <linux/smp.h>
#include <linux/stacktrace.h>
#include <linux/string.h>
#include <linux/timer.h>
#include <asm/apic.h>
#include <asm/msr.h>
#include <asm/nmi.h>

#define PATIENCE (20 * HZ)
#define DEPTH 400

static unsigned int need = 24;
module_param(need, uint, 0644);
static unsigned long runs;
module_param(runs, ulong, 0444);
static unsigned long spoilt;
module_param(spoilt, ulong, 0444);

struct worker {
	struct timer_list timer;
	struct tasklet_struct tasklet;
};
static DEFINE_PER_CPU(struct worker, workers);
static bool going;

/* The thread that is to be interrupted, and the trace that was taken then. */
static struct task_struct *spinner;
static DECLARE_COMPLETION(traced);
static bool is_wanted, is_dump_wanted, is_nmi_wanted;
static unsigned long entries[DEPTH];
static unsigned int count;

noinline int deep_spin(void *unused);
noinline int deep_spin(void *unused)
{
	/* ksoftirqd must get its turn: until then interrupts leave softirqs to it. */
	while (!kthread_should_stop())
		cond_resched();
	return 0;
}

/* Whose NMI it is not is somebody else's. */
static int on_nmi(unsigned int type, struct pt_regs *regs)
{
	if (!READ_ONCE(is_nmi_wanted) || current != READ_ONCE(spinner))
		return NMI_DONE;
	count = stack_trace_save(entries, DEPTH, 0);
	WRITE_ONCE(is_nmi_wanted, false);
	return NMI_HANDLED;
}

/* Once the interrupted task is the thread, and not ksoftirqd, which has nobody behind it. */
static noinline void take_trace(void)
{
	if (!READ_ONCE(is_wanted) || current != READ_ONCE(spinner))
		return;
	WRITE_ONCE(is_wanted, false);
	if (READ_ONCE(is_nmi_wanted)) {
		apic->send_IPI(smp_processor_id(), NMI_VECTOR);
		while (READ_ONCE(is_nmi_wanted))
			cpu_relax();
	} else {
		count = stack_trace_save(entries, DEPTH, 0);
	}
	complete(&traced);
}

/* Takes stack in small steps, none of which could be a jump over a guard page. */
static noinline bool deep_dig(unsigned long limit)
{
	unsigned long frame[24];
	unsigned int i;
	bool kept = true;

	for (i = 0; i < ARRAY_SIZE(frame); i++)
		WRITE_ONCE(frame[i], limit ^ i);
	if ((unsigned long)frame > limit)
		kept = deep_dig(limit);
	else
		take_trace();
	for (i = 0; i < ARRAY_SIZE(frame); i++)
		kept &= READ_ONCE(frame[i]) == (limit ^ i);
	return kept;
}

static noinline void deep_tasklet(struct tasklet_struct *unused)
{
	unsigned long here = (unsigned long)__builtin_frame_address(0);

	/* A short one for the log, as people see it. */
	if (READ_ONCE(is_dump_wanted) && current == READ_ONCE(spinner)) {
		WRITE_ONCE(is_dump_wanted, false);
		dump_stack();
	}
	if (!deep_dig(here - READ_ONCE(need) * SZ_1K))
		WRITE_ONCE(spoilt, spoilt + 1);
	WRITE_ONCE(runs, runs + 1);
}

static void on_timer(struct timer_list *timer)
{
	struct worker *worker = this_cpu_ptr(&workers);

	tasklet_schedule(&worker->tasklet);
	if (!READ_ONCE(going)) {
		timer->expires = jiffies + 1;
		add_timer_on(timer, smp_processor_id());
	}
}

static int start_spinner(void)
{
	struct task_struct *task = kthread_create_on_cpu(deep_spin, NULL, 0, "deep_spin/%u");

	if (IS_ERR(task))
		return PTR_ERR(task);
	WRITE_ONCE(spinner, task);
	wake_up_process(task);
	return 0;
}

static void stop_spinner(void)
{
	kthread_stop(spinner);
	WRITE_ONCE(spinner, NULL);
}

static int take(bool by_nmi)
{
	int error = start_spinner();
	unsigned long left;

	if (error)
		return error;
	reinit_completion(&traced);
	WRITE_ONCE(is_nmi_wanted, by_nmi);
	WRITE_ONCE(is_dump_wanted, !by_nmi);
	WRITE_ONCE(is_wanted, true);
	left = wait_for_completion_timeout(&traced, PATIENCE);
	WRITE_ONCE(is_wanted, false);
	stop_spinner();
	return left ? 0 : -ETIMEDOUT;
}

static int trace_set(const char *value, const struct kernel_param *unused)
{
	return take(false);
}

static int nmi_set(const char *value, const struct kernel_param *unused)
{
	int error = register_nmi_handler(NMI_LOCAL, on_nmi, 0, "deep");

	if (error)
		return error;
	error = take(true);
	WRITE_ONCE(is_nmi_wanted, false);
	unregister_nmi_handler(NMI_LOCAL, "deep");
	return error;
}
static const struct kernel_param_ops nmi_ops = { .set = nmi_set };
module_param_cb(nmi, &nmi_ops, NULL, 0200);

/* Without the many calls of one function in a row. */
static int trace_get(char *to, const struct kernel_param *unused)
{
	unsigned int i;
	int at = 0;

	for (i = 0; i < count && at < PAGE_SIZE - 2 * KSYM_SYMBOL_LEN; i++)
		if (!i || entries[i] != entries[i - 1])
			at += sysfs_emit_at(to, at, "%ps\n", (void *)entries[i]);
	return at;
}

static const struct kernel_param_ops trace_ops = { .set = trace_set, .get = trace_get };
module_param_cb(trace, &trace_ops, NULL, 0600);

/* From where traces are taken next, and what became of that. */
static unsigned long step;
static unsigned int steps_seen, steps_right;
static char lost[512];

/* Whether the thread's function is in the trace; if not the first of such traces is kept. */
static void judge(const unsigned long *trace, unsigned int len)
{
	char name[KSYM_SYMBOL_LEN];
	unsigned int i;
	int at = 0;

	for (i = 0; i < len; i++) {
		snprintf(name, sizeof(name), "%ps", (void *)trace[i]);
		if (strstarts(name, "deep_spin")) {
			steps_right++;
			return;
		}
	}
	for (i = 0; i < len && !lost[0]; i++)
		at += scnprintf(lost + at, sizeof(lost) - at, " %pS", (void *)trace[i]);
}

/* The processor is at the instruction, and has not executed it yet. */
static void on_step(struct perf_event *event, struct perf_sample_data *data, struct pt_regs *regs)
{
	static unsigned long trace[64];

	if (current != READ_ONCE(spinner) || cmpxchg(&step, regs->ip, 0) != regs->ip)
		return;
	count = stack_trace_save(trace, ARRAY_SIZE(trace), 0);
	steps_seen++;
	judge(trace, count);
	complete(&traced);
}

/* An address inside an instruction is never come by. */
static int step_at(unsigned long address)
{
	struct perf_event_attr attr;
	struct perf_event * __percpu *events;

	hw_breakpoint_init(&attr);
	attr.bp_addr = address;
	attr.bp_len = sizeof(long);
	attr.bp_type = HW_BREAKPOINT_X;
	reinit_completion(&traced);
	WRITE_ONCE(step, address);
	events = register_wide_hw_breakpoint(&attr, on_step, NULL);
	if (IS_ERR((void __force *)events))
		return PTR_ERR((void __force *)events);
	wait_for_completion_timeout(&traced, HZ / 10);
	unregister_wide_hw_breakpoint(events);
	return 0;
}

static int steps_set(const char *value, const struct kernel_param *unused)
{
	char symbol[KSYM_SYMBOL_LEN];
	unsigned long address, len, i;
	int error = kstrtoul(value, 16, &address);

	if (error)
		return error;
	/* name+0x0/0x6b [module] */
	sprint_symbol(symbol, address);
	if (!strchr(symbol, '/') || sscanf(strchr(symbol, '/'), "/0x%lx", &len) != 1)
		return -EINVAL;
	error = start_spinner();
	if (error)
		return error;
	steps_seen = steps_right = 0;
	lost[0] = 0;
	for (i = 0; i < len && !error; i++)
		error = step_at(address + i);
	stop_spinner();
	return error;
}

static int steps_get(char *to, const struct kernel_param *unused)
{
	return sysfs_emit(to, "%u %u%s\n", steps_seen, steps_right, lost);
}

static const struct kernel_param_ops steps_ops = { .set = steps_set, .get = steps_get };
module_param_cb(steps, &steps_ops, NULL, 0600);

/* A tasklet that is scheduled on this processor, and nobody's: softirqs have something to do, which is little. */
static void nothing(struct tasklet_struct *unused)
{
}
static DECLARE_TASKLET(idle_tasklet, nothing);

#define RUNS 200
static int cost_get(char *to, const struct kernel_param *unused)
{
	u64 start, ticks, least = ~0ull;
	int run;

	for (run = 0; run < RUNS; run++) {
		/* The same way each time: through do_softirq, with interrupts on, softirqs of their own accord kept away until then. */
		local_bh_disable();
		tasklet_schedule(&idle_tasklet);
		start = rdtsc();
		local_bh_enable();
		ticks = rdtsc() - start;
		least = min(least, ticks);
	}
	tasklet_kill(&idle_tasklet);
	return sysfs_emit(to, "%llu\n", least / 2);
}

static const struct kernel_param_ops cost_ops = { .get = cost_get };
module_param_cb(cost, &cost_ops, NULL, 0400);

static int __init deep_init(void)
{
	int cpu;

	cpus_read_lock();
	for_each_online_cpu(cpu) {
		struct worker *worker = per_cpu_ptr(&workers, cpu);

		tasklet_setup(&worker->tasklet, deep_tasklet);
		timer_setup(&worker->timer, on_timer, TIMER_PINNED);
		worker->timer.expires = jiffies + 1;
		if (need)
			add_timer_on(&worker->timer, cpu);
	}
	cpus_read_unlock();
	return 0;
}

static void __exit deep_exit(void)
{
	int cpu;

	WRITE_ONCE(going, true);
	for_each_possible_cpu(cpu) {
		struct worker *worker = per_cpu_ptr(&workers, cpu);

		if (!worker->tasklet.callback)
			continue;
		/* One that runs may have begun before `going`, and adds itself once more. */
		while (del_timer_sync(&worker->timer))
			;
		tasklet_kill(&worker->tasklet);
	}
}

module_init(deep_init);
module_exit(deep_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("softirqs that need much stack");
