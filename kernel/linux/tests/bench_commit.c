// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * What a commit takes: of one detour, and of every sixteenth function of the kernel at once; and for how long interrupts are
 * off.
 *
 * In guest time of QEMU's -icount with one processor, on which nothing else runs. A timer fires every 20 us meanwhile; it is
 * late by as long as interrupts were off, and by what the timer itself takes, which a run without a commit shows.
 */
#include <linux/hrtimer.h>
#include <linux/kernel.h>
#include <linux/ktime.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include "bench.h"
#include "functions.h"

#define PERIOD_NS 20000
#define ROUNDS 5
/* All functions would take the emulator too long. */
#define STEP 16

static struct hrtimer timer;
static s64 latest;

static enum hrtimer_restart on_timer(struct hrtimer *fired)
{
	ktime_t now = ktime_get();

	latest = max(latest, ktime_to_ns(ktime_sub(now, hrtimer_get_expires(fired))));
	hrtimer_forward(fired, now, PERIOD_NS);
	return HRTIMER_RESTART;
}

static void watch(void)
{
	latest = 0;
	hrtimer_init(&timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
	timer.function = on_timer;
	hrtimer_start(&timer, PERIOD_NS, HRTIMER_MODE_REL_PINNED_HARD);
}

static s64 watched(void)
{
	hrtimer_cancel(&timer);
	return latest;
}

static void row(struct seq_file *to, const char *what, const char *how, s64 ns)
{
	seq_printf(to, "bench %s%s %lld.%lld us\n", what, how, ns / 1000, ns % 1000 / 100);
}

/* The least of some rounds: what is measured, and for how long interrupts were off. */
struct measured {
	s64 attach, attach_off, detach, detach_off;
};

static int measure(struct kdetour **set, unsigned int count, enum kdetour_protocol protocol, unsigned int rounds,
		   struct measured *least)
{
	*least = (struct measured){ S64_MAX, S64_MAX, S64_MAX, S64_MAX };
	for (; rounds; rounds--) {
		ktime_t start;
		int error;

		watch();
		start = ktime_get();
		error = kdetour_attach_all(set, count, protocol, NULL);
		least->attach = min(least->attach, ktime_to_ns(ktime_sub(ktime_get(), start)));
		least->attach_off = min(least->attach_off, watched());
		if (error)
			return error;
		watch();
		start = ktime_get();
		/* The drain is a matter of its own. */
		error = kdetour_detach_all(set, count, protocol, KDETOUR_NO_WAIT, NULL);
		least->detach = min(least->detach, ktime_to_ns(ktime_sub(ktime_get(), start)));
		least->detach_off = min(least->detach_off, watched());
		/* So that it is planned anew each time. */
		error = error ?: kdetour_detach_all(set, count, protocol, KDETOUR_FOR_EVER, NULL);
		if (error)
			return error;
	}
	return 0;
}

static void commit(struct seq_file *to, struct kdetour **set, unsigned int count, enum kdetour_protocol protocol,
		   unsigned int rounds, const char *how)
{
	struct measured least;
	int error = measure(set, count, protocol, rounds, &least);

	if (error) {
		seq_printf(to, "FAIL %s: %d\n", how, error);
		return;
	}
	row(to, "attach-", how, least.attach);
	row(to, "detach-", how, least.detach);
	row(to, "interrupts-off-attach-", how, least.attach_off);
	row(to, "interrupts-off-detach-", how, least.detach_off);
}

int bench_commits_show(struct seq_file *to, void *unused)
{
	static struct functions functions;
	s64 least = S64_MAX;
	struct kdetour **one;
	ktime_t start;
	int i;

	if (functions_init(&functions)) {
		seq_puts(to, "FAIL counting.ko is not loaded, or there is no memory\n");
		return 0;
	}
	for (i = 0; i < ROUNDS; i++) {
		start = ktime_get();
		synchronize_rcu_tasks();
		least = min(least, ktime_to_ns(ktime_sub(ktime_get(), start)));
	}
	row(to, "grace-period", "", least);
	watch();
	synchronize_rcu_tasks();
	row(to, "interrupts-off-without-a-commit", "", watched());
	one = functions_add(&functions, (void *)kdetour_find("vfs_read"));
	commit(to, one, 1, KDETOUR_LIVE, ROUNDS, "one-live");
	commit(to, one, 1, KDETOUR_RENDEZVOUS, ROUNDS, "one-rendezvous");
	(*one)->method = KDETOUR_INT3;
	commit(to, one, 1, KDETOUR_LIVE, ROUNDS, "one-int3");
	(*one)->method = KDETOUR_DEBUG_REGISTER;
	commit(to, one, 1, KDETOUR_LIVE, ROUNDS, "one-debug-register");
	(*one)->method = KDETOUR_JUMP;
	if (functions_find(&functions, STEP)) {
		seq_puts(to, "FAIL no memory\n");
		goto out;
	}
	seq_printf(to, "bench detours-of-many %u detours\n", functions.count);
	commit(to, functions.set, functions.count, KDETOUR_LIVE, 1, "many-live");
	commit(to, functions.set, functions.count, KDETOUR_RENDEZVOUS, 1, "many-rendezvous");
out:
	functions_exit(&functions);
	return 0;
}
