// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * stackgrow: softirqs run on a stack of a size of your own, one for each processor.
 *
 *	insmod kdetour.ko; insmod stackgrow.ko kib=64
 *	cat /sys/kernel/debug/stackgrow
 *	rmmod stackgrow
 *
 * The kernel gives a softirq what is left of 16 KiB: of the interrupt stack, of a task's stack where user mode was interrupted, or of
 * ksoftirqd's. Drivers that are stacked on each other need more now and then, and then the machine goes down. DPC Stack Grower was the
 * answer to the same on Windows.
 *
 *	handle_softirqs		every way to run softirqs comes by here, interrupts off. Its detour goes over to the processor's
 *				stack, calls the original there, and comes back.
 *	get_stack_info		by it the unwinder knows a stack when it comes to one. Its detour knows ours, so a trace goes on
 *				through the softirq to the task that was interrupted.
 *
 *	the stack that handle_softirqs was called on		ours
 *	  ...							  top    the other stack's pointer   <- unwinder, pop %rsp
 *	  handle_softirqs_entered_	<--------------------	  top-8  return address
 *									 handle_softirqs, and whatever it calls
 *								  base   never reached, or else a guard page is hit
 *
 * Who is on our stack is inside the detour, and so is counted: a detach waits for it, and then the stacks can go.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bits.h>
#include <linux/cc_platform.h>
#include <linux/debugfs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/sizes.h>
#include <linux/topology.h>
#include <linux/vmalloc.h>
#include <asm/asm.h>
#include <asm/stacktrace.h>
#include "kdetour.h"

#ifndef CONFIG_X86_64
#error "written for x86-64: the switch is in its machine code"
#endif

/* Less would be no growth; more than the last is taken for a mistake, since every processor gets that much. */
#define LEAST_KIB 32
#define MOST_KIB 1024
/* What nobody has written to yet. A softirq that writes just this counts as one that did not. */
#define UNTOUCHED 0x57ac6607b07706edul

static unsigned int kib = 64;
module_param(kib, uint, 0444);
MODULE_PARM_DESC(kib, "size of each processor's stack in KiB, a multiple of 4 from 32 to 1024");

struct grown {
	unsigned long *top;	/* its highest word; NULL while it is in use */
	unsigned long *base;	/* its lowest */
	unsigned long switches;
};

static DEFINE_PER_CPU(struct grown, grown);

static unsigned long *end_of(unsigned long *base)
{
	return base + kib * (SZ_1K / sizeof(long));
}

/*
 * From first to last instruction interrupts are off, so it stays on one processor; in between handle_softirqs turns them on and off
 * again. An interrupt that comes then finds the pointer NULL, should it ever come here: it stays on the stack that it has.
 */
KDETOUR_VOID(handle_softirqs, (bool ksirqd), (ksirqd))
{
	unsigned long *top = this_cpu_read(grown.top);
	unsigned long argument = ksirqd;

	if (unlikely(!top)) {
		handle_softirqs_original(ksirqd);
		return;
	}
	this_cpu_write(grown.top, NULL);
	this_cpu_inc(grown.switches);
	/*
	 * The first two and the last are how objtool knows a change of stacks: from the second on its tables say that the caller's stack
	 * pointer is in the word that the stack pointer points to. The call is that of handle_softirqs_original.
	 */
	asm volatile("mov %%rsp, (%[top])\n\t"
		     "mov %[top], %%rsp\n\t"
		     "call " KDETOUR_ORIGINAL_SYMBOL(handle_softirqs) "\n\t"
		     "pop %%rsp"
		     : "+D" (argument), ASM_CALL_CONSTRAINT
		     : [top] "r" (top)
		     : "rax", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "cc", "memory");
	this_cpu_write(grown.top, top);
}

/*
 * Called by whoever takes a trace, NMIs too. Like the original it speaks of other processors' stacks to nobody, and of each kind
 * of stack once for each trace: whoever comes to one twice goes round in circles. For softirqs with a stack of their own there is a kind
 * already, which x86-64 does not use.
 */
KDETOUR(get_stack_info, int,
	(unsigned long *stack, struct task_struct *task, struct stack_info *info, unsigned long *visit_mask),
	(stack, task, info, visit_mask))
{
	unsigned long *base = this_cpu_read(grown.base);

	if (stack < base || stack >= end_of(base) || (task && task != current) ||
	    (visit_mask && *visit_mask & BIT(STACK_TYPE_SOFTIRQ)))
		return get_stack_info_original(stack, task, info, visit_mask);
	info->type = STACK_TYPE_SOFTIRQ;
	info->begin = base;
	info->end = end_of(base);
	info->next_sp = (unsigned long *)info->end[-1];
	if (visit_mask)
		*visit_mask |= BIT(STACK_TYPE_SOFTIRQ);
	return 0;
}

