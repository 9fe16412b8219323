// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * pointer: pointers in read-only data that lead to detours, in this module's and in the kernel's own.
 *
 *	pointer bad		places that are refused by name
 *	pointer chain		three detours of one pointer leave in every order; sets of pointers and functions
 *	pointer changed		somebody else writes one
 *	pointer inside		a call that sleeps inside is waited for
 *	pointer toggle 100	so many rounds, while every processor calls through it, and /dev/null is written
 *	pointer victim		one of the module victim; "victim-gone": after that module
 */
#include <linux/cpumask.h>
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/rcupdate.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/vmalloc.h>
#include "test.h"

struct test_ops {
	int (*call)(int number);
	int (*none)(int number);
	const void *data;
};

static noinline int plain(int number)
{
	barrier();
	return number;
}

static noinline int another(int number)
{
	barrier();
	return -number;
}

static int data;
static const struct test_ops test_pointer_ops = { .call = plain, .data = &data };

/* The compiler must not know what the constants are. */
static const struct test_ops *ops(void)
{
	const struct test_ops *hidden = &test_pointer_ops;

	OPTIMIZER_HIDE_VAR(hidden);
	return hidden;
}

static int call(int number)
{
	return READ_ONCE(ops()->call)(number);
}

/* The function itself, entered as if anybody called it. */
static int call_plain(int number)
{
	int (*function)(int number) = plain;

	OPTIMIZER_HIDE_VAR(function);
	return function(number);
}

static bool is_writable(const void *address)
{
	unsigned int level;
	pte_t *entry = lookup_address((unsigned long)address, &level);

	return !entry || (pte_flags(*entry) & _PAGE_RW);
}

/* Writes a pointer as somebody who knows nothing of kdetour would. */
static bool poke(const void *place, const void *value)
{
	struct page *page = pfn_to_page(slow_virt_to_phys((void *)place) >> PAGE_SHIFT);
	u8 *alias = vmap(&page, 1, VM_MAP, PAGE_KERNEL);

	if (!alias)
		return false;
	WRITE_ONCE(*(const void **)(alias + offset_in_page(place)), value);
	vunmap(alias);
	return true;
}

/* Detours whose answers tell by their digits who was called. */
static int (*originals[3])(int number);
#define DIGIT(number_)							\
static int digit_##number_(int number)					\
{									\
	return 10 * READ_ONCE(originals[number_])(number) + number_ + 1;	\
}
DIGIT(0)
DIGIT(1)
DIGIT(2)

#define ONE(number_) {							\
	.target = (void *)&test_pointer_ops.call, .detour = digit_##number_,	\
	.original = (void **)&originals[number_], .method = KDETOUR_POINTER, .owner = THIS_MODULE,	\
}
static struct kdetour digits[] = { ONE(0), ONE(1), ONE(2) };

/* The function itself, which a set may have beside the pointers. */
static int (*plain_original)(int number);

static int plain_entered(int number)
{
	return READ_ONCE(plain_original)(number) + 5;
}

static struct kdetour plain_detour = {
	.target = plain, .detour = plain_entered, .original = (void **)&plain_original, .owner = THIS_MODULE,
};

static void as_it_was(struct test_lines *to, const char *what)
{
	CHECK(to, call(7) == 7 && ops()->call == plain && !is_writable(ops()), "pointer: %s: as it was, %d", what, call(7));
}

static void expect(struct test_lines *to, const char *what, const struct kdetour *wanted, int errno_, s32 code,
		   u64 address)
{
	struct kdetour detour = *wanted, *set[] = { &plain_detour, &detour };
	static struct kdetour_error error;
	int result;

	memset(&error, 0, sizeof(error));
	result = kdetour_attach_all(set, 2, KDETOUR_LIVE, &error);
	CHECK(to, result == errno_ && error.code == code && error.address == address && error.index == 1 &&
	      error.text[0] && !detour.handle && !plain_detour.handle && call(7) == 7,
	      "pointer: %s gives %d, code %d, address %llx: %s", what, result, error.code, error.address, error.text);
	if (!result)
		kdetour_detach_all(set, 2, KDETOUR_LIVE, KDETOUR_FOR_EVER, NULL);
}

