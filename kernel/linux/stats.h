/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* What has happened since the module was loaded: the file `stats` in debugfs. */
#ifndef KD_STATS_H
#define KD_STATS_H

#include <linux/percpu.h>
#include <linux/types.h>

struct seq_file;

/* Each is a line of the file, by the name beside it. docs/kernel/debugfs.md says what it counts. */
#define KD_COUNTERS(X)				\
	X(KD_ATTACH_SETS, "attach_sets")	\
	X(KD_ATTACHES, "attaches")		\
	X(KD_PLANS, "plans")			\
	X(KD_DETACH_SETS, "detach_sets")	\
	X(KD_DETACHES, "detaches")		\
	X(KD_FORGETS, "forgets")		\
	X(KD_RECLAIMS, "reclaims")		\
	X(KD_RETRIES, "retries")		\
	X(KD_SYNCS, "syncs")			\
	X(KD_QUIESCES, "quiesces")		\
	X(KD_SETTLES, "settles")		\
	X(KD_RENDEZVOUS, "rendezvous")

/* Each is two lines, NAME_ns_last and NAME_ns_longest. */
#define KD_TIMES(X)				\
	X(KD_SESSION_TIME, "session")		\
	X(KD_COMMIT_TIME, "commit")		\
	X(KD_PARKED_TIME, "parked")

#define KD_ENUMERATOR(name_, text_) name_,
enum kd_counter { KD_COUNTERS(KD_ENUMERATOR) KD_COUNTER_COUNT };
enum kd_time { KD_TIMES(KD_ENUMERATOR) KD_TIME_COUNT };
#undef KD_ENUMERATOR

/* Any context but a trap handler's. */
void kd_count(enum kd_counter counter, u64 more);
/* One more failure with this code of enum kdetour_code. */
void kd_count_failure(int code);
/* Something took so long. Interrupts may be off. */
void kd_took(enum kd_time what, u64 ns);
/* Nanoseconds on a clock that any context may read. */
u64 kd_now(void);

/* Breakpoints that were answered. A trap handler may do no more than add to its own processor's word. */
DECLARE_PER_CPU(unsigned long, kd_breakpoint_hits);
/* The same for debug registers. */
DECLARE_PER_CPU(unsigned long, kd_register_hits);

/* All of it, one `name value` a line. */
void kd_stats_show(struct seq_file *file);

#endif
