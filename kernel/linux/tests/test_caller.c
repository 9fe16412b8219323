// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * caller: who calls kdetour from where it must not be called: the call is refused by name, nothing is written, and
 * nothing waits for itself.
 */
#include <linux/init.h>
#include <linux/irqflags.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/smp.h>
#include <linux/spinlock.h>
#include <linux/vmalloc.h>
#include "test.h"

static int nothing(int value)
{
	return value;
}

static struct kdetour fresh = { .symbol = "int_sqrt", .detour = nothing, .owner = THIS_MODULE };
static struct kdetour *const fresh_set[] = { &fresh };

/* One that is attached, and from inside of which kdetour is called. */
static unsigned long called_inside;
static int inside_result, inside_other, inside_no_wait;
static struct kdetour_error inside_error;
static void call_inside(void);

noinline unsigned long test_caller_target(unsigned long value);
noinline unsigned long test_caller_target(unsigned long value)
{
	barrier();
	return value * value + 3;
}

KDETOUR(test_caller_target, unsigned long, (unsigned long value), (value))
{
	unsigned long result = test_caller_target_original(value);

	if (value == 7) {
		called_inside++;
		call_inside();
	}
	/* What the compiler takes for rare it moves away: into a function of another name. */
	if (value == 9) {
		pr_info("caller: from a piece that is hardly ever run\n");
		called_inside++;
		call_inside();
		pr_info("caller: back in it\n");
	}
	return result;
}

static struct kdetour *const attached_set[] = { &test_caller_target_detour };

static void call_inside(void)
{
	struct kdetour other = { .symbol = "lcm", .detour = nothing, .owner = THIS_MODULE };
	struct kdetour *const other_set[] = { &other };

	inside_result = kdetour_detach_all(attached_set, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &inside_error);
	/* Another one may come and go. */
	inside_other = kdetour_attach_all(other_set, 1, KDETOUR_LIVE, NULL) ?:
		       kdetour_detach_all(other_set, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, NULL);
	inside_no_wait = kdetour_detach_all(attached_set, 1, KDETOUR_LIVE, KDETOUR_NO_WAIT, NULL);
}

/* What kdetour itself calls while it attaches. */
static int nested_attach, nested_survey, nested_calls;
static struct kdetour_error nested_error;

KDETOUR(vmap, void *, (struct page **pages, unsigned int count, unsigned long flags, pgprot_t prot),
	(pages, count, flags, prot))
{
	char text[64];

	if (nested_calls >= 0 && !nested_calls++) {
		nested_attach = kdetour_attach_all(fresh_set, 1, KDETOUR_LIVE, &nested_error);
		nested_survey = kdetour_survey(nothing, text, sizeof(text)) && !strncmp(text, "error called by", 15);
	}
	return vmap_original(pages, count, flags, prot);
}

static struct kdetour *const vmap_set[] = { &vmap_detour };

/* Everything that may sleep, from where it must not. */
struct answers {
	int attach, detach, survey, codes;
	unsigned long found;
};

static void ask(void *to)
{
	struct answers *answers = to;
	struct kdetour_error error = {};
	char text[48];

	answers->attach = kdetour_attach_all(fresh_set, 1, KDETOUR_LIVE, &error);
	answers->codes = error.code == KDETOUR_ATOMIC;
	error.code = 0;
	answers->detach = kdetour_detach_all(attached_set, 1, KDETOUR_RENDEZVOUS, KDETOUR_FOR_EVER, &error);
	answers->codes += error.code == KDETOUR_ATOMIC;
	answers->survey = kdetour_survey(nothing, text, sizeof(text)) && !strncmp(text, "error called where", 18);
	answers->found = kdetour_find("int_sqrt");
}

static void expect_atomic(struct test_lines *to, const char *where, const struct answers *answers)
{
	CHECK(to, answers->attach == -EPERM && answers->detach == -EPERM && answers->codes == 2 && answers->survey &&
	      answers->found && !fresh.handle && test_caller_target_detour.handle,
	      "caller: %s: attach %d, detach %d", where, answers->attach, answers->detach);
}

static void atomic_callers(struct test_lines *to)
{
	static DEFINE_SPINLOCK(lock);
	struct answers answers;

	spin_lock(&lock);
	ask(&answers);
	spin_unlock(&lock);
	expect_atomic(to, "with a spinlock", &answers);
	preempt_disable();
	ask(&answers);
	preempt_enable();
	expect_atomic(to, "preemption off", &answers);
	local_irq_disable();
	ask(&answers);
	local_irq_enable();
	expect_atomic(to, "interrupts off", &answers);
	local_bh_disable();
	ask(&answers);
	local_bh_enable();
	expect_atomic(to, "bottom halves off", &answers);
	rcu_read_lock();
	ask(&answers);
	rcu_read_unlock();
	expect_atomic(to, "under RCU", &answers);
	smp_call_function_single(num_online_cpus() - 1, ask, &answers, 1);
	expect_atomic(to, "in an interrupt", &answers);
}