static void bad(struct test_lines *to)
{
	const struct test_ops **allocated = kmalloc(sizeof(*allocated), GFP_KERNEL);
	struct kdetour detour;

#define BAD(what_, errno_, code_, address_, otherwise_)					\
	do {											\
		detour = (struct kdetour){ .target = (void *)&ops()->call, .detour = digit_0,	\
			.method = KDETOUR_POINTER, .owner = THIS_MODULE };			\
		otherwise_;									\
		expect(to, what_, &detour, errno_, code_, address_);				\
	} while (0)

	BAD("no such method", -EINVAL, KDETOUR_ARGUMENT, 0, detour.method = 77);
	BAD("no place", -EINVAL, KDETOUR_NULL, 0, detour.target = NULL);
	BAD("a place that is not aligned", -EINVAL, KDETOUR_ARGUMENT, (u64)&ops()->call + 4,
	    detour.target = (char *)&ops()->call + 4);
	BAD("an address of a process", -EFAULT, KDETOUR_UNREADABLE, 0x400000, detour.target = (void *)0x400000);
	BAD("page zero", -EFAULT, KDETOUR_UNREADABLE, 8, detour.target = (void *)8);
	BAD("no canonical address", -EFAULT, KDETOUR_UNREADABLE, 0x8000000000000000,
	    detour.target = (void *)0x8000000000000000);
	BAD("text of the kernel", -EPERM, KDETOUR_FORBIDDEN, kdetour_find("vfs_read") & ~7ul,
	    detour.target = (void *)(kdetour_find("vfs_read") & ~7ul));
	BAD("text of a module", -EPERM, KDETOUR_FORBIDDEN, (u64)plain & ~7ul, detour.target = (void *)((u64)plain & ~7ul));
	BAD("memory that was allocated", -EPERM, KDETOUR_FORBIDDEN, (u64)allocated, detour.target = allocated);
	BAD("a stack", -EPERM, KDETOUR_FORBIDDEN, (u64)&detour, detour.target = &detour);
	BAD("data of kdetour's own", -EPERM, KDETOUR_FORBIDDEN, kdetour_find("kdetour:kd_mutex"),
	    detour.target = (void *)kdetour_find("kdetour:kd_mutex"));
	BAD("a pointer that is null", -EINVAL, KDETOUR_NULL, (u64)&ops()->none, detour.target = (void *)&ops()->none);
	BAD("a pointer to data", -EINVAL, KDETOUR_NOT_CODE, (u64)&data, detour.target = (void *)&ops()->data);
	BAD("a detour in data", -EINVAL, KDETOUR_NOT_CODE, (u64)&data, detour.detour = &data);
	BAD("the function itself", -EEXIST, KDETOUR_ALREADY_DETOURED, (u64)&ops()->call, detour.detour = plain);
	as_it_was(to, "bad");
	kfree(allocated);
}

static void chain(struct test_lines *to)
{
	static const u8 orders[][3] = {
		{ 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 }, { 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 },
	};
	struct kdetour *const mixed[] = { &digits[1], &plain_detour };
	struct kdetour_error error = {};
	unsigned int i, j, k;
	int result;

	for (i = 0; i < ARRAY_SIZE(orders); i++) {
		bool left[] = { true, true, true };

		for (j = 0; j < 3; j++) {
			result = kdetour_attach(&digits[j]);
			if (!CHECK(to, !result, "pointer: attach %u: %d", j, result))
				return;
		}
		CHECK(to, call(7) == 7123 && ops()->call == digit_2 && !is_writable(ops()), "pointer: all three: %d",
		      call(7));
		for (j = 0; j < 3; j++) {
			int wanted = 7;

			left[orders[i][j]] = false;
			result = kdetour_detach(&digits[orders[i][j]]);
			for (k = 0; k < 3; k++)
				wanted = left[k] ? 10 * wanted + k + 1 : wanted;
			CHECK(to, !result && call(7) == wanted, "pointer: order %u, without %u: %d, %d", i, orders[i][j],
			      result, call(7));
		}
		as_it_was(to, "order");
	}
	result = kdetour_attach_all(mixed, 2, KDETOUR_LIVE, &error);
	CHECK(to, !result && call(7) == 122 && call_plain(7) == 12, "pointer: a pointer and its function: %d: %s", call(7),
	      error.text);
	result = kdetour_detach_all(mixed, 2, KDETOUR_RENDEZVOUS, KDETOUR_NO_WAIT, &error);
	CHECK(to, !result && call_plain(7) == 7, "pointer: both go: %d: %s", result, error.text);
	as_it_was(to, "not waited for");
	result = kdetour_attach_all(mixed, 1, KDETOUR_LIVE, &error);
	CHECK(to, !result && call(7) == 72, "pointer: as it was before: %d: %s", result, error.text);
	result = kdetour_detach_all(mixed, 2, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);
	CHECK(to, !result && (void *)originals[1] == plain && !digits[1].handle, "pointer: and gone: %d: %s", result,
	      error.text);
	as_it_was(to, "chain");
}