static struct kdetour *const detours[] = { &get_stack_info_detour, &handle_softirqs_detour };

/* The most that was ever in use, in bytes: down to the lowest word that was written. */
static unsigned long deepest(unsigned long *base)
{
	unsigned long *word = base;

	while (word < end_of(base) && READ_ONCE(*word) == UNTOUCHED)
		word++;
	return (end_of(base) - word) * sizeof(long);
}

static int stackgrow_show(struct seq_file *to, void *unused)
{
	int cpu;

	seq_puts(to, "cpu     switches  deepest     size\n");
	for_each_possible_cpu(cpu) {
		struct grown *one = per_cpu_ptr(&grown, cpu);

		seq_printf(to, "%3d %12lu %8lu %8lu\n", cpu, READ_ONCE(one->switches), deepest(one->base),
			   kib * (unsigned long)SZ_1K);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(stackgrow);

static void free_stacks(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		vfree(per_cpu(grown.base, cpu));
}

/*
 * For processors that may come later, too: they run softirqs as soon as they do. Behind each such area there is a page that nobody may
 * touch, so there is one below each; and on x86-64 all page tables of vmalloc have the same lower levels, so no fault brings them up to
 * date on this stack, where it could not be handled.
 */
static int make_stacks(void)
{
	int cpu;

	/* Who asks for nearly all memory is not refused: the OOM killer makes room. */
	if (num_possible_cpus() * (kib * SZ_1K >> PAGE_SHIFT) > totalram_pages() / 8)
		return -ENOMEM;
	for_each_possible_cpu(cpu) {
		unsigned long *base = vmalloc_node(kib * (unsigned long)SZ_1K, cpu_to_node(cpu));

		if (!base) {
			free_stacks();
			return -ENOMEM;
		}
		memset64((u64 *)base, UNTOUCHED, end_of(base) - base);
		per_cpu(grown.base, cpu) = base;
		per_cpu(grown.top, cpu) = end_of(base) - 1;
	}
	return 0;
}

static struct dentry *file;

static int __init stackgrow_init(void)
{
	int error;

	if (IS_ENABLED(CONFIG_PREEMPT_RT)) {
		pr_err("a kernel with PREEMPT_RT preempts softirqs, and two of them would share a stack: take one without\n");
		return -EOPNOTSUPP;
	}
	/* The handler of #VC asks get_stack_info_noinstr, where nobody can tell of our stacks, and panics on one that it does not know. */
	if (cc_platform_has(CC_ATTR_GUEST_STATE_ENCRYPT)) {
		pr_err("this machine's state is encrypted (SEV-ES), which goes together with the kernel's own stacks only\n");
		return -EOPNOTSUPP;
	}
	if (kib < LEAST_KIB || kib > MOST_KIB || kib % (PAGE_SIZE / SZ_1K)) {
		pr_err("kib=%u is no size for a stack: load it with a multiple of %lu from %d to %d, as in kib=64\n", kib,
		       PAGE_SIZE / SZ_1K, LEAST_KIB, MOST_KIB);
		return -EINVAL;
	}
	error = make_stacks();
	if (error) {
		pr_err("%u stacks of %u KiB are too much for this machine's memory: load it with a smaller kib=\n", num_possible_cpus(), kib);
		return error;
	}
	/* What fails is in the log. */
	error = kdetour_attach_all(detours, ARRAY_SIZE(detours), KDETOUR_LIVE, NULL);
	if (error) {
		free_stacks();
		return error;
	}
	file = debugfs_create_file("stackgrow", 0400, NULL, NULL, &stackgrow_fops);
	pr_info("softirqs have %u KiB on each processor\n", kib);
	return 0;
}

static void __exit stackgrow_exit(void)
{
	debugfs_remove(file);
	/* Nobody is on the stacks any more when the first returns: until then traces need the second. */
	kdetour_detach(&handle_softirqs_detour);
	kdetour_detach(&get_stack_info_detour);
	free_stacks();
}

module_init(stackgrow_init);
module_exit(stackgrow_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("softirqs on a larger stack");
