// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * methods int3|register: attach, call everywhere, the original, detach, chains, and calls on all processors meanwhile.
 * methods limits: four debug registers and no more. methods hold, methods held, methods off: one that stays, while the script takes
 * processors away.
 */
#include <linux/compiler.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/kthread.h>
#include <linux/percpu.h>
#include <linux/smp.h>
#include <linux/string.h>
#include "test.h"

#define TARGETS 6
#define BYTES 16
#define ROUNDS 40
#define DETOURED 1000

/* Each is a function of its own, and the compiler knows nothing of its value. */
#define TARGET(number_)								\
	static noinline __noclone long methods_##number_(long value)		\
	{									\
		OPTIMIZER_HIDE_VAR(value);					\
		return value * 2 + number_;					\
	}									\
	KDETOUR(methods_##number_, long, (long value), (value))			\
	{									\
		return methods_##number_##_original(value) + DETOURED;		\
	}
TARGET(0)
TARGET(1)
TARGET(2)
TARGET(3)
TARGET(4)
TARGET(5)

static long (*volatile const functions[TARGETS])(long value) = {
	methods_0, methods_1, methods_2, methods_3, methods_4, methods_5,
};
static struct kdetour *const detours[TARGETS] = {
	&methods_0_detour, &methods_1_detour, &methods_2_detour, &methods_3_detour, &methods_4_detour,
	&methods_5_detour,
};

/* A second one of the first target. */
static void *second_original;
static notrace noinline long second_function(long value)
{
	long (*original)(long value) = READ_ONCE(second_original);

	return original(value) * 10;
}
static struct kdetour second = {
	.detour = second_function, .original = &second_original, .owner = THIS_MODULE,
};

static int attach(unsigned int number, int method, struct kdetour_error *error)
{
	struct kdetour *one = detours[number];

	one->symbol = NULL;
	one->target = functions[number];
	one->method = method;
	return kdetour_attach_all(&one, 1, KDETOUR_LIVE, error);
}

static int detach(unsigned int number)
{
	return kdetour_detach(detours[number]);
}

/* What a call gives on each processor, in an interrupt. */
static DEFINE_PER_CPU(long, answer);

static void call_here(void *unused)
{
	__this_cpu_write(answer, functions[0](7));
}

static bool all_answer(long wanted)
{
	int cpu;

	on_each_cpu(call_here, NULL, 1);
	for_each_online_cpu(cpu)
		if (per_cpu(answer, cpu) != wanted)
			return false;
	return functions[0](7) == wanted;
}

/* Whether the target's bytes are what a method makes of those that were there before. */
static bool bytes_are(const u8 *before, int method)
{
	const u8 *now = (const u8 *)functions[0];
	unsigned int i, breakpoints = 0, others = 0;

	for (i = 0; i < BYTES; i++)
		if (now[i] != before[i]) {
			breakpoints += now[i] == 0xcc;
			others += now[i] != 0xcc;
		}
	return !others && breakpoints == (method == KDETOUR_INT3);
}

struct caller {
	struct task_struct *task;
	unsigned long detoured, plain, wrong;
};

static int call_all_the_time(void *argument)
{
	struct caller *caller = argument;

	while (!kthread_should_stop()) {
		unsigned int i;

		for (i = 0; i < 100; i++) {
			long value = functions[0](7);

			if (value == 14)
				caller->plain++;
			else if (value == 14 + DETOURED)
				caller->detoured++;
			else
				caller->wrong++;
		}
		/* A grace period of RCU-tasks waits for everybody who has not been through here, or asleep. */
		cond_resched_tasks_rcu_qs();
	}
	return 0;
}

/* It comes and goes, and calls on every processor reach one or the other. */
static void under_load(struct test_lines *to, const char *name, int method)
{
	struct caller callers[8] = {};
	unsigned long detoured = 0, plain = 0, wrong = 0;
	struct kdetour *one = detours[0];
	struct kdetour_error error = {};
	unsigned int round, count = 0;
	bool missed = false;
	int cpu, result = 0;

	for_each_online_cpu(cpu) {
		struct task_struct *task;

		if (count == ARRAY_SIZE(callers))
			break;
		task = kthread_create(call_all_the_time, &callers[count], "kdetour_methods");
		if (IS_ERR(task))
			break;
		kthread_bind(task, cpu);
		callers[count++].task = task;
		wake_up_process(task);
	}
	for (round = 0; round < ROUNDS && !result; round++) {
		result = attach(0, method, &error);
		missed |= !result && !all_answer(14 + DETOURED);
		if (!result)
			result = kdetour_detach_all(&one, 1, KDETOUR_LIVE, round % 10 ? KDETOUR_NO_WAIT : KDETOUR_FOR_EVER,
						    &error);
		missed |= !result && !all_answer(14);
	}
	if (!result && one->handle)
		result = kdetour_detach(one);
	while (count--) {
		kthread_stop(callers[count].task);
		detoured += callers[count].detoured;
		plain += callers[count].plain;
		wrong += callers[count].wrong;
	}
	CHECK(to, !result, "%s: %u rounds under load: %s", name, round, error.text);
	CHECK(to, !missed, "%s: attached on every processor, detached on every processor", name);
	CHECK(to, !wrong && detoured && plain, "%s: %lu calls detoured, %lu not, %lu wrong", name, detoured, plain, wrong);
}

static void chain(struct test_lines *to, const char *name, int method)
{
	struct kdetour *another = &second;
	struct kdetour_error error = {};
	int result, other;

	second.target = functions[0];
	second.method = method;
	CHECK(to, !attach(0, method, &error) && !kdetour_attach(&second), "%s: two of one target: %s", name, error.text);
	CHECK(to, all_answer((14 + DETOURED) * 10), "%s: the younger one first", name);
	CHECK(to, !detach(0) && all_answer(140), "%s: the younger one alone", name);
	for (other = KDETOUR_JUMP; other <= KDETOUR_DEBUG_REGISTER; other++) {
		if (other == method || (other != KDETOUR_JUMP && other != KDETOUR_INT3 && other != KDETOUR_DEBUG_REGISTER))
			continue;
		result = attach(0, other, &error);
		CHECK(to, result == -EEXIST && error.code == KDETOUR_ALREADY_DETOURED, "%s: method %d is refused: %s",
		      name, other, error.text);
	}
	result = kdetour_detach_all(&another, 1, KDETOUR_RENDEZVOUS, KDETOUR_FOR_EVER, &error);
	CHECK(to, !result && all_answer(14), "%s: nobody is left", name);
}

static void one_method(struct test_lines *to, const char *name, int method)
{
	struct kdetour *one = detours[0];
	struct kdetour_error error = {};
	u8 before[BYTES];
	int result;

	memcpy(before, (const u8 *)functions[0], BYTES);
	CHECK(to, !attach(0, method, &error), "%s: attach: %s", name, error.text);
	CHECK(to, all_answer(14 + DETOURED), "%s: every processor reaches the detour, in interrupts too", name);
	CHECK(to, bytes_are(before, method), "%s: the text", name);
	CHECK(to, !detach(0) && all_answer(14), "%s: detach", name);
	CHECK(to, bytes_are(before, KDETOUR_JUMP), "%s: the text is as it was", name);
	result = kdetour_attach_all(&one, 1, KDETOUR_RENDEZVOUS, &error);
	CHECK(to, !result && all_answer(14 + DETOURED), "%s: at a rendezvous: %s", name, error.text);
	CHECK(to, !detach(0), "%s: detach", name);
	chain(to, name, method);
	under_load(to, name, method);
}

static void limits(struct test_lines *to)
{
	/* One that jumps, and one that needs a register. */
	struct kdetour *set[] = { detours[5], detours[4] };
	struct kdetour_error error = {};
	unsigned int i;
	int result = 0;

	for (i = 0; i < 4 && !result; i++)
		result = attach(i, KDETOUR_DEBUG_REGISTER, &error);
	CHECK(to, !result, "%u debug registers: %s", i, error.text);
	result = attach(4, KDETOUR_DEBUG_REGISTER, &error);
	CHECK(to, result == -ENOSPC && error.code == KDETOUR_NO_DEBUG_REGISTER, "a fifth is refused: %s", error.text);
	CHECK(to, functions[3](7) == 17 + DETOURED && functions[4](7) == 18, "four are detoured, the fifth is not");
	set[0]->symbol = NULL;
	set[0]->target = functions[5];
	result = kdetour_attach_all(set, 2, KDETOUR_LIVE, &error);
	CHECK(to, result == -ENOSPC && error.index == 1 && functions[5](7) == 19, "nor is anything of its set: %s",
	      error.text);
	CHECK(to, !detach(0), "one leaves");
	result = kdetour_attach_all(set, 2, KDETOUR_LIVE, &error);
	CHECK(to, !result && functions[5](7) == 19 + DETOURED && functions[4](7) == 18 + DETOURED, "the set comes: %s",
	      error.text);
	result = attach(0, KDETOUR_DEBUG_REGISTER, &error);
	CHECK(to, result == -ENOSPC, "the other one cannot: %s", error.text);
	result = kdetour_detach_all(set, 2, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);
	CHECK(to, !result && functions[5](7) == 19 && functions[4](7) == 18, "the set leaves: %s", error.text);
	CHECK(to, !attach(0, KDETOUR_DEBUG_REGISTER, &error), "and it can: %s", error.text);
	for (i = 0; i < 4; i++)
		CHECK(to, !detach(i) && functions[i](7) == 14 + i, "register %u is given back", i);
	result = attach(0, 77, &error);
	CHECK(to, result == -EINVAL && error.code == KDETOUR_ARGUMENT, "there is no method 77: %s", error.text);
}

void test_methods(struct test_lines *to, const char *argument)
{
	struct kdetour_error error = {};

	if (!strcmp(argument, "int3"))
		one_method(to, "int3", KDETOUR_INT3);
	else if (!strcmp(argument, "register"))
		one_method(to, "debug register", KDETOUR_DEBUG_REGISTER);
	else if (!strcmp(argument, "limits"))
		limits(to);
	else if (!strcmp(argument, "hold"))
		CHECK(to, !attach(0, KDETOUR_DEBUG_REGISTER, &error), "attach: %s", error.text);
	else if (!strcmp(argument, "held"))
		CHECK(to, all_answer(14 + DETOURED), "%u processors reach the detour", num_online_cpus());
	else if (!strcmp(argument, "off"))
		CHECK(to, !detach(0) && all_answer(14), "detach");
	else
		test_line(to, false, "methods int3|register|limits|hold|held|off");
}
