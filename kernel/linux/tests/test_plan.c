// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * plan behaviour: what the calls promise, on a function that nobody else calls.
 * plan kprobe: a kprobe comes between plan and write, armed or not.
 * plan load ROUNDS: vfs_read planned, written by this module with all processors parked, and detached, under load.
 * plan hold, plan locked: planned before the kernel is locked down, to be written afterwards.
 */
#include <linux/atomic.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/irqflags.h>
#include <linux/kprobes.h>
#include <linux/linkage.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/smp.h>
#include <linux/stop_machine.h>
#include <linux/string.h>
#include <asm/sync_core.h>
#include "test.h"

/* Three instructions in the window: who stood inside would be lost. */
asm(".pushsection .text\n"
    ".balign 16\n"
    ".type test_planned, @function\n"
    "test_planned:\n"
    "	endbr64\n"
    "	push %r15\n"			/* 41 57 */
    "	push %r14\n"			/* 41 56 */
    "	push %r13\n"			/* 41 55 */
    "	mov %rdi, %r13\n"
    "	lea 1(%r13, %rdi), %rax\n"
    "	pop %r13\n"
    "	pop %r14\n"
    "	pop %r15\n"
    "	" ASM_RET
    ".size test_planned, . - test_planned\n"
    ".popsection\n");
extern long test_planned(long value);

#define VALUE 20
#define PLAIN (2 * VALUE + 1)
#define DETOURED 1000

static long (*planned_original)(long value);

static noinline long planned_detour(long value)
{
	return READ_ONCE(planned_original)(value) + DETOURED;
}

static noinline long other_detour(long value)
{
	return -1;
}

static struct kdetour planned = {
	.target = test_planned, .detour = planned_detour, .original = (void **)&planned_original, .owner = THIS_MODULE,
};
static struct kdetour *const one[] = { &planned };
static struct kdetour_patch patch;

static bool is_unwritten(void)
{
	return !memcmp((void *)patch.address, patch.expected, patch.expected_length) && test_planned(VALUE) == PLAIN;
}

static bool is_written(void)
{
	return !memcmp((void *)patch.address, patch.patched, patch.length) && test_planned(VALUE) == PLAIN + DETOURED;
}

static bool plan(struct test_lines *to)
{
	struct kdetour_error error = {};
	int result = kdetour_plan(&planned, KDETOUR_LOCAL, &patch, &error);

	return CHECK(to, !result && planned.handle && is_unwritten(), "plan: planned, and nothing is written: %d %s", result,
		     error.text);
}

static bool give_back(struct test_lines *to)
{
	struct kdetour_error error = {};
	int result = kdetour_detach_all(one, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);

	return CHECK(to, !result && !planned.handle && is_unwritten(), "plan: given back: %d %s", result, error.text);
}

/* Nobody else comes to this function: with interrupts off nobody comes here either. */
static int write_here(int back, struct kdetour_error *error)
{
	unsigned long flags;
	int result, tries;

	memset(error, 0, sizeof(*error));
	for (tries = 0; tries < 100; tries++) {
		local_irq_save(flags);
		result = kdetour_patch_write(&patch, back, error);
		local_irq_restore(flags);
		if (result != -EAGAIN)
			break;
		msleep(5);
	}
	return result ?: kdetour_sync(error);
}

static void expect(struct test_lines *to, const char *what, int result, const struct kdetour_error *error, int errno_,
		   int code, bool untouched)
{
	test_line(to, result == errno_ && error->code == code && error->text[0] && untouched,
		  "plan: %s gives %d, code %d: %s", what, result, error->code, error->text);
}

struct writing {
	int back, result;
	struct kdetour_error error;
	atomic_t arrived;
	bool done;
};

static void in_interrupt_handler(void *argument)
{
	struct writing *writing = argument;

	writing->result = in_hardirq() ? kdetour_patch_write(&patch, writing->back, &writing->error) : -EINVAL;
}

