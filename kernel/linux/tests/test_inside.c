// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * parked: for each boundary inside each window, a task is preempted exactly there, and a live attach has to wait for it.
 * interrupted live|rendezvous: an interrupt comes exactly there, calls the target itself, and a commit comes meanwhile.
 * trampoline: a task is preempted at each boundary of a trampoline, and a detach has to wait for it.
 * stand on, then attach and off, or rendezvous: a task stands in a window while the script does something.
 */
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/string.h>
#include "park.h"
#include "window.h"

/* How long the breakpoint has to stand alone while a task is inside, and within what everything else has to happen. */
#define HOLD_MS 250
#define SOON_MS 20000
#define VALUE 20

/* Right for a call that went the old way, or through the detour. */
static long value_of(const struct window_target *target, bool detoured)
{
	return VALUE * 2 + target->plus + (detoured ? DETOURED : 0);
}

static long call(const struct window_target *target)
{
	return target->function(VALUE);
}

static bool soon(const struct window_target *target, bool (*holds)(const struct window_target *target))
{
	unsigned long end = jiffies + msecs_to_jiffies(SOON_MS);

	while (!holds(target) && time_before(jiffies, end))
		msleep(1);
	return holds(target);
}

/* One boundary: everything that has to hold while a task stands on it, and afterwards. */
static void attach_around(struct test_lines *to, const struct window_target *target, u64 at)
{
	struct park park = { .function = target->function, .value = VALUE, .at = at };
	struct kdetour *detour = window_detour(target);
	unsigned int offset = at - target->window, looks = 0;
	struct window_change change;
	bool held = true, detoured = true, finished, trapping;
	unsigned long end;
	int error;

	error = park_start(&park);
	if (!CHECK(to, !error, "parked %s at %u: a task stands there: %d", target->name, offset, error))
		return;
	error = window_start(&change, true, KDETOUR_LIVE, detour);
	trapping = !error && soon(target, window_is_trapping);
	for (end = jiffies + msecs_to_jiffies(HOLD_MS); trapping && time_before(jiffies, end); looks++) {
		/* Nothing but the breakpoint, however long: who comes now goes to the detour, who is inside stays there. */
		held &= window_is_trapping(target) && park_stands(&park) && !window_wait(&change, 0);
		detoured &= call(target) == value_of(target, true);
		msleep(5);
	}
	held &= window_is_trapping(target) && park_stands(&park) && !window_wait(&change, 0);
	CHECK(to, trapping && held && looks > 2, "parked %s at %u: the commit waits behind its breakpoint", target->name,
	      offset);
	CHECK(to, detoured, "parked %s at %u: others reach the detour", target->name, offset);
	park_release(&park);
	finished = park_finish(&park);
	CHECK(to, finished && park.result == value_of(target, false), "parked %s at %u: the task comes out with %ld",
	      target->name, offset, park.result);
	if (!CHECK(to, window_wait(&change, SOON_MS) && !change.result, "parked %s at %u: attached then: %s",
		   target->name, offset, change.error.text))
		return;
	CHECK(to, call(target) == value_of(target, true), "parked %s at %u: it is detoured", target->name, offset);
	error = kdetour_detach(detour);
	CHECK(to, !error && window_is_original(target) && call(target) == value_of(target, false),
	      "parked %s at %u: it is itself again", target->name, offset);
}

void test_parked(struct test_lines *to, const char *argument)
{
	unsigned int i, j;

	for (i = 0; i < WINDOW_TARGETS; i++)
		if (window_survey(to, &window_targets[i]))
			for (j = 0; j < window_targets[i].count; j++)
				attach_around(to, &window_targets[i], window_targets[i].boundaries[j]);
}

/* What the interrupt's handler finds; the test's own thread asks afterwards. */
static struct {
	const struct window_target *target;
	bool live;
	bool right_place, before, met, after;
} interrupt;

