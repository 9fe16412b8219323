// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * What one call costs when it is intercepted, in instructions: kdetour beside the kernel's own ways.
 *
 * Meant for QEMU with -icount shift=1: an instruction takes 2 ns of the guest's time, and the time stamp counter
 * counts nanoseconds, so ticks / 2 are instructions, and the same ones in every run. The target is kfree(NULL),
 * which has a tracepoint too.
 */
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/ftrace.h>
#include <linux/irqflags.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/tracepoint.h>
#include <asm/msr.h>
#include "bench.h"
#include "kdetour.h"

#define CALLS 100
#define RUNS 20
#define TICKS_PER_INSTRUCTION 2
/* The kernel optimises a kprobe some time after it was registered. */
#define OPTIMISED_AFTER_MS 1500

/* Ticks of CALLS calls: the least of RUNS, since an interrupt may hit some of them. */
static u64 measure(void)
{
	u64 start, ticks, least = ~0ull;
	unsigned long flags;
	int run, call;

	for (run = 0; run < RUNS; run++) {
		local_irq_save(flags);
		start = rdtsc();
		for (call = 0; call < CALLS; call++)
			kfree(NULL);
		ticks = rdtsc() - start;
		local_irq_restore(flags);
		least = min(least, ticks);
	}
	return least;
}

static u64 base;

static void report(struct seq_file *to, const char *name)
{
	u64 extra = (measure() - base) * 100 / (CALLS * TICKS_PER_INSTRUCTION);

	seq_printf(to, "bench %s %llu.%02llu instructions\n", name, extra / 100, extra % 100);
}

KDETOUR_VOID(kfree, (const void *object), (object))
{
	kfree_original(object);
}

/* A static call without the count: the least that a detour can cost. */
static void uncounted_function(const void *object);
static struct kdetour uncounted = {
	.symbol = "kfree", .detour = uncounted_function, .owner = THIS_MODULE,
	.call = &STATIC_CALL_KEY(kfree_call_), .call_trampoline = STATIC_CALL_TRAMP_ADDR(kfree_call_),
};
static notrace noinline void uncounted_function(const void *object)
{
	kfree_original(object);
}

/* The same by hand: through a pointer, and nobody is counted. */
static void (*bare_original)(const void *object);
static notrace void bare_function(const void *object)
{
	bare_original(object);
}

static struct kdetour bare = {
	.symbol = "kfree", .detour = bare_function, .original = (void **)&bare_original, .owner = THIS_MODULE,
};

static void with_detour(struct seq_file *to, struct kdetour *detour, const char *name)
{
	if (kdetour_attach(detour)) {
		seq_printf(to, "FAIL %s cannot be attached\n", name);
		return;
	}
	report(to, name);
	kdetour_detach(detour);
}

static void by_method(struct seq_file *to, int method, const char *name)
{
	kfree_detour.method = method;
	with_detour(to, &kfree_detour, name);
	kfree_detour.method = KDETOUR_JUMP;
}

static void on_trace(void *data, unsigned long site, const void *object)
{
}

static struct tracepoint *found;

static void match(struct tracepoint *point, void *name)
{
	if (!strcmp(point->name, name))
		found = point;
}

static void with_tracepoint(struct seq_file *to)
{
	for_each_kernel_tracepoint(match, "kfree");
	if (!found || tracepoint_probe_register(found, on_trace, NULL)) {
		seq_puts(to, "FAIL the tracepoint cannot be used\n");
		return;
	}
	report(to, "tracepoint");
	tracepoint_probe_unregister(found, on_trace, NULL);
	tracepoint_synchronize_unregister();
}

static void notrace on_ftrace(unsigned long site, unsigned long parent, struct ftrace_ops *ops,
			      struct ftrace_regs *registers)
{
}

static void with_ftrace(struct seq_file *to, unsigned long flags, const char *name)
{
	struct ftrace_ops *ops = kzalloc(sizeof(*ops), GFP_KERNEL);

	if (!ops)
		return;
	ops->func = on_ftrace;
	ops->flags = flags;
	if (ftrace_set_filter(ops, "kfree", 5, 0) || register_ftrace_function(ops)) {
		seq_printf(to, "FAIL %s cannot be used\n", name);
	} else {
		report(to, name);
		unregister_ftrace_function(ops);
	}
	ftrace_free_filter(ops);
	kfree(ops);
}

static int on_probe(struct kprobe *probe, struct pt_regs *registers)
{
	return 0;
}

/* Behind the landing pad and the ftrace site a kprobe is a breakpoint first, and a jump later. */
static void with_kprobe(struct seq_file *to, bool behind_fentry)
{
	struct kprobe probe = { .symbol_name = "kfree", .pre_handler = on_probe };
	static const u8 fentry[] = { 0x0f, 0x1f, 0x44, 0x00, 0x00 };
	const u8 *code = (const u8 *)kdetour_find("kfree");

	if (behind_fentry)
		probe.offset = memcmp(code, fentry, 5) ? 9 : 5;
	if (register_kprobe(&probe)) {
		seq_puts(to, "FAIL the kprobe cannot be registered\n");
		return;
	}
	report(to, behind_fentry ? "kprobe-breakpoint" : "kprobe-on-ftrace");
	if (behind_fentry) {
		msleep(OPTIMISED_AFTER_MS);
		report(to, "kprobe-optimised");
	}
	unregister_kprobe(&probe);
}

static int bench_show(struct seq_file *to, void *unused)
{
	base = measure();
	seq_printf(to, "bench call-of-the-target %llu instructions\n", base / CALLS / TICKS_PER_INSTRUCTION);
	with_detour(to, &kfree_detour, "kdetour");
	with_detour(to, &uncounted, "kdetour-uncounted");
	with_detour(to, &bare, "kdetour-by-pointer-uncounted");
	by_method(to, KDETOUR_INT3, "kdetour-int3");
	by_method(to, KDETOUR_DEBUG_REGISTER, "kdetour-debug-register");
	with_tracepoint(to);
	with_ftrace(to, 0, "ftrace");
	with_ftrace(to, FTRACE_OPS_FL_SAVE_REGS, "ftrace-with-registers");
	with_kprobe(to, true);
	with_kprobe(to, false);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(bench);
DEFINE_SHOW_ATTRIBUTE(bench_commits);

static struct dentry *file, *commits_file;

static int __init bench_init(void)
{
	file = debugfs_create_file("kdetour_bench", 0400, NULL, NULL, &bench_fops);
	commits_file = debugfs_create_file("kdetour_bench_commits", 0400, NULL, NULL, &bench_commits_fops);
	return 0;
}

static void __exit bench_exit(void)
{
	debugfs_remove(file);
	debugfs_remove(commits_file);
}

module_init(bench_init);
module_exit(bench_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("what an intercepted call costs");