/* On every processor, interrupts off. */
static int all_parked(void *argument)
{
	struct writing *writing = argument;

	if (atomic_inc_return(&writing->arrived) == 1) {
		while (atomic_read(&writing->arrived) < num_online_cpus())
			cpu_relax();
		writing->result = irqs_disabled() ? kdetour_patch_write(&patch, writing->back, &writing->error) : -EINVAL;
		smp_store_release(&writing->done, true);
	} else {
		while (!smp_load_acquire(&writing->done))
			cpu_relax();
	}
	sync_core();
	return 0;
}

/* Where nobody is preempted in the kernel, nobody stands in a window while all are parked. */
static int write_parked(int back, struct kdetour_error *error)
{
	struct writing writing;
	int tries;

	for (tries = 0; tries < 100; tries++) {
		writing = (struct writing){ .back = back, .arrived = ATOMIC_INIT(0) };
		if (stop_machine(all_parked, &writing, cpu_online_mask))
			return -EIO;
		if (writing.result != -EAGAIN)
			break;
		msleep(5);
	}
	*error = writing.error;
	return writing.result;
}

/* Everything that is refused while something is planned, and leaves it so. */
static void refusals(struct test_lines *to)
{
	struct kdetour other = { .target = test_planned, .detour = other_detour, .owner = THIS_MODULE };
	struct kdetour *const others[] = { &other };
	struct mutex *text_mutex = (struct mutex *)kdetour_find("text_mutex");
	struct kdetour_patch kept = patch, again;
	struct kdetour_error error = {};
	unsigned long flags;
	int result;

	result = kdetour_plan(&planned, KDETOUR_LOCAL, &again, &error);
	expect(to, "planning it twice", result, &error, -EEXIST, KDETOUR_ALREADY_DETOURED, is_unwritten());
	result = kdetour_written(&planned, &error);
	expect(to, "saying that it is written", result, &error, -ESTALE, KDETOUR_CHANGED, is_unwritten());
	result = kdetour_patch_write(&patch, 1, &error);
	expect(to, "taking back what is not written", result, &error, -ESTALE, KDETOUR_CHANGED, is_unwritten());
	patch.patched[1] ^= 1;
	result = kdetour_patch_write(&patch, 0, &error);
	patch = kept;
	expect(to, "a record that was changed", result, &error, -EINVAL, KDETOUR_ARGUMENT, is_unwritten());
	memset(&again, 0, sizeof(again));
	result = kdetour_patch_write(&again, 0, &error);
	expect(to, "a record of nothing", result, &error, -EINVAL, KDETOUR_NOT_ATTACHED, is_unwritten());
	mutex_lock(text_mutex);
	result = kdetour_patch_write(&patch, 0, &error);
	mutex_unlock(text_mutex);
	expect(to, "while somebody patches", result, &error, -EAGAIN, KDETOUR_TEXT_BUSY, is_unwritten());

	/* Another client was faster. */
	result = kdetour_attach_all(others, 1, KDETOUR_LIVE, &error);
	CHECK(to, !result && test_planned(VALUE) == -1, "plan: somebody else attaches meanwhile: %d %s", result, error.text);
	result = kdetour_patch_write(&patch, 0, &error);
	expect(to, "bytes that have changed", result, &error, -ESTALE, KDETOUR_CHANGED, test_planned(VALUE) == -1);
	CHECK(to, error.address >= patch.address && error.address < patch.address + patch.length, "plan: and says where");
	result = kdetour_detach(&other);
	CHECK(to, !result && is_unwritten(), "plan: that one goes: %d", result);

	local_irq_save(flags);
	result = kdetour_plan(&other, KDETOUR_LOCAL, &again, &error);
	local_irq_restore(flags);
	expect(to, "planning with interrupts off", result, &error, -EPERM, KDETOUR_ATOMIC, !other.handle);
	local_irq_save(flags);
	result = kdetour_written(&planned, &error);
	local_irq_restore(flags);
	expect(to, "telling with interrupts off", result, &error, -EPERM, KDETOUR_ATOMIC, is_unwritten());
	local_irq_save(flags);
	result = kdetour_sync(&error);
	local_irq_restore(flags);
	expect(to, "a sync with interrupts off", result, &error, -EPERM, KDETOUR_ATOMIC, true);
}

