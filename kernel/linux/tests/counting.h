/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* A detour for any function, as often as wanted: counts, and goes on at the original. */
#ifndef KDETOUR_COUNTING_H
#define KDETOUR_COUNTING_H

#include <linux/types.h>

/* How many there are, and how far apart. */
#define COUNTING_MOST 57344
#define COUNTING_SIZE 32

/* Got with symbol_get, so that only who uses it needs counting.ko. */
struct counting {
	char *detours;		/* each may stand in for a function of any signature, in any context */
	void **originals;	/* where it goes on */
	u64 *calls;		/* how often it was called */
};

extern const struct counting counting;

#endif