static void changed(struct test_lines *to)
{
	struct kdetour *const set[] = { &plain_detour, &digits[0] }, *const other[] = { &digits[1] };
	struct kdetour_error error = {};
	int result = kdetour_attach_all(set, 2, KDETOUR_LIVE, &error);

	CHECK(to, !result && call(7) == 121, "changed: attached: %d: %s", call(7), error.text);
	CHECK(to, poke(&ops()->call, another), "changed: somebody else writes it");
	result = kdetour_detach_all(set, 2, KDETOUR_LIVE, 100, &error);
	CHECK(to, result == -ESTALE && error.code == KDETOUR_CHANGED && error.index == 1 &&
	      error.address == (u64)&ops()->call, "changed: detach gives %d, code %d, index %u: %s", result, error.code,
	      error.index, error.text);
	CHECK(to, call(7) == -7 && call_plain(7) == 12, "changed: nothing else has happened");
	result = kdetour_attach_all(other, 1, KDETOUR_LIVE, &error);
	CHECK(to, result == -ESTALE && error.code == KDETOUR_CHANGED, "changed: nor does another come: %d: %s", result,
	      error.text);
	CHECK(to, poke(&ops()->call, digit_0) && call(7) == 121, "changed: he puts it back");
	result = kdetour_detach_all(set, 2, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);
	CHECK(to, !result, "changed: detached: %d: %s", result, error.text);
	as_it_was(to, "changed");

	/* What is as it was needs no write. */
	result = kdetour_attach(&digits[0]);
	CHECK(to, !result && poke(&ops()->call, plain) && !kdetour_detach(&digits[0]), "changed: by itself");
	as_it_was(to, "by itself");
}

static DECLARE_COMPLETION(is_inside);
static DECLARE_COMPLETION(may_leave);

KDETOUR(test_pointer_sleep, int, (int number), (number))
{
	complete(&is_inside);
	wait_for_completion(&may_leave);
	return test_pointer_sleep_original(number) + 1;
}

static int answer;

static int one_call(void *unused)
{
	WRITE_ONCE(answer, call(7));
	return 0;
}

static void inside(struct test_lines *to)
{
	struct kdetour *const set[] = { &test_pointer_sleep_detour };
	struct kdetour_error error = {};
	struct task_struct *caller;
	int result;

	test_pointer_sleep_detour.symbol = NULL;
	test_pointer_sleep_detour.target = (void *)&ops()->call;
	test_pointer_sleep_detour.method = KDETOUR_POINTER;
	result = kdetour_attach_all(set, 1, KDETOUR_LIVE, &error);
	caller = kthread_create(one_call, NULL, "kdetour_caller");
	if (!CHECK(to, !result && !IS_ERR(caller), "inside: attached: %d: %s", result, error.text))
		return;
	get_task_struct(caller);
	wake_up_process(caller);
	wait_for_completion(&is_inside);
	result = kdetour_detach_all(set, 1, KDETOUR_LIVE, 100, &error);
	CHECK(to, result == -EBUSY && error.code == KDETOUR_BUSY, "inside: detach gives %d: %s", result, error.text);
	as_it_was(to, "inside");
	complete(&may_leave);
	result = kdetour_detach_all(set, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);
	kthread_stop(caller);
	put_task_struct(caller);
	CHECK(to, !result && answer == 8, "inside: it has come back with %d: %d", answer, result);
}

/* The kernel's own: what every write to /dev/null goes through. */
static atomic_long_t writes, calls, wrong;

KDETOUR(test_pointer_null, ssize_t, (struct file *file, const char __user *from, size_t count, loff_t *position),
	(file, from, count, position))
{
	atomic_long_inc(&writes);
	return test_pointer_null_original(file, from, count, position);
}

KDETOUR(test_pointer_more, int, (int number), (number))
{
	return test_pointer_more_original(number) + 1;
}

static int call_thread(void *unused)
{
	while (!kthread_should_stop()) {
		int answer = call(7);

		atomic_long_inc(&calls);
		if (answer != 7 && answer != 8)
			atomic_long_inc(&wrong);
		/* RCU-tasks does not wait for it, only for the calls. */
		cond_resched_tasks_rcu_qs();
	}
	return 0;
}

