// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * chain: the target of link1, link2 and link3, and its callers.
 *
 *	chain start 321		threads call it all the time; each result must be some of these digits, in this order
 *	chain is 31		a call now gives exactly these digits
 *	chain stop		how many calls there were, and how many were wrong
 *	chain nap		one call that sleeps a little in every link
 *	chain napped 2		it has come back, with these digits
 *	chain two		two detours of this module's own: sets, who is refused, who is attached again
 */
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/kstrtox.h>
#include <linux/kthread.h>
#include <linux/rcupdate.h>
#include <linux/sched/task.h>
#include <linux/string.h>
#include "test.h"

/* So many threads call without a pause, and so many sleep in every link on the way. */
#define FAST 2
#define SLEEPY 4
#define SLEEP_MS 40

noinline u64 test_chain_target(u64 digits, unsigned int sleep_ms);
noinline u64 test_chain_target(u64 digits, unsigned int sleep_ms)
{
	if (sleep_ms)
		msleep(sleep_ms);
	return digits;
}

static struct task_struct *threads[FAST + SLEEPY];
static atomic_long_t calls, wrong;
static u64 wrong_digits, wanted_digits;

/* Whether all digits are there, in this order. */
static bool is_part_of(u64 digits, u64 order)
{
	for (; order; order >>= 4)
		if (digits && (digits & 15) == (order & 15))
			digits >>= 4;
	return !digits;
}

static int call_thread(void *sleepy)
{
	while (!kthread_should_stop()) {
		u64 digits = test_chain_target(0, sleepy ? SLEEP_MS : 0);

		atomic_long_inc(&calls);
		if (!is_part_of(digits, wanted_digits)) {
			atomic_long_inc(&wrong);
			WRITE_ONCE(wrong_digits, digits);
		}
		/* RCU-tasks does not wait for it, only for the calls. */
		cond_resched_tasks_rcu_qs();
	}
	return 0;
}

/* One call. */
static struct task_struct *napper;
static u64 napped;

static int nap_thread(void *unused)
{
	WRITE_ONCE(napped, test_chain_target(0, SLEEP_MS));
	return 0;
}

static void nap(struct test_lines *to)
{
	napper = kthread_create(nap_thread, NULL, "kdetour_napper");
	if (!CHECK(to, !IS_ERR(napper), "chain: napper"))
		return;
	get_task_struct(napper);
	wake_up_process(napper);
}

static void stop(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(threads); i++) {
		if (!IS_ERR_OR_NULL(threads[i])) {
			kthread_stop(threads[i]);
			put_task_struct(threads[i]);
		}
		threads[i] = NULL;
	}
}

static void start(struct test_lines *to)
{
	int i;

	atomic_long_set(&calls, 0);
	atomic_long_set(&wrong, 0);
	wrong_digits = 0;
	for (i = 0; i < ARRAY_SIZE(threads); i++) {
		threads[i] = kthread_run(call_thread, i < FAST ? NULL : threads, "kdetour_chain");
		if (!CHECK(to, !IS_ERR(threads[i]), "chain: thread")) {
			stop();
			return;
		}
		get_task_struct(threads[i]);
	}
}

/* Two detours by hand; their originals are pointers. */
static u64 (*first_original)(u64 digits, unsigned int sleep_ms);
static u64 (*second_original)(u64 digits, unsigned int sleep_ms);

static u64 first(u64 digits, unsigned int sleep_ms)
{
	return first_original(digits << 4 | 10, sleep_ms);
}

static u64 second(u64 digits, unsigned int sleep_ms)
{
	return second_original(digits << 4 | 11, sleep_ms);
}

#define TWO(name_) {									\
	.symbol = "test_chain_target", .detour = name_, .original = (void **)&name_##_original,	\
	.owner = THIS_MODULE,								\
}
static struct kdetour first_detour = TWO(first);
static struct kdetour second_detour = TWO(second);

