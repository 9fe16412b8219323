// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * Debug registers: every processor traps in front of an instruction, and no byte of the text changes.
 *
 * The registers are perf's, which shares them out: debuggers, kgdb and perf itself keep theirs, and whoever asks when none is left is
 * refused. One event for each processor that is online; those that come get theirs before they run any program (the hotplug
 * state), or do not come.
 *
 * A hit arrives in the debug exception's handler, with all debug registers of the processor off. So nothing that runs there traps
 * again, nor does an NMI's handler: calls of the target from there are missed. The handler says where to go on, as on_die in
 * breakpoint.c does; the exception then returns there. The kernel sets the resume flag for that one instruction.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/err.h>
#include <linux/hw_breakpoint.h>
#include <linux/kprobes.h>
#include <linux/percpu.h>
#include <linux/perf_event.h>
#include <linux/printk.h>
#include <linux/ptrace.h>
#include "host.h"
#include "registers.h"
#include "rust.h"
#include "stats.h"

/* Changed with kd_mutex and the lock of CPU hotplug held, either of which keeps it as it is. */
static struct kd_register {
	u64 address;				/* 0 if it is free */
	struct perf_event *__percpu *events;	/* NULL on processors that are offline */
} registers[HBP_NUM];

static enum cpuhp_state state;

static notrace void on_hit(struct perf_event *event, struct perf_sample_data *data, struct pt_regs *regs)
{
	u64 resume;

	if (user_mode(regs))
		return;
	resume = kd_breakpoint(regs->ip);
	/* Its detour has gone since: this call goes on where it is. */
	if (!resume)
		return;
	this_cpu_inc(kd_register_hits);
	regs->ip = resume;
}
NOKPROBE_SYMBOL(on_hit);

/* A processor's event; it does not count yet. */
static struct perf_event *event_of(u64 address, unsigned int cpu)
{
	struct perf_event_attr attr;

	hw_breakpoint_init(&attr);
	attr.bp_type = HW_BREAKPOINT_X;
	attr.bp_addr = address;
	attr.bp_len = sizeof(long);	/* however long the instruction is */
	attr.disabled = 1;
	return perf_event_create_kernel_counter(&attr, cpu, NULL, on_hit, NULL);
}

static void release(struct kd_register *one, unsigned int cpu)
{
	struct perf_event **event = per_cpu_ptr(one->events, cpu);

	if (*event)
		perf_event_release_kernel(*event);
	*event = NULL;
}

static int take(struct kd_register *one, unsigned int cpu)
{
	struct perf_event *event = event_of(one->address, cpu);

	if (IS_ERR(event))
		return PTR_ERR(event);
	*per_cpu_ptr(one->events, cpu) = event;
	return 0;
}

static void give_back(struct kd_register *one)
{
	unsigned int cpu;

	for_each_possible_cpu(cpu)
		release(one, cpu);
	free_percpu(one->events);
	*one = (struct kd_register){};
}

/* Nobody traps before every processor has its register. */
static int set_on_all(struct kd_register *one)
{
	unsigned int cpu;
	int error = 0;

	for_each_online_cpu(cpu) {
		error = take(one, cpu);
		if (error)
			break;
	}
	if (error) {
		give_back(one);
		return error;
	}
	for_each_online_cpu(cpu)
		perf_event_enable(*per_cpu_ptr(one->events, cpu));
	return 0;
}

int kd_host_set_register(u64 address)
{
	unsigned int i;
	int error = -ENOSPC;

	cpus_read_lock();
	for (i = 0; i < HBP_NUM; i++) {
		struct kd_register *one = &registers[i];

		if (one->address)
			continue;
		one->events = alloc_percpu(struct perf_event *);
		error = -ENOMEM;
		if (one->events) {
			one->address = address;
			error = set_on_all(one);
		}
		break;
	}
	cpus_read_unlock();
	return error;
}

void kd_host_clear_register(u64 address)
{
	unsigned int i;

	cpus_read_lock();
	for (i = 0; i < HBP_NUM; i++)
		if (registers[i].address == address)
			give_back(&registers[i]);
	cpus_read_unlock();
}

/* On the processor that goes, and where one that comes fails. */
static int on_offline(unsigned int cpu)
{
	unsigned int i;

	for (i = 0; i < HBP_NUM; i++)
		if (registers[i].address)
			release(&registers[i], cpu);
	return 0;
}

/* On the processor that comes, before it runs what is not its own. */
static int on_online(unsigned int cpu)
{
	unsigned int i;
	int error;

	for (i = 0; i < HBP_NUM; i++) {
		if (!registers[i].address)
			continue;
		error = take(&registers[i], cpu);
		if (error) {
			pr_info("processor %u cannot come: no debug register is free on it for %ps\n", cpu,
				(void *)registers[i].address);
			on_offline(cpu);
			return error;
		}
		perf_event_enable(*per_cpu_ptr(registers[i].events, cpu));
	}
	return 0;
}

int kd_registers_init(void)
{
	int found = cpuhp_setup_state_nocalls(CPUHP_AP_ONLINE_DYN, "kdetour:online", on_online, on_offline);

	if (found < 0)
		return found;
	state = found;
	return 0;
}

void kd_registers_exit(void)
{
	cpuhp_remove_state_nocalls(state);
}