static void nonsense(struct test_lines *to)
{
	struct kdetour nothing = { .detour = planned_detour, .owner = THIS_MODULE };
	struct kdetour_error error = {};
	struct kdetour_patch record;
	int result;

	result = kdetour_plan(NULL, KDETOUR_LOCAL, &record, &error);
	expect(to, "planning null", result, &error, -EINVAL, KDETOUR_NULL, true);
	result = kdetour_plan(&nothing, KDETOUR_LOCAL, &record, &error);
	expect(to, "no target", result, &error, -EINVAL, KDETOUR_NULL, !nothing.handle);
	nothing.symbol = "no_such_function_at_all";
	result = kdetour_plan(&nothing, KDETOUR_LOCAL, &record, &error);
	expect(to, "an unknown name", result, &error, -ENOENT, KDETOUR_UNKNOWN_SYMBOL, !nothing.handle);
	nothing.symbol = "notify_die";
	result = kdetour_plan(&nothing, KDETOUR_LOCAL, &record, &error);
	expect(to, "the kprobe blacklist", result, &error, -EPERM, KDETOUR_FORBIDDEN, !nothing.handle);
	result = kdetour_plan(&planned, KDETOUR_LIVE, &record, &error);
	expect(to, "a record for another protocol", result, &error, -EINVAL, KDETOUR_ARGUMENT, !planned.handle);
	result = kdetour_plan(&planned, 9, NULL, &error);
	expect(to, "no such protocol", result, &error, -EINVAL, KDETOUR_ARGUMENT, !planned.handle);
	nothing.method = KDETOUR_INT3;
	result = kdetour_plan(&nothing, KDETOUR_LIVE, NULL, &error);
	expect(to, "a plan of a breakpoint", result, &error, -EINVAL, KDETOUR_ARGUMENT, !nothing.handle);
	result = kdetour_patch_write(NULL, 0, &error);
	expect(to, "writing null", result, &error, -EINVAL, KDETOUR_NULL, true);
	result = kdetour_written(NULL, &error);
	expect(to, "null is written", result, &error, -EINVAL, KDETOUR_NULL, true);
	result = kdetour_written(&planned, &error);
	expect(to, "written, and never planned", result, &error, -EINVAL, KDETOUR_NOT_ATTACHED, true);
}

