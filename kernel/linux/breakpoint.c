// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * The breakpoint hook. exc_int3 asks the kernel's own text patching first, then kgdb and kprobes, then the die
 * notifiers. A hit of ours is sent on to where it was going; any other is left alone.
 */
#include <linux/kdebug.h>
#include <linux/kprobes.h>
#include <linux/limits.h>
#include <linux/notifier.h>
#include <linux/percpu.h>
#include <linux/ptrace.h>
#include "breakpoint.h"
#include "hook_path.h"
#include "reserved.h"
#include "rust.h"
#include "stats.h"

static notrace int on_die(struct notifier_block *block, unsigned long event, void *data)
{
	struct die_args *args = data;
	u64 resume;

	if (event != DIE_INT3 || !args->regs || user_mode(args->regs))
		return NOTIFY_DONE;
	resume = kd_breakpoint(args->regs->ip - 1) ?: kd_reserved_breakpoint(args->regs->ip - 1);
	if (!resume)
		return NOTIFY_DONE;
	this_cpu_inc(kd_breakpoint_hits);
	args->regs->ip = resume;
	return NOTIFY_STOP;
}
NOKPROBE_SYMBOL(on_die);

static struct notifier_block die_block = { .notifier_call = on_die, .priority = INT_MAX };

int kd_breakpoint_init(void)
{
	int error = register_die_notifier(&die_block);

	if (error)
		return error;
	error = kd_hook_path_init(&die_block);
	if (error)
		unregister_die_notifier(&die_block);
	return error;
}

void kd_breakpoint_exit(void)
{
	unregister_die_notifier(&die_block);
}