static void toggle(struct test_lines *to, unsigned int rounds)
{
	struct kdetour *const set[] = { &test_pointer_null_detour, &test_pointer_more_detour };
	struct file_operations *null_fops = (void *)kdetour_find("null_fops"), before;
	struct task_struct *threads[8] = {};
	struct kdetour_error error = {};
	unsigned int i, round;
	int cpu, result = 0;

	if (!CHECK(to, null_fops && null_fops->write, "toggle: null_fops"))
		return;
	before = *null_fops;
	test_pointer_null_detour.symbol = test_pointer_more_detour.symbol = NULL;
	test_pointer_null_detour.method = test_pointer_more_detour.method = KDETOUR_POINTER;
	test_pointer_null_detour.target = &null_fops->write;
	test_pointer_more_detour.target = (void *)&ops()->call;
	atomic_long_set(&writes, 0);
	atomic_long_set(&calls, 0);
	atomic_long_set(&wrong, 0);
	i = 0;
	for_each_online_cpu(cpu) {
		if (i == ARRAY_SIZE(threads))
			break;
		threads[i] = kthread_create(call_thread, NULL, "kdetour_pointer");
		if (!CHECK(to, !IS_ERR(threads[i]), "toggle: thread"))
			break;
		kthread_bind(threads[i], cpu);
		get_task_struct(threads[i]);
		wake_up_process(threads[i++]);
	}
	for (round = 0; round < rounds && !result; round++) {
		result = kdetour_attach_all(set, 2, KDETOUR_LIVE, &error);
		/* So that others come to it. */
		if (round % 8 == 0)
			msleep(1);
		if (!result)
			result = kdetour_detach_all(set, 2, KDETOUR_LIVE,
						    round % 16 == 15 ? KDETOUR_FOR_EVER : KDETOUR_NO_WAIT, &error);
	}
	if (!result && test_pointer_null_detour.handle)
		result = kdetour_detach_all(set, 2, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);
	while (i--) {
		kthread_stop(threads[i]);
		put_task_struct(threads[i]);
	}
	CHECK(to, !result && round == rounds, "toggle: %u rounds: %d: %s", round, result, error.text);
	CHECK(to, atomic_long_read(&calls) > rounds && !atomic_long_read(&wrong) && atomic_long_read(&writes),
	      "toggle: %ld calls, %ld wrong; %ld writes detoured", atomic_long_read(&calls), atomic_long_read(&wrong),
	      atomic_long_read(&writes));
	CHECK(to, !memcmp(&before, null_fops, sizeof(before)) && !is_writable(null_fops),
	      "toggle: the kernel's are as they were");
	as_it_was(to, "toggle");
}

/* A pointer in a module that may go. */
static atomic_long_t sets;

KDETOUR(test_pointer_set, int, (const char *value, const struct kernel_param *parameter), (value, parameter))
{
	atomic_long_inc(&sets);
	return test_pointer_set_original(value, parameter);
}

static void victim(struct test_lines *to)
{
	unsigned long ops = kdetour_find("victim:call_ops");
	int result;

	if (!CHECK(to, ops, "victim: its call_ops"))
		return;
	atomic_long_set(&sets, 0);
	test_pointer_set_detour.symbol = NULL;
	test_pointer_set_detour.method = KDETOUR_POINTER;
	test_pointer_set_detour.target = (void *)(ops + offsetof(struct kernel_param_ops, set));
	result = kdetour_attach(&test_pointer_set_detour);
	CHECK(to, !result, "victim: attached: %d", result);
}

static void victim_gone(struct test_lines *to)
{
	struct kdetour *const set[] = { &test_pointer_set_detour };
	struct kdetour_error error = {};
	int result = kdetour_detach_all(set, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);

	CHECK(to, result == -EINVAL && error.code == KDETOUR_NOT_ATTACHED, "victim: gone: %d: %s", result, error.text);
	CHECK(to, atomic_long_read(&sets) == 1, "victim: %ld calls came to it", atomic_long_read(&sets));
	test_pointer_set_detour.handle = 0;
}

void test_pointer(struct test_lines *to, const char *argument)
{
	unsigned int rounds;

	if (!strcmp(argument, "bad"))
		bad(to);
	else if (!strcmp(argument, "chain"))
		chain(to);
	else if (!strcmp(argument, "changed"))
		changed(to);
	else if (!strcmp(argument, "inside"))
		inside(to);
	else if (sscanf(argument, "toggle %u", &rounds) == 1)
		toggle(to, rounds);
	else if (!strcmp(argument, "victim"))
		victim(to);
	else if (!strcmp(argument, "victim-gone"))
		victim_gone(to);
	else
		test_line(to, false, "pointer bad|chain|changed|inside|toggle ROUNDS|victim|victim-gone");
}