static void behaviour(struct test_lines *to)
{
	struct writing writing = { .back = 0 };
	struct kdetour_error error = {};
	int result, i;

	nonsense(to);
	if (!plan(to))
		return;
	CHECK(to, patch.length == 5 && patch.expected_length == 6 && patch.boundary_count == 3 && !patch.boundary[0] &&
	      patch.boundary[1] == 2 && patch.boundary[2] == 4, "plan: with a record");
	for (i = 0; i < patch.boundary_count; i++)
		CHECK(to, !memcmp((void *)patch.resume[i], patch.expected + patch.boundary[i], 2),
		      "plan: boundary %u has its copy", patch.boundary[i]);
	CHECK(to, (void *)planned_original == (void *)patch.trampoline && planned_original(VALUE) == PLAIN,
	      "plan: the original can be called");
	refusals(to);
	result = write_here(0, &error);
	CHECK(to, !result && is_written(), "plan: written with interrupts off: %d %s", result, error.text);
	result = write_here(0, &error);
	expect(to, "writing it twice", result, &error, -ESTALE, KDETOUR_CHANGED, is_written());
	result = kdetour_detach_all(one, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);
	expect(to, "a detach, and not told", result, &error, -EEXIST, KDETOUR_ALREADY_DETOURED, is_written());
	result = kdetour_detach_all(one, 1, KDETOUR_LIVE, KDETOUR_NO_WAIT, &error);
	expect(to, "one that does not wait", result, &error, -EEXIST, KDETOUR_ALREADY_DETOURED, is_written());
	result = write_here(1, &error);
	CHECK(to, !result && is_unwritten(), "plan: taken back: %d %s", result, error.text);
	do {
		/* On another processor, so that it is an interrupt there. */
		int cpu = get_cpu();

		smp_call_function_single(cpumask_any_but(cpu_online_mask, cpu), in_interrupt_handler, &writing, 1);
		put_cpu();
	} while (writing.result == -EAGAIN);
	CHECK(to, !writing.result && !kdetour_sync(&error) && is_written(), "plan: written by an interrupt's handler: %d %s",
	      writing.result, writing.error.text);
	result = kdetour_written(&planned, &error);
	CHECK(to, !result && is_written(), "plan: told: %d %s", result, error.text);
	result = kdetour_written(&planned, &error);
	expect(to, "telling it twice", result, &error, -EEXIST, KDETOUR_ALREADY_DETOURED, is_written());
	result = write_here(1, &error);
	expect(to, "taking back what is attached", result, &error, -EINVAL, KDETOUR_NOT_ATTACHED, is_written());
	result = kdetour_plan(&planned, KDETOUR_LOCAL, &patch, &error);
	expect(to, "planning what is attached", result, &error, -EEXIST, KDETOUR_ALREADY_DETOURED, is_written());
	give_back(to);
	result = write_here(0, &error);
	expect(to, "writing what has gone", result, &error, -EINVAL, KDETOUR_NOT_ATTACHED, is_unwritten());

	/* Given back, and never written; then another plan of the same bytes, with another slot or not. */
	if (plan(to) && give_back(to) && plan(to)) {
		result = kdetour_attach_all(one, 1, KDETOUR_LIVE, &error);
		CHECK(to, !result && is_written(), "plan: attached live: %d %s", result, error.text);
		result = write_here(1, &error);
		expect(to, "the record of that", result, &error, -EINVAL, KDETOUR_NOT_ATTACHED, is_written());
		give_back(to);
	}
	result = kdetour_plan(&planned, KDETOUR_RENDEZVOUS, NULL, &error);
	CHECK(to, !result && is_unwritten(), "plan: planned for a rendezvous: %d %s", result, error.text);
	result = kdetour_attach_all(one, 1, KDETOUR_RENDEZVOUS, &error);
	CHECK(to, !result && is_written(), "plan: and attached by it: %d %s", result, error.text);
	give_back(to);
	/* Members of a set: one that was written and not told of keeps the others. */
	if (plan(to) && !write_here(0, &error)) {
		struct kdetour other = { .symbol = "lcm", .detour = other_detour, .owner = THIS_MODULE };
		struct kdetour *const both[] = { &other, &planned };

		result = kdetour_attach_all(both, 1, KDETOUR_LIVE, &error);
		CHECK(to, !result, "plan: another one is attached: %d %s", result, error.text);
		result = kdetour_detach_all(both, 2, KDETOUR_LIVE, 1000, &error);
		expect(to, "a set with it", result, &error, -EEXIST, KDETOUR_ALREADY_DETOURED, is_written() && other.handle);
		CHECK(to, error.index == 1, "plan: and says which");
		CHECK(to, !write_here(1, &error) && !kdetour_detach_all(both, 2, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error) &&
		      is_unwritten() && !other.handle, "plan: taken back, and both go: %s", error.text);
	}
}

