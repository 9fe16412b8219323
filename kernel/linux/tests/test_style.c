// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * style behaviour: what kernel_detours.h promises, and what it refuses.
 * style load ROUNDS: a static trampoline is filled and emptied while every processor calls it and its target.
 * style hold: one that is filled when this module goes.
 */
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/irqflags.h>
#include <linux/kthread.h>
#include <linux/lcm.h>
#include <linux/math.h>
#include <linux/pgtable.h>
#include <linux/string.h>
#include "kernel_detours.h"
#include "test.h"

DETOUR_TRAMPOLINE(Real_lcm, lcm);
DETOUR_TRAMPOLINE_SIZED(Small_lcm, lcm, 8);
DETOUR_TRAMPOLINE(Other_lcm, lcm);
DETOUR_TRAMPOLINE(Real_int_sqrt, int_sqrt);
DETOUR_TRAMPOLINE_NAMED(Real_version, int, (struct seq_file *file, void *value), "version_proc_show");
DETOUR_TRAMPOLINE_NAMED(Real_unknown, int, (void), "no_such_function_at_all");
static void *variable;
DETOUR_TRAMPOLINE_GLOBVAR(Real_by_address, unsigned long, (unsigned long a, unsigned long b), variable);

/* The compiler is told that lcm always gives the same: it must not know what is called. */
static unsigned long (*volatile call_lcm)(unsigned long a, unsigned long b) = lcm;
static unsigned long (*volatile call_real)(unsigned long a, unsigned long b) = Real_lcm;

static unsigned long My_lcm(unsigned long a, unsigned long b)
{
	return Real_lcm(a, b) + 1000;
}

static unsigned long My_lcm_by_address(unsigned long a, unsigned long b)
{
	return Real_by_address(a, b) + 2000;
}

static int My_version(struct seq_file *file, void *value)
{
	return Real_version(file, value);
}

static bool works(unsigned long more)
{
	return call_lcm(4, 6) == 12 + more && call_real(4, 6) == 12;
}

/* The slot of Real_lcm: behind its landing pad, its jump and its reference. */
static const u8 *slot(void)
{
	const u8 *code = (const u8 *)Real_lcm;

	OPTIMIZER_HIDE_VAR(code);
	return code + 16;
}

static void refused(struct test_lines *to, const char *what, BOOLEAN done, int code, bool as_before)
{
	struct kdetour_error error;
	int told = DetourLastError(&error);

	test_line(to, !done && told == code && error.code == code && error.text[0] && as_before,
		  "style: %s gives %d, code %d: %s", what, done, told, error.text);
}

