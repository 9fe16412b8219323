/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* Targets whose windows have an inside, and a detour of one of them. */
#ifndef KD_WINDOW_H
#define KD_WINDOW_H

#include <linux/completion.h>
#include <linux/types.h>
#include "test.h"

#define WINDOW 5
#define MOST_BOUNDARIES 5

struct window_target {
	const char *name;
	long (*function)(long value);
	/* The function's value is twice its argument and this. */
	long plus;
	/* As the survey says: */
	u64 window;
	u64 boundaries[MOST_BOUNDARIES];
	unsigned int count;
	u8 original[WINDOW];
};

#define WINDOW_TARGETS 3
extern struct window_target window_targets[WINDOW_TARGETS];

/* What the detour of a target adds to its value. */
#define DETOURED 1000

/* Asks the survey for the window and for all boundaries in it. */
bool window_survey(struct test_lines *to, struct window_target *target);
bool window_is_original(const struct window_target *target);
/* A breakpoint at the first byte, and all others as they were. */
bool window_is_trapping(const struct window_target *target);

/* An attach or a detach in a thread of its own, on processor 0. */
struct window_change {
	struct kdetour *detour;
	enum kdetour_protocol protocol;
	bool attach;
	int result;
	struct kdetour_error error;
	struct completion done;
};

/* The one detour of these tests: of `target`, without a count of the calls inside. */
struct kdetour *window_detour(const struct window_target *target);
void *window_trampoline(void);

int window_start(struct window_change *change, bool attach, enum kdetour_protocol protocol, struct kdetour *detour);
/* Whether it is over, after at most that long. */
bool window_wait(struct window_change *change, unsigned int ms);

#endif
