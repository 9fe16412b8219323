// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * static_trampoline: the call style of Kernel Detours. Adds a line to /proc/version; planned first, and written by this module itself
 * while all processors are parked.
 *	insmod kdetour.ko; insmod static_trampoline.ko; cat /proc/version; rmmod static_trampoline
 */
#include <linux/seq_file.h>
#include <linux/stop_machine.h>
#include <asm/sync_core.h>
#include "kernel_detours.h"

DETOUR_TRAMPOLINE_NAMED(Real_version_proc_show, int, (struct seq_file *file, void *value), "version_proc_show");

static int My_version_proc_show(struct seq_file *file, void *value)
{
	int result = Real_version_proc_show(file, value);

	seq_puts(file, "[through a static trampoline]\n");
	return result;
}

static DELAY_TARGET_JUMP_INSERTION delayed;
static atomic_t arrived;
static int written = 1;

/* On every processor, interrupts off. Whoever comes first writes, once all are here. */
static int commit(void *unused)
{
	if (atomic_inc_return(&arrived) == 1) {
		while (atomic_read(&arrived) < num_online_cpus())
			cpu_relax();
		smp_store_release(&written, kdetour_patch_write(&delayed, 0, NULL));
	}
	while (smp_load_acquire(&written) > 0)
		cpu_relax();
	sync_core();
	return written;
}

static int __init static_trampoline_init(void)
{
	int error;

	if (!DetourFunctionWithTrampoline((PBYTE)Real_version_proc_show, (PBYTE)My_version_proc_show, &delayed))
		return -EINVAL;
	error = stop_machine(commit, NULL, cpu_online_mask);
	if (error)
		DetourRemove((PBYTE)Real_version_proc_show, (PBYTE)My_version_proc_show);
	return error;
}

static void __exit static_trampoline_exit(void)
{
	DetourRemove((PBYTE)Real_version_proc_show, (PBYTE)My_version_proc_show);
}

module_init(static_trampoline_init);
module_exit(static_trampoline_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("a static trampoline, and a delayed patch");