static void nonsense(struct test_lines *to)
{
	static u8 data[64];
	unsigned long flags;
	BOOLEAN done;

	done = DetourFunctionWithTrampoline(NULL, (PBYTE)My_lcm, NULL);
	refused(to, "no trampoline", done, KDETOUR_NULL, works(0));
	done = DetourFunctionWithTrampoline((PBYTE)Real_lcm, NULL, NULL);
	refused(to, "no detour", done, KDETOUR_NULL, works(0));
	done = DetourFunctionWithTrampoline((PBYTE)My_lcm, (PBYTE)My_lcm, NULL);
	refused(to, "a function that is no trampoline", done, KDETOUR_ARGUMENT, works(0));
	done = DetourFunctionWithTrampoline(data, (PBYTE)My_lcm, NULL);
	refused(to, "data for a trampoline", done, KDETOUR_ARGUMENT, works(0));
	done = DetourFunctionWithTrampoline((PBYTE)8, (PBYTE)My_lcm, NULL);
	refused(to, "nothing for a trampoline", done, KDETOUR_ARGUMENT, works(0));
	done = DetourFunctionWithTrampoline((PBYTE)slot(), (PBYTE)My_lcm, NULL);
	refused(to, "the middle of one", done, KDETOUR_ARGUMENT, works(0));
	done = DetourFunctionWithTrampoline((PBYTE)Real_lcm, data, NULL);
	refused(to, "data for a detour", done, KDETOUR_NOT_CODE, works(0));
	done = DetourFunctionWithTrampoline((PBYTE)Small_lcm, (PBYTE)My_lcm, NULL);
	refused(to, "a trampoline that is too small", done, KDETOUR_NO_SLOT, works(0) && Small_lcm(4, 6) == 12);
	done = DetourFunctionWithTrampoline((PBYTE)Real_unknown, (PBYTE)My_lcm, NULL);
	refused(to, "an unknown name", done, KDETOUR_UNKNOWN_SYMBOL, true);
	variable = NULL;
	done = DetourFunctionWithTrampoline((PBYTE)Real_by_address, (PBYTE)My_lcm_by_address, NULL);
	refused(to, "a variable that is null", done, KDETOUR_NULL, works(0));
	done = DetourRemove((PBYTE)Real_lcm, (PBYTE)My_lcm);
	refused(to, "removing what is not in use", done, KDETOUR_NOT_ATTACHED, works(0));
	done = DetourRemove(NULL, (PBYTE)My_lcm);
	refused(to, "removing nothing", done, KDETOUR_NULL, works(0));
	local_irq_save(flags);
	done = DetourFunctionWithTrampoline((PBYTE)Real_lcm, (PBYTE)My_lcm, NULL);
	local_irq_restore(flags);
	refused(to, "interrupts that are off", done, KDETOUR_ATOMIC, works(0));
}

static bool is_read_only(const void *address)
{
	unsigned int level;
	pte_t *entry = lookup_address((unsigned long)address, &level);

	return entry && !(pte_flags(*entry) & (_PAGE_RW | _PAGE_NX));
}

static void at_once(struct test_lines *to)
{
	struct kdetour other = { .symbol = "lcm", .detour = My_lcm_by_address, .owner = THIS_MODULE };
	struct kdetour lent = { .symbol = "lcm", .detour = My_lcm, .owner = THIS_MODULE };
	struct kdetour *const others[] = { &other };
	struct kdetour_error error = {};
	PBYTE trampoline, target;
	BOOLEAN done;
	int result;

	done = DetourFunctionWithTrampolineEx((PBYTE)Real_lcm, (PBYTE)My_lcm, &trampoline, &target, NULL);
	DetourLastError(&error);
	CHECK(to, done && works(1000), "style: detoured: %s", done ? "" : error.text);
	CHECK(to, trampoline == (PBYTE)Real_lcm && target == (PBYTE)lcm, "style: and both are told");
	CHECK(to, *slot() != 0xcc, "style: the displaced instructions are in the trampoline");
	CHECK(to, is_read_only(slot()), "style: in a page that is executable and cannot be written");
	CHECK(to, DetourGetFinalCode((PBYTE)lcm, TRUE) == (PBYTE)lcm, "style: a detour's jump is not followed");
	done = DetourFunctionWithTrampoline((PBYTE)Real_lcm, (PBYTE)My_lcm, NULL);
	refused(to, "using it twice", done, KDETOUR_ALREADY_DETOURED, works(1000));
	done = DetourFunctionWithTrampoline((PBYTE)Other_lcm, (PBYTE)My_lcm, NULL);
	refused(to, "another one for this target", done, KDETOUR_ALREADY_DETOURED, works(1000));
	result = kdetour_attach_all(others, 1, KDETOUR_LIVE, &error);
	CHECK(to, result == -EEXIST && error.code == KDETOUR_ALREADY_DETOURED && works(1000),
	      "style: a detour of another kind gets %d: %s", result, error.text);
	done = DetourRemove((PBYTE)Real_lcm, (PBYTE)My_version);
	refused(to, "removing another detour", done, KDETOUR_NOT_ATTACHED, works(1000));
	CHECK(to, DetourRemove((PBYTE)Real_lcm, (PBYTE)My_lcm) && works(0), "style: removed");
	CHECK(to, *slot() == 0xcc, "style: and the trampoline is empty");
	done = DetourRemove((PBYTE)Real_lcm, (PBYTE)My_lcm);
	refused(to, "removing it twice", done, KDETOUR_NOT_ATTACHED, works(0));
	CHECK(to, DetourFunctionWithTrampoline((PBYTE)Real_lcm, (PBYTE)My_lcm, NULL) && works(1000) &&
	      DetourRemove((PBYTE)Real_lcm, (PBYTE)My_lcm) && works(0), "style: used again");

	/* Somebody else was first. */
	result = kdetour_attach_all(others, 1, KDETOUR_LIVE, &error);
	CHECK(to, !result, "style: somebody else is first: %d %s", result, error.text);
	done = DetourFunctionWithTrampoline((PBYTE)Real_lcm, (PBYTE)My_lcm, NULL);
	refused(to, "a target that is detoured", done, KDETOUR_ALREADY_DETOURED, *slot() == 0xcc);
	kdetour_detach(&other);
	CHECK(to, works(0), "style: and gone");
	/* By the calls of kdetour.h. */
	lent.trampoline = (struct kdetour_trampoline *)&error;
	{
		struct kdetour *const set[] = { &lent };

		result = kdetour_attach_all(set, 1, KDETOUR_LIVE, &error);
		CHECK(to, result == -EINVAL && error.code == KDETOUR_ARGUMENT && works(0),
		      "style: a trampoline that is none gets %d: %s", result, error.text);
	}
}

