// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* Counts what stats.h names. Nothing here takes a lock. */
#include <linux/atomic.h>
#include <linux/cpumask.h>
#include <linux/kernel.h>
#include <linux/seq_file.h>
#include <linux/timekeeping.h>
#include "kdetour.h"
#include "stats.h"

#define NAME(name_, text_) text_,
static const char *const counter_names[] = { KD_COUNTERS(NAME) };
static const char *const time_names[] = { KD_TIMES(NAME) };

/* How the file calls a code: failed_NAME. crates/ffi/tests/docs.rs asks for each of enum kdetour_code. */
static const char *const code_names[] = {
	[KDETOUR_NULL] = "null",
	[KDETOUR_UNKNOWN_SYMBOL] = "unknown_symbol",
	[KDETOUR_UNREADABLE] = "unreadable",
	[KDETOUR_NOT_CODE] = "not_code",
	[KDETOUR_NOT_FUNCTION] = "not_function",
	[KDETOUR_FORBIDDEN] = "forbidden",
	[KDETOUR_REFUSED] = "refused",
	[KDETOUR_ALREADY_DETOURED] = "already_detoured",
	[KDETOUR_CHANGED] = "changed",
	[KDETOUR_NO_SLOT] = "no_slot",
	[KDETOUR_NOT_ATTACHED] = "not_attached",
	[KDETOUR_THREAD_IN_WINDOW] = "thread_in_window",
	[KDETOUR_BUSY] = "busy",
	[KDETOUR_TEXT_BUSY] = "text_busy",
	[KDETOUR_OUT_OF_MEMORY] = "out_of_memory",
	[KDETOUR_HOST] = "host",
	[KDETOUR_PREEMPTIBLE] = "preemptible",
	[KDETOUR_AMBIGUOUS_SYMBOL] = "ambiguous_symbol",
	[KDETOUR_ATOMIC] = "atomic",
	[KDETOUR_INSIDE] = "inside",
	[KDETOUR_ARGUMENT] = "argument",
	[KDETOUR_LOCKED_DOWN] = "locked_down",
	[KDETOUR_NOT_ALONE] = "not_alone",
	[KDETOUR_NO_DEBUG_REGISTER] = "no_debug_register",
	[KDETOUR_DEBUG_REGISTERS_MISSING] = "debug_registers_missing",
};

static atomic64_t counters[KD_COUNTER_COUNT];
static atomic64_t failures[ARRAY_SIZE(code_names)];
static struct {
	atomic64_t last, longest;
} times[KD_TIME_COUNT];

DEFINE_PER_CPU(unsigned long, kd_breakpoint_hits);
DEFINE_PER_CPU(unsigned long, kd_register_hits);

void kd_count(enum kd_counter counter, u64 more)
{
	atomic64_add(more, &counters[counter]);
}

void kd_count_failure(int code)
{
	if (code > 0 && code < ARRAY_SIZE(failures))
		atomic64_inc(&failures[code]);
}

void kd_took(enum kd_time what, u64 ns)
{
	s64 longest = atomic64_read(&times[what].longest);

	atomic64_set(&times[what].last, ns);
	/* A failed exchange reads what somebody else has put there. */
	while (longest < (s64)ns && !atomic64_try_cmpxchg(&times[what].longest, &longest, ns))
		;
}

u64 kd_now(void)
{
	return ktime_get_mono_fast_ns();
}

static u64 sum_of(const unsigned long __percpu *hits)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(*per_cpu_ptr(hits, cpu));
	return sum;
}

void kd_stats_show(struct seq_file *file)
{
	unsigned int i;

	for (i = 0; i < KD_COUNTER_COUNT; i++)
		seq_printf(file, "%s %lld\n", counter_names[i], atomic64_read(&counters[i]));
	seq_printf(file, "breakpoint_hits %llu\n", sum_of(&kd_breakpoint_hits));
	seq_printf(file, "register_hits %llu\n", sum_of(&kd_register_hits));
	for (i = 0; i < KD_TIME_COUNT; i++) {
		seq_printf(file, "%s_ns_last %lld\n", time_names[i], atomic64_read(&times[i].last));
		seq_printf(file, "%s_ns_longest %lld\n", time_names[i], atomic64_read(&times[i].longest));
	}
	for (i = 0; i < ARRAY_SIZE(failures); i++)
		if (code_names[i])
			seq_printf(file, "failed_%s %lld\n", code_names[i], atomic64_read(&failures[i]));
}
