/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* The parts of kdetour_bench.ko. */
#ifndef KDETOUR_BENCH_H
#define KDETOUR_BENCH_H

struct seq_file;

/* Commits of one detour, and of all. */
int bench_commits_show(struct seq_file *to, void *unused);

#endif