static int write_here(DELAY_TARGET_JUMP_INSERTION *delayed)
{
	unsigned long flags;
	int result, tries;

	for (tries = 0; tries < 100; tries++) {
		local_irq_save(flags);
		result = kdetour_patch_write(delayed, 0, NULL);
		local_irq_restore(flags);
		if (result != -EAGAIN)
			break;
		msleep(5);
	}
	return result ?: kdetour_sync(NULL);
}

static void delayed(struct test_lines *to)
{
	static DELAY_TARGET_JUMP_INSERTION record;

	CHECK(to, DetourFunctionWithTrampoline((PBYTE)Real_lcm, (PBYTE)My_lcm, &record) && works(0) && *slot() != 0xcc &&
	      record.length == 5, "style: delayed, and nothing is written");
	CHECK(to, !write_here(&record) && works(1000), "style: written");
	CHECK(to, DetourRemove((PBYTE)Real_lcm, (PBYTE)My_lcm) && works(0) && *slot() == 0xcc, "style: removed");
	CHECK(to, write_here(&record) == -EINVAL && works(0), "style: its record is of no use any more");
	CHECK(to, DetourFunctionWithTrampoline((PBYTE)Real_lcm, (PBYTE)My_lcm, &record) &&
	      DetourRemove((PBYTE)Real_lcm, (PBYTE)My_lcm) && works(0) && *slot() == 0xcc, "style: delayed, and never written");
}

static void by_name(struct test_lines *to)
{
	struct kdetour_error error = {};
	PBYTE target = NULL;
	BOOLEAN done;

	CHECK(to, DetourFunctionWithTrampolineEx((PBYTE)Real_version, (PBYTE)My_version, NULL, &target, NULL) &&
	      (unsigned long)target == kdetour_find("version_proc_show"), "style: by a name");
	CHECK(to, DetourRemove((PBYTE)Real_version, (PBYTE)My_version), "style: and removed");
	variable = lcm;
	done = DetourFunctionWithTrampoline((PBYTE)Real_by_address, (PBYTE)My_lcm_by_address, NULL);
	if (!done)
		DetourLastError(&error);
	/* Real_lcm is empty, and leads to the function: to the detour now. */
	CHECK(to, done && call_lcm(4, 6) == 2012 && call_real(4, 6) == 2012 && Real_by_address(4, 6) == 12,
	      "style: by a variable %s", error.text);
	CHECK(to, DetourRemove((PBYTE)Real_by_address, (PBYTE)My_lcm_by_address) && works(0) && Real_by_address(4, 6) == 12,
	      "style: and removed");
}

