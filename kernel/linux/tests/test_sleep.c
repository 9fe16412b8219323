// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * sleep: a call sleeps inside a detour while it is detached.
 *
 * The target is a function of this module's own, which sleeps until it is told to go on: the detour calls it, so
 * its caller is inside the detour, and nothing but the count knows it.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/sched/task.h>
#include "test.h"

static DECLARE_COMPLETION(inside);
static DECLARE_COMPLETION(go_on);

noinline int test_sleeper(int value);
noinline int test_sleeper(int value)
{
	complete(&inside);
	wait_for_completion(&go_on);
	return value + 1;
}

static atomic_t came_back;

KDETOUR(test_sleeper, int, (int value), (value))
{
	int result = test_sleeper_original(value) + 100;

	atomic_inc(&came_back);
	return result;
}

static int sleeping_thread(void *unused)
{
	return test_sleeper(1);
}

void test_sleep(struct test_lines *to, const char *argument)
{
	struct kdetour *const one[] = { &test_sleeper_detour };
	struct kdetour_error error = {};
	struct task_struct *thread;
	unsigned long start;
	int result;
	u64 handle;

	reinit_completion(&inside);
	reinit_completion(&go_on);
	atomic_set(&came_back, 0);
	if (!CHECK(to, !kdetour_attach_all(one, 1, KDETOUR_LIVE, &error), "sleep: attach %s", error.text))
		return;
	thread = kthread_run(sleeping_thread, NULL, "kdetour_sleeper");
	if (!CHECK(to, !IS_ERR(thread), "sleep: thread")) {
		kdetour_detach_all(one, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, NULL);
		return;
	}
	get_task_struct(thread);
	wait_for_completion(&inside);

	start = jiffies;
	result = kdetour_detach_all(one, 1, KDETOUR_LIVE, 200, &error);
	CHECK(to, result == -EBUSY && error.code == KDETOUR_BUSY, "sleep: detach with a time-out gives %d", result);
	CHECK(to, time_after_eq(jiffies, start + msecs_to_jiffies(200)), "sleep: it waited that long");
	CHECK(to, atomic_read(&came_back) == 0, "sleep: the call is still inside");

	/* What drains can be attached again, as it was, and detached again. */
	handle = test_sleeper_detour.handle;
	result = kdetour_attach_all(one, 1, KDETOUR_LIVE, &error);
	CHECK(to, result == 0 && test_sleeper_detour.handle != handle, "sleep: attaching what drains gives %d", result);
	result = kdetour_attach_all(one, 1, KDETOUR_LIVE, &error);
	CHECK(to, result == -EEXIST, "sleep: attaching it twice gives %d", result);
	result = kdetour_detach_all(one, 1, KDETOUR_LIVE, KDETOUR_NO_WAIT, &error);
	CHECK(to, result == 0 && test_sleeper_detour.handle, "sleep: detaching without waiting gives %d", result);
	result = kdetour_detach_all(one, 1, KDETOUR_LIVE, 50, &error);
	CHECK(to, result == -EBUSY, "sleep: waiting a little gives %d: %s", result, error.text);

	complete(&go_on);
	result = kdetour_detach_all(one, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);
	CHECK(to, result == 0, "sleep: detach again, waiting, gives %d", result);
	CHECK(to, atomic_read(&came_back) == 1, "sleep: the call had come back by then");
	CHECK(to, kthread_stop(thread) == 102, "sleep: with the detour's result");
	put_task_struct(thread);

	reinit_completion(&inside);
	complete(&go_on);
	CHECK(to, test_sleeper(5) == 6, "sleep: the function is itself again");
	result = kdetour_detach_all(one, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);
	CHECK(to, result == -EINVAL && error.code == KDETOUR_NOT_ATTACHED, "sleep: a third detach gives %d", result);
}
