// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * all find STEP: surveys every STEP-th function of the running kernel.
 * all detour SECONDS: those that were accepted, detoured in one session, counted, and detached in one.
 *
 * What was called is in debugfs, kdetour_test_calls: a count and a name in each line.
 */
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/kernel.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sched/prio.h>
#include <linux/seq_file.h>
#include "functions.h"
#include "test.h"

static struct dentry *calls_file;
static struct functions functions;

static int calls_show(struct seq_file *file, void *unused)
{
	unsigned int i;

	for (i = 0; i < functions.count; i++)
		if (functions.counting->calls[i])
			seq_printf(file, "%llu %ps\n", functions.counting->calls[i], functions.detours[i].target);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(calls);

void test_all_init(void)
{
	calls_file = debugfs_create_file("kdetour_test_calls", 0400, NULL, NULL, &calls_fops);
}

void test_all_exit(void)
{
	debugfs_remove(calls_file);
	functions_exit(&functions);
}

static u64 calls(unsigned int *called)
{
	unsigned int i;
	u64 sum = 0;

	*called = 0;
	for (i = 0; i < functions.count; i++) {
		sum += functions.counting->calls[i];
		*called += functions.counting->calls[i] != 0;
	}
	return sum;
}

static void tell_refused(struct test_lines *to)
{
	unsigned int i;

	for (i = 0; i < FUNCTIONS_REASONS && functions.refused[i].count; i++)
		test_line(to, true, "all: %u refused: %s", functions.refused[i].count, functions.refused[i].name);
}

static s64 since(ktime_t start)
{
	return ktime_ms_delta(ktime_get(), start);
}

static void find(struct test_lines *to, unsigned int step)
{
	ktime_t start = ktime_get();

	if (!functions.counting && !CHECK(to, !functions_init(&functions), "all: counting.ko and memory"))
		return;
	if (CHECK(to, !functions_find(&functions, step), "all: %u of %u functions surveyed in %lld ms, %u accepted",
		  functions.surveyed, functions.symbols, since(start), functions.count))
		tell_refused(to);
}

static void detour(struct test_lines *to, unsigned int seconds)
{
	struct kdetour_error error = {};
	ktime_t start = ktime_get();
	unsigned int some;
	u64 sum;

	if (!CHECK(to, functions.count, "all: functions were found"))
		return;
	/* Before the load, which would take nearly all of the time. */
	set_user_nice(current, MIN_NICE);
	if (!CHECK(to, !kdetour_attach_all(functions.set, functions.count, KDETOUR_LIVE, &error),
		   "all: attached %u in %lld ms (%u: %s)", functions.count, since(start), error.index, error.text))
		return;
	ssleep(seconds);
	start = ktime_get();
	if (!CHECK(to, !kdetour_detach_all(functions.set, functions.count, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error),
		   "all: detached %u in %lld ms (%s)", functions.count, since(start), error.text)) {
		/* The detours must not go away under the kernel. */
		__module_get(THIS_MODULE);
		return;
	}
	sum = calls(&some);
	CHECK(to, some > functions.count / 200, "all: %u of %u were called, %llu times", some, functions.count, sum);
	msleep(200);
	CHECK(to, calls(&some) == sum, "all: none is called after detaching");
}

void test_all(struct test_lines *to, const char *argument)
{
	unsigned int number;

	if (sscanf(argument, "find %u", &number) == 1 && number)
		find(to, number);
	else if (sscanf(argument, "detour %u", &number) == 1)
		detour(to, number);
	else
		test_line(to, false, "all find STEP, or all detour SECONDS");
}