static void final_code(struct test_lines *to)
{
	CHECK(to, DetourGetFinalCode((PBYTE)Real_lcm, TRUE) == (PBYTE)lcm, "style: a jump is followed");
	CHECK(to, DetourGetFinalCode((PBYTE)Real_lcm, FALSE) == (PBYTE)Real_lcm, "style: or not");
	CHECK(to, DetourGetFinalCode((PBYTE)lcm, TRUE) == (PBYTE)lcm, "style: a function is itself");
	CHECK(to, !DetourGetFinalCode(NULL, TRUE) && !DetourGetFinalCode((PBYTE)8, TRUE), "style: nothing is nothing");
}

static atomic_long_t detoured, wrong;

static unsigned long My_int_sqrt(unsigned long x)
{
	atomic_long_inc(&detoured);
	return Real_int_sqrt(x);
}

static int caller(void *unused)
{
	unsigned long (*volatile call)(unsigned long x) = int_sqrt;
	unsigned long (*volatile real)(unsigned long x) = Real_int_sqrt;
	unsigned int i;

	while (!kthread_should_stop()) {
		/* The trampoline from elsewhere, too. */
		for (i = 0; i < 500; i++)
			if (call(1000000) != 1000 || real(144) != 12)
				atomic_long_inc(&wrong);
		/* RCU-tasks does not wait for whoever never sleeps. */
		usleep_range(50, 100);
	}
	return 0;
}

static void under_load(struct test_lines *to, unsigned int rounds)
{
	struct task_struct *callers[8] = {};
	unsigned int round, cpu, counted = 0;
	struct kdetour_error error = {};
	bool done = true;

	for (cpu = 0; cpu < min_t(unsigned int, num_online_cpus(), ARRAY_SIZE(callers)); cpu++) {
		callers[cpu] = kthread_create(caller, NULL, "kdetour_caller");
		if (IS_ERR(callers[cpu])) {
			callers[cpu] = NULL;
			continue;
		}
		kthread_bind(callers[cpu], cpu);
		wake_up_process(callers[cpu]);
	}
	for (round = 0; round < rounds && done; round++) {
		long before;

		done = DetourFunctionWithTrampoline((PBYTE)Real_int_sqrt, (PBYTE)My_int_sqrt, NULL);
		before = atomic_long_read(&detoured);
		msleep(10);
		counted += atomic_long_read(&detoured) > before;
		if (done)
			done = DetourRemove((PBYTE)Real_int_sqrt, (PBYTE)My_int_sqrt);
	}
	for (cpu = 0; cpu < ARRAY_SIZE(callers); cpu++)
		if (callers[cpu])
			kthread_stop(callers[cpu]);
	if (!done)
		DetourLastError(&error);
	test_line(to, done, "style: %u rounds under load %s", round, error.text);
	CHECK(to, counted == rounds, "style: calls came in %u of them", counted);
	CHECK(to, !atomic_long_read(&wrong), "style: %ld wrong results", atomic_long_read(&wrong));
}

void test_style(struct test_lines *to, const char *argument)
{
	unsigned int rounds;

	if (!strcmp(argument, "behaviour")) {
		CHECK(to, works(0), "style: a trampoline can be called before it is filled");
		nonsense(to);
		at_once(to);
		delayed(to);
		by_name(to);
		final_code(to);
	} else if (!strcmp(argument, "hold")) {
		CHECK(to, DetourFunctionWithTrampoline((PBYTE)Real_lcm, (PBYTE)My_lcm, NULL) && works(1000), "style: it stays");
	} else if (sscanf(argument, "load %u", &rounds) == 1) {
		under_load(to, rounds);
	} else {
		test_line(to, false, "style behaviour, load ROUNDS, hold");
	}
}