static void two(struct test_lines *to)
{
	struct kdetour *const set[] = { &first_detour, &second_detour };
	struct kdetour *const one[] = { &first_detour };
	struct kdetour copy = TWO(first);
	struct kdetour *const again[] = { &copy };
	struct kdetour_error error = {};
	int result;

	/* In one set the last is the youngest. */
	result = kdetour_attach_all(set, 2, KDETOUR_LIVE, &error);
	CHECK(to, result == 0 && test_chain_target(0, 0) == 0xba, "chain: two in one set %d: %s", result, error.text);
	/* Its original would be itself. */
	result = kdetour_attach_all(again, 1, KDETOUR_LIVE, &error);
	CHECK(to, result == -EEXIST && error.code == KDETOUR_ALREADY_DETOURED && !copy.handle,
	      "chain: one function twice gives %d: %s", result, error.text);
	/* Somebody else's handle in a struct of one's own. */
	copy.handle = first_detour.handle;
	result = kdetour_detach_all(again, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);
	CHECK(to, result == -EINVAL && error.code == KDETOUR_NOT_ATTACHED && test_chain_target(0, 0) == 0xba,
	      "chain: another's handle gives %d: %s", result, error.text);
	result = kdetour_attach_all(again, 1, KDETOUR_LIVE, &error);
	CHECK(to, result == -EEXIST && test_chain_target(0, 0) == 0xba, "chain: nor does it attach: %d", result);

	/* The older one goes: nothing changes at the target. What comes back is the youngest. */
	result = kdetour_detach_all(one, 1, KDETOUR_LIVE, KDETOUR_NO_WAIT, &error);
	CHECK(to, result == 0 && test_chain_target(0, 0) == 0xb, "chain: the older one goes: %d", result);
	result = kdetour_attach_all(one, 1, KDETOUR_LIVE, &error);
	CHECK(to, result == 0 && test_chain_target(0, 0) == 0xab, "chain: it is attached again: %d", result);
	result = kdetour_detach_all(one, 1, KDETOUR_RENDEZVOUS, KDETOUR_FOR_EVER, &error);
	CHECK(to, result == 0 && test_chain_target(0, 0) == 0xb && (void *)first_original == first_detour.target,
	      "chain: the youngest goes, at a rendezvous: %d", result);
	result = kdetour_attach_all(one, 1, KDETOUR_RENDEZVOUS, &error);
	CHECK(to, result == 0 && test_chain_target(0, 0) == 0xab, "chain: and comes: %d %s", result, error.text);
	result = kdetour_detach_all(set, 2, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);
	CHECK(to, result == 0 && test_chain_target(0, 0) == 0 && !first_detour.handle && !second_detour.handle,
	      "chain: both go: %d", result);
	result = kdetour_detach_all(set, 2, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);
	CHECK(to, result == -EINVAL && error.code == KDETOUR_NOT_ATTACHED, "chain: detached twice: %d", result);
}

void test_chain(struct test_lines *to, const char *argument)
{
	u64 digits = 0;

	if (!strncmp(argument, "start ", 6)) {
		if (CHECK(to, !kstrtou64(argument + 6, 16, &digits), "chain: order %s", argument + 6)) {
			WRITE_ONCE(wanted_digits, digits);
			if (!threads[0])
				start(to);
		}
	} else if (!strncmp(argument, "is ", 3)) {
		u64 found = test_chain_target(0, 0);

		CHECK(to, !kstrtou64(argument + 3, 16, &digits) && found == digits, "chain: a call gives %llx", found);
	} else if (!strcmp(argument, "nap")) {
		nap(to);
	} else if (!strncmp(argument, "napped ", 7) && !IS_ERR_OR_NULL(napper)) {
		kthread_stop(napper);
		put_task_struct(napper);
		napper = NULL;
		CHECK(to, !kstrtou64(argument + 7, 16, &digits) && napped == digits, "chain: the nap gave %llx", napped);
	} else if (!strcmp(argument, "two")) {
		two(to);
	} else {
		stop();
		CHECK(to, atomic_long_read(&calls) > 100 && !atomic_long_read(&wrong),
		      "chain: %ld calls, %ld wrong, the last gave %llx", atomic_long_read(&calls),
		      atomic_long_read(&wrong), wrong_digits);
	}
}

void test_chain_end(void)
{
	stop();
}
