/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* Every function of the running kernel that can be detoured, with a counting detour for each. */
#ifndef KDETOUR_FUNCTIONS_H
#define KDETOUR_FUNCTIONS_H

#include <linux/types.h>
#include "counting.h"
#include "kdetour.h"

#define FUNCTIONS_REASONS 40

struct functions {
	const struct counting *counting;
	struct kdetour *detours;
	struct kdetour **set;		/* points to each of them */
	unsigned int count;
	/* What was seen on the way. */
	unsigned int symbols, padding, surveyed;
	struct {
		char name[32];
		unsigned int count;
	} refused[FUNCTIONS_REASONS];
};

/* Makes room, and gets counting.ko. 0 or an errno. */
int functions_init(struct functions *functions);
/* None of them is attached. */
void functions_exit(struct functions *functions);
/* Adds one; what becomes of it is told when it is attached. Its place in `set`, or NULL if there is no room. */
struct kdetour **functions_add(struct functions *functions, void *target);
/* Surveys every step-th function, and makes a detour for each that is accepted. May be called again. */
int functions_find(struct functions *functions, unsigned int step);

#endif