static void beside_kprobes(struct test_lines *to)
{
	struct kprobe probe = {};
	struct kdetour_error error = {};
	int result, i;

	for (i = 0; i < 2 && plan(to); i++) {
		probe = (struct kprobe){ .addr = (void *)patch.address, .flags = i ? KPROBE_FLAG_DISABLED : 0 };
		result = register_kprobe(&probe);
		CHECK(to, !result, "plan: a kprobe comes, %s: %d", i ? "disabled" : "armed", result);
		result = write_here(0, &error);
		expect(to, "writing beside it", result, &error, -EOPNOTSUPP, KDETOUR_REFUSED, test_planned(VALUE) == PLAIN);
		CHECK(to, error.address == patch.address, "plan: and says where");
		unregister_kprobe(&probe);
		result = write_here(0, &error);
		CHECK(to, !result && is_written(), "plan: written once it has gone: %d %s", result, error.text);
		/* On the jump that nobody has told of. */
		probe = (struct kprobe){ .addr = (void *)patch.address, .flags = i ? KPROBE_FLAG_DISABLED : 0 };
		result = register_kprobe(&probe);
		CHECK(to, !result, "plan: one on the jump: %d", result);
		result = write_here(1, &error);
		expect(to, "taking it back beside that", result, &error, -EOPNOTSUPP, KDETOUR_REFUSED,
		       test_planned(VALUE) == PLAIN + DETOURED);
		result = kdetour_detach_all(one, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);
		expect(to, "giving it back beside that", result, &error, -EEXIST, KDETOUR_ALREADY_DETOURED,
		       test_planned(VALUE) == PLAIN + DETOURED);
		unregister_kprobe(&probe);
		result = write_here(1, &error);
		CHECK(to, !result && is_unwritten(), "plan: taken back once it has gone: %d %s", result, error.text);
		give_back(to);
	}
}

static ssize_t (*read_original)(struct file *file, char __user *to, size_t count, loff_t *position);
static DEFINE_PER_CPU(unsigned long, inside_read);
static atomic_long_t reads;

static notrace ssize_t counted_read(struct file *file, char __user *to, size_t count, loff_t *position)
{
	ssize_t result;

	this_cpu_inc(inside_read);
	atomic_long_inc(&reads);
	result = READ_ONCE(read_original)(file, to, count, position);
	this_cpu_dec(inside_read);
	return result;
}

static struct kdetour read_detour = {
	.symbol = "vfs_read", .detour = counted_read, .original = (void **)&read_original, .in_flight = &inside_read,
	.owner = THIS_MODULE,
};

static void under_load(struct test_lines *to, unsigned int rounds)
{
	struct kdetour_error error = {};
	unsigned int round, counted = 0;
	int result = 0;

	for (round = 0; round < rounds && !result; round++) {
		long before;

		result = kdetour_plan(&read_detour, KDETOUR_LOCAL, &patch, &error);
		if (!result)
			result = write_parked(0, &error);
		before = atomic_long_read(&reads);
		msleep(20);
		counted += atomic_long_read(&reads) > before;
		/* Now and then it is taken back by the same way. */
		if (!result && round % 4 == 3)
			result = write_parked(1, &error);
		else if (!result)
			result = kdetour_written(&read_detour, &error);
		if (!result)
			result = kdetour_detach(&read_detour);
	}
	test_line(to, !result, "plan: %u rounds under load: %d %s", round, result, error.text);
	/* Four loads call it all the time. */
	CHECK(to, counted == rounds, "plan: calls came in %u of them", counted);
	CHECK(to, !read_detour.handle, "plan: nothing is left");
}

static void held_while_locked(struct test_lines *to)
{
	struct kdetour_error error = {};
	struct kdetour_patch record;
	int result;

	result = write_here(0, &error);
	expect(to, "writing in a kernel that is locked down since", result, &error, -EPERM, KDETOUR_LOCKED_DOWN, is_unwritten());
	give_back(to);
	result = kdetour_plan(&planned, KDETOUR_LOCAL, &record, &error);
	expect(to, "planning there", result, &error, -EPERM, KDETOUR_LOCKED_DOWN, !planned.handle);
}

void test_plan(struct test_lines *to, const char *argument)
{
	unsigned int rounds;

	if (!strcmp(argument, "behaviour"))
		behaviour(to);
	else if (!strcmp(argument, "kprobe"))
		beside_kprobes(to);
	else if (!strcmp(argument, "hold"))
		plan(to);
	else if (!strcmp(argument, "locked"))
		held_while_locked(to);
	else if (sscanf(argument, "load %u", &rounds) == 1)
		under_load(to, rounds);
	else
		test_line(to, false, "plan behaviour, kprobe, load ROUNDS, hold, locked");
}