/* Interrupts off, on top of a task that stands inside the window. */
static void on_top(struct park *park)
{
	const struct window_target *target = interrupt.target;
	ktime_t end = ktime_add_ms(ktime_get(), interrupt.live ? SOON_MS / 2 : HOLD_MS);

	interrupt.right_place = park_is_interrupted(park);
	interrupt.before = window_is_original(target) && call(target) == value_of(target, false);
	smp_store_release(&park->arrived, true);
	/* A live commit gets as far as its breakpoint; a rendezvous, nowhere. */
	do {
		interrupt.met = window_is_trapping(target);
		cpu_relax();
	} while (!interrupt.met && ktime_before(ktime_get(), end));
	interrupt.after = (interrupt.met || window_is_original(target)) &&
			  call(target) == value_of(target, interrupt.met);
}

static void interrupt_inside(struct test_lines *to, const struct window_target *target, u64 at, bool live)
{
	struct park park = { .function = target->function, .value = VALUE, .at = at, .on_top = on_top };
	struct kdetour *detour = window_detour(target);
	unsigned int offset = at - target->window;
	struct kdetour_error story = {};
	bool finished;
	int error, result;

	memset(&interrupt, 0, sizeof(interrupt));
	interrupt.target = target;
	interrupt.live = live;
	error = park_start(&park);
	if (!CHECK(to, !error, "interrupted %s at %u: an interrupt comes: %d", target->name, offset, error))
		return;
	/* By this task itself: a rendezvous would take the numbers on its stack for somebody's place, but not its caller's. */
	result = kdetour_attach_all(&detour, 1, live ? KDETOUR_LIVE : KDETOUR_RENDEZVOUS, &story);
	finished = park_finish(&park);
	CHECK(to, interrupt.right_place, "interrupted %s at %u: exactly there", target->name, offset);
	CHECK(to, interrupt.before, "interrupted %s at %u: its own call goes the old way", target->name, offset);
	CHECK(to, interrupt.met == live && interrupt.after, "interrupted %s at %u: its next one %s", target->name, offset,
	      live ? "meets the breakpoint and reaches the detour" : "still goes the old way");
	CHECK(to, finished && park.result == value_of(target, false), "interrupted %s at %u: the task comes out with %ld",
	      target->name, offset, park.result);
	if (!CHECK(to, !result, "interrupted %s at %u: it is attached: %s", target->name, offset, story.text))
		return;
	CHECK(to, call(target) == value_of(target, true), "interrupted %s at %u: it works", target->name, offset);
	error = kdetour_detach(detour);
	CHECK(to, !error && window_is_original(target), "interrupted %s at %u: it is itself again", target->name, offset);
}

void test_interrupted(struct test_lines *to, const char *argument)
{
	bool live = strcmp(argument, "rendezvous");
	unsigned int i, j;

	/* The handler keeps the other processor to itself. */
	set_cpus_allowed_ptr(current, cpumask_of(0));
	for (i = 0; i < WINDOW_TARGETS; i++)
		if (window_survey(to, &window_targets[i]))
			for (j = 0; j < window_targets[i].count; j++)
				interrupt_inside(to, &window_targets[i], window_targets[i].boundaries[j], live);
	set_cpus_allowed_ptr(current, cpu_possible_mask);
}

/* Where the copies of the displaced instructions are: behind the landing pad, and as long as these are. */
static u64 copies_of(const struct window_target *target)
{
	u8 *slot = window_trampoline();
	static const u8 endbr[] = { 0xf3, 0x0f, 0x1e, 0xfa };	/* endbr64 */

	if (!memcmp(slot, endbr, 4))
		slot += 4;
	return memcmp(slot, target->original, WINDOW) ? 0 : (u64)slot;
}

