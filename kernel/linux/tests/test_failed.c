// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * failed 50: so many attaches that fail after they have begun, while another processor calls their targets all the time: a pointer is
 * exchanged, and then the function beside it cannot be written.
 *
 * What makes them fail is the protocol: the local one finds that other processors are online when it is about to write. So calls come to
 * a detour that is taken back, and sleep there. Whoever attached it must not be told of the failure before they have left: here
 * he overwrites and frees his struct kdetour at once.
 */
#include <linux/atomic.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/kthread.h>
#include <linux/rcupdate.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/string.h>
#include "test.h"

#define SLEEP_MS 30

static noinline __noclone int failed_target(int number)
{
	OPTIMIZER_HIDE_VAR(number);
	return number;
}

static noinline __noclone int failed_other(int number)
{
	OPTIMIZER_HIDE_VAR(number);
	return -number;
}

static int (*const failed_pointer)(int number) = failed_target;

/* The compiler must not know what the constant is. */
static int (*const *place(void))(int number)
{
	int (*const *hidden)(int number) = &failed_pointer;

	OPTIMIZER_HIDE_VAR(hidden);
	return hidden;
}

static atomic_t came, inside, wrong;

KDETOUR(failed_target, int, (int number), (number))
{
	int answer;

	atomic_inc(&came);
	atomic_inc(&inside);
	msleep(SLEEP_MS);
	answer = failed_target_original(number);
	atomic_dec(&inside);
	return answer;
}

KDETOUR(failed_other, int, (int number), (number))
{
	return failed_other_original(number);
}

static int call_thread(void *unused)
{
	while (!kthread_should_stop()) {
		if (READ_ONCE(*place())(7) != 7)
			atomic_inc(&wrong);
		cond_resched_tasks_rcu_qs();
	}
	return 0;
}

/* One attach that fails, of detours that are gone when it has. */
static int fail_once(struct kdetour_error *error)
{
	struct kdetour *detours = kcalloc(2, sizeof(*detours), GFP_KERNEL), *set[2];
	int result, handles;

	if (!detours)
		return -ENOMEM;
	detours[0] = failed_target_detour;
	detours[0].symbol = NULL;
	detours[0].method = KDETOUR_POINTER;
	detours[0].target = (void *)place();
	detours[1] = failed_other_detour;
	detours[1].symbol = NULL;
	detours[1].target = failed_other;
	set[0] = &detours[0];
	set[1] = &detours[1];
	result = kdetour_attach_all(set, 2, KDETOUR_LOCAL, error);
	handles = detours[0].handle || detours[1].handle;
	memset(detours, 0x5a, 2 * sizeof(*detours));
	kfree(detours);
	return handles ? -EEXIST : result;
}

void test_failed(struct test_lines *to, const char *argument)
{
	unsigned int rounds, round, late = 0, listed = 0;
	struct kdetour_error error = {};
	struct task_struct *caller;
	int result = 0;

	if (sscanf(argument, "%u", &rounds) != 1) {
		test_line(to, false, "failed ROUNDS");
		return;
	}
	atomic_set(&came, 0);
	atomic_set(&wrong, 0);
	caller = kthread_create(call_thread, NULL, "kdetour_caller");
	if (!CHECK(to, !IS_ERR(caller), "failed: a caller"))
		return;
	get_task_struct(caller);
	wake_up_process(caller);
	/* Several attempts find nobody on the way, as where both share a processor. */
	for (round = 0; round < rounds; round++) {
		struct kdetour_live live;
		size_t at = 0;

		result = fail_once(&error);
		if (result != -EOPNOTSUPP || error.code != KDETOUR_NOT_ALONE)
			break;
		late += atomic_read(&inside);
		listed += kdetour_next(&at, &live);
		usleep_range(200, 400);
	}
	kthread_stop(caller);
	put_task_struct(caller);
	CHECK(to, round == rounds, "failed: attach gives %d, code %d: %s", result, error.code, error.text);
	CHECK(to, atomic_read(&came), "failed: calls came to a detour that was taken back: %d", atomic_read(&came));
	CHECK(to, !late && !atomic_read(&inside), "failed: none was inside when attach had failed: %u", late);
	CHECK(to, !listed, "failed: nothing drains then: %u", listed);
	CHECK(to, !atomic_read(&wrong) && *place() == failed_target, "failed: all calls were answered");

	/* Who attaches there next tells the originals of all that there are. */
	failed_target_detour.symbol = NULL;
	failed_target_detour.method = KDETOUR_POINTER;
	failed_target_detour.target = (void *)place();
	result = kdetour_attach(&failed_target_detour);
	CHECK(to, !result && READ_ONCE(*place())(7) == 7, "failed: attached afterwards: %d", result);
	result = kdetour_detach(&failed_target_detour);
	CHECK(to, !result, "failed: and detached: %d", result);
}