/* It drains: what is asked for again must be what it was, once. */
static void again(struct test_lines *to)
{
	struct kdetour *const twice[] = { &test_caller_target_detour, &test_caller_target_detour };
	void *detour = test_caller_target_detour.detour;
	struct kdetour_error error = {};
	int result;

	result = kdetour_attach_all(twice, 2, KDETOUR_LIVE, &error);
	CHECK(to, result == -EEXIST && error.code == KDETOUR_ALREADY_DETOURED && error.index == 1,
	      "caller: one that drains, twice in a set, gives %d: %s", result, error.text);
	test_caller_target_detour.symbol = "int_sqrt";
	result = kdetour_attach_all(attached_set, 1, KDETOUR_LIVE, &error);
	CHECK(to, result == -EINVAL && error.code == KDETOUR_ARGUMENT, "caller: of another target it gives %d: %s", result,
	      error.text);
	test_caller_target_detour.symbol = "test_caller_target";
	test_caller_target_detour.detour = nothing;
	result = kdetour_attach_all(attached_set, 1, KDETOUR_LIVE, &error);
	CHECK(to, result == -EINVAL && error.code == KDETOUR_ARGUMENT, "caller: with another detour it gives %d: %s", result,
	      error.text);
	test_caller_target_detour.detour = detour;
	result = kdetour_attach_all(attached_set, 1, KDETOUR_LIVE, &error);
	CHECK(to, !result, "caller: as it was it gives %d: %s", result, error.text);
}

void test_caller(struct test_lines *to, const char *argument)
{
	struct kdetour_error error = {};
	int result;

	result = kdetour_attach_all(attached_set, 1, KDETOUR_LIVE, &error);
	if (!CHECK(to, !result, "caller: attach %d: %s", result, error.text))
		return;
	atomic_callers(to);
	CHECK(to, test_caller_target(7) == 52 && called_inside == 1, "caller: inside its own detour");
	CHECK(to, inside_result == -EDEADLK && inside_error.code == KDETOUR_INSIDE,
	      "caller: to detach that and wait gives %d: %s", inside_result, inside_error.text);
	CHECK(to, !inside_other && !inside_no_wait, "caller: others may go, and this without waiting: %d, %d", inside_other,
	      inside_no_wait);
	again(to);
	test_line(to, true, "caller: the detour is %s", kdetour_find("kdetour_test:test_caller_target_entered_.cold") ?
		  "in pieces" : "in one piece: this kernel's compiler makes none");
	CHECK(to, test_caller_target(9) == 84 && called_inside == 2, "caller: inside the other piece");
	CHECK(to, inside_result == -EDEADLK && inside_error.code == KDETOUR_INSIDE, "caller: from there it gives %d: %s",
	      inside_result, inside_error.text);
	result = kdetour_detach_all(attached_set, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);
	CHECK(to, !result && test_caller_target(7) == 52 && called_inside == 2, "caller: from outside it is detached: %d", result);

	nested_calls = -1;
	result = kdetour_attach_all(vmap_set, 1, KDETOUR_LIVE, &error);
	CHECK(to, !result, "caller: detour what kdetour calls itself: %d: %s", result, error.text);
	nested_calls = 0;
	result = kdetour_attach_all(attached_set, 1, KDETOUR_LIVE, &error);
	CHECK(to, !result && nested_calls > 0 && nested_attach == -EDEADLK && nested_error.code == KDETOUR_INSIDE &&
	      nested_survey && !fresh.handle, "caller: attach %d, and by what that calls %d: %s", result, nested_attach,
	      nested_error.text);
	nested_calls = -1;
	result = kdetour_detach_all(vmap_set, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error) ?:
		 kdetour_detach_all(attached_set, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);
	CHECK(to, !result, "caller: both are detached: %d: %s", result, error.text);
}

/* From the init of a module: what goes after it may be neither detour nor struct nor target. */
static int __init init_function(int value)
{
	return value;
}

static int __init init_target(int value)
{
	barrier();
	return value + 1;
}

static struct kdetour of_init __initdata = { .symbol = "int_sqrt", .detour = nothing, .owner = THIS_MODULE };
static int init_detour_result, init_struct_result, init_target_result;

void __init test_caller_init(void)
{
	struct kdetour with_init = { .symbol = "int_sqrt", .detour = init_function, .owner = THIS_MODULE };
	struct kdetour at_init = { .target = init_target, .detour = nothing, .owner = THIS_MODULE };

	init_detour_result = kdetour_attach(&with_init);
	init_struct_result = kdetour_attach(&of_init);
	init_target_result = kdetour_attach(&at_init);
}

void test_from_init(struct test_lines *to, const char *argument)
{
	CHECK(to, init_detour_result == -EPERM, "init: a detour in init text gave %d", init_detour_result);
	CHECK(to, init_struct_result == -EPERM, "init: a struct in init data gave %d", init_struct_result);
	CHECK(to, init_target_result == -EPERM, "init: a target in init text gave %d", init_target_result);
}
