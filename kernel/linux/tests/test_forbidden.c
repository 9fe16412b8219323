// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * forbidden NAME ADDRESS...: each of them is refused because it must not be patched, and for no other reason.
 * path: runs into a breakpoint, between two functions that a tracer sees; what it sees between them is on the way.
 * lockdown: an attach is refused because the kernel is locked down.
 */
#include <linux/fs.h>
#include <linux/irqflags.h>
#include <linux/kdebug.h>
#include <linux/kernel.h>
#include <linux/kstrtox.h>
#include <linux/limits.h>
#include <linux/mm.h>
#include <linux/notifier.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/string.h>
#include "test.h"

#define LINES 8

void test_forbidden(struct test_lines *to, const char *argument)
{
	char *copy = kstrdup(argument, GFP_KERNEL), *text = kmalloc(PAGE_SIZE, GFP_KERNEL);
	char *rest = copy, *word, *name;
	unsigned int refused = 0, others = 0;

	if (!copy || !text) {
		test_line(to, false, "forbidden: no memory");
	} else {
		name = strsep(&rest, " ");
		while ((word = strsep(&rest, " "))) {
			u64 address;

			if (kstrtou64(word, 16, &address)) {
				test_line(to, false, "forbidden %s: \"%s\" is no address", name, word);
				break;
			}
			kdetour_survey((void *)address, text, PAGE_SIZE);
			if (strstr(text, " must not be patched")) {
				refused++;
			} else if (others++ < LINES) {
				char *error = strstr(text, "error ") ?: "it can be detoured";

				test_line(to, false, "forbidden %s: %pS: %.*s", name, (void *)address,
					  (int)strcspn(error, "\n"), error);
			}
		}
		CHECK(to, refused && !others, "forbidden %s: %u must not be patched, %u are not refused so", name, refused,
		      others);
	}
	kfree(copy);
	kfree(text);
}

/* Who is about to run into this module's own breakpoint. */
static struct task_struct *expected;

static notrace int on_die(struct notifier_block *block, unsigned long event, void *data)
{
	struct die_args *args = data;

	if (event != DIE_INT3 || READ_ONCE(expected) != current || !within_module(args->regs->ip - 1, THIS_MODULE))
		return NOTIFY_DONE;
	return NOTIFY_STOP;
}

/* Behind kdetour's own, which has the same priority and came first. */
static struct notifier_block block = { .notifier_call = on_die, .priority = INT_MAX };

/* Not the same, or the compiler makes one of them. */
static noinline void test_path_begin(void)
{
	asm volatile("# begin" ::: "memory");
}

static noinline void test_path_end(void)
{
	asm volatile("# end" ::: "memory");
}

void test_path(struct test_lines *to, const char *argument)
{
	unsigned long flags;

	if (!CHECK(to, !register_die_notifier(&block), "path: a die notifier"))
		return;
	WRITE_ONCE(expected, current);
	local_irq_save(flags);
	test_path_begin();
	asm volatile("int3");
	test_path_end();
	tracing_off();
	local_irq_restore(flags);
	WRITE_ONCE(expected, NULL);
	unregister_die_notifier(&block);
	test_line(to, true, "path: came back from a breakpoint");
}

static loff_t seek(struct file *file, loff_t offset, int whence)
{
	return -EINVAL;
}

void test_lockdown(struct test_lines *to, const char *argument)
{
	struct kdetour detour = { .symbol = "vfs_llseek", .detour = seek, .owner = THIS_MODULE };
	struct kdetour *const one[] = { &detour };
	struct kdetour_error error = {};
	u8 before[64];
	int result;

	memcpy(before, (void *)kdetour_find("vfs_llseek"), sizeof(before));
	result = kdetour_attach_all(one, 1, KDETOUR_LIVE, &error);
	CHECK(to, result == -EPERM && error.code == KDETOUR_LOCKED_DOWN && !detour.handle,
	      "lockdown: live attach gives %d: %s", result, error.text);
	result = kdetour_attach_all(one, 1, KDETOUR_RENDEZVOUS, &error);
	CHECK(to, result == -EPERM && error.code == KDETOUR_LOCKED_DOWN && !detour.handle,
	      "lockdown: attach at a rendezvous gives %d", result);
	CHECK(to, !memcmp(before, (void *)kdetour_find("vfs_llseek"), sizeof(before)), "lockdown: nothing is written");
	if (detour.handle)
		kdetour_detach(&detour);
}
