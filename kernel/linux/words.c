// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * kdetour_words.ko: instructions in words, for whoever has nothing but their bytes. kdetour.ko neither needs it nor knows it.
 *
 * What decodes and formats is the Rust half. All memory that it will ever have is allocated when the module is loaded. A text is
 * put together in a line of a processor's own. Who interrupts a call on its processor ends before that goes on: so lines are
 * taken as from a stack, without a lock.
 */
#include <linux/cpumask.h>
#include <linux/export.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/preempt.h>
#include <linux/vmalloc.h>
#include "kdetour_words.h"
#include "words_rust.h"

/* A task, a softirq, an interrupt, an NMI; and what may come in any of these: a breakpoint, a machine check. */
#define LEVELS 6

static DEFINE_PER_CPU(int, depth);
static u8 *memory;

int kdetour_words(const void *code, size_t length, u64 address, char *text, size_t size)
{
	int level, result = -EBUSY;

	if (!code || !length || !text || !size)
		return -EINVAL;
	preempt_disable_notrace();
	level = this_cpu_inc_return(depth) - 1;
	if (level < LEVELS)
		result = kd_words(raw_smp_processor_id() * LEVELS + level, code, length, address, text, size);
	this_cpu_dec(depth);
	preempt_enable_notrace();
	return result;
}
EXPORT_SYMBOL_GPL(kdetour_words);

static int __init words_init(void)
{
	size_t lines = (size_t)nr_cpu_ids * LEVELS, size = kd_words_memory(lines);

	memory = vmalloc(size);
	if (!memory)
		return -ENOMEM;
	kd_words_start(memory, size, lines);
	return 0;
}

static void __exit words_exit(void)
{
	vfree(memory);
}

module_init(words_init);
module_exit(words_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_AUTHOR("the kdetour developers");
MODULE_DESCRIPTION("Instructions in words, in any context");