static void detach_around(struct test_lines *to, const struct window_target *target, unsigned int offset)
{
	struct park park = { .function = target->function, .value = VALUE };
	struct kdetour *detour = window_detour(target);
	struct window_change change;
	bool held = true, finished;
	unsigned long end;
	u64 slot;
	int error;

	if (!CHECK(to, !kdetour_attach(detour), "trampoline %s at %u: attach", target->name, offset))
		return;
	slot = copies_of(target);
	park.at = slot + offset;
	error = slot ? park_start(&park) : -ENOENT;
	if (!CHECK(to, !error, "trampoline %s at %u: a task stands there: %d", target->name, offset, error)) {
		kdetour_detach(detour);
		return;
	}
	/* It may wait for the task before it writes, too: old tables of breakpoints are freed after a quiesce. */
	error = window_start(&change, false, KDETOUR_LIVE, detour);
	for (end = jiffies + msecs_to_jiffies(HOLD_MS); time_before(jiffies, end); msleep(5))
		held &= copies_of(target) == slot && park_stands(&park) && !window_wait(&change, 0);
	CHECK(to, !error && held, "trampoline %s at %u: it is not freed", target->name, offset);
	park_release(&park);
	finished = park_finish(&park);
	CHECK(to, finished && park.result == value_of(target, true), "trampoline %s at %u: the task comes out with %ld",
	      target->name, offset, park.result);
	CHECK(to, window_wait(&change, SOON_MS) && !change.result, "trampoline %s at %u: detached then: %s", target->name,
	      offset, change.error.text);
	CHECK(to, window_is_original(target), "trampoline %s at %u: it is itself again", target->name, offset);
	CHECK(to, *(u8 *)slot == 0xcc, "trampoline %s at %u: and freed", target->name, offset);
}

void test_trampoline(struct test_lines *to, const char *argument)
{
	struct window_target *target = &window_targets[1];
	unsigned int j;

	if (!window_survey(to, target))
		return;
	for (j = 0; j < target->count; j++)
		detach_around(to, target, target->boundaries[j] - target->window);
	/* On the jump back, behind all copies. */
	detach_around(to, target, WINDOW);
}

void test_stand(struct test_lines *to, const char *argument)
{
	static struct window_change change;
	static struct kdetour *detour;
	static struct park park;
	static bool stands;
	struct window_target *target = &window_targets[0];
	struct kdetour_error error = {};
	bool finished;
	int result;

	if (strcmp(argument, "on") && !stands) {
		test_line(to, false, "stand %s: no task stands there", argument);
	} else if (!strcmp(argument, "on")) {
		if (!window_survey(to, target))
			return;
		detour = window_detour(target);
		park = (struct park){ .function = target->function, .value = VALUE, .at = target->boundaries[1] };
		result = park_start(&park);
		stands = CHECK(to, !result, "stand: a task stands in the window: %d", result);
	} else if (!strcmp(argument, "attach")) {
		result = window_start(&change, true, KDETOUR_LIVE, detour);
		CHECK(to, !result && soon(target, window_is_trapping), "stand: a commit has begun");
	} else if (!strcmp(argument, "off")) {
		stands = false;
		CHECK(to, window_is_trapping(target) && park_stands(&park), "stand: it is not over yet");
		park_release(&park);
		finished = park_finish(&park);
		CHECK(to, finished && window_wait(&change, SOON_MS) && !change.result, "stand: now it is: %s",
		      change.error.text);
		CHECK(to, !kdetour_detach(detour) && window_is_original(target), "stand: it is itself again");
	} else {
		stands = false;
		result = kdetour_attach_all(&detour, 1, KDETOUR_RENDEZVOUS, &error);
		CHECK(to, result == -EAGAIN && error.code == KDETOUR_THREAD_IN_WINDOW && error.address == park.at,
		      "stand: a rendezvous gives %d: %s", result, error.text);
		CHECK(to, window_is_original(target) && park_stands(&park), "stand: nothing is written");
		park_release(&park);
		finished = park_finish(&park);
		CHECK(to, finished && park.result == value_of(target, false), "stand: the task comes out with %ld",
		      park.result);
		result = kdetour_attach_all(&detour, 1, KDETOUR_RENDEZVOUS, &error);
		CHECK(to, !result && call(target) == value_of(target, true), "stand: then it gives %d", result);
		CHECK(to, !kdetour_detach(detour) && window_is_original(target), "stand: it is itself again");
	}
}
