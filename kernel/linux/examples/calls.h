/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What calls.ko does for other modules: it detours functions that are chosen while the machine runs, and counts their calls. */
#ifndef CALLS_H
#define CALLS_H

#include <linux/types.h>

#define CALLS_DETOURS 4		/* at a time */

/*
 * Detours the function that begins there. 0; -EALREADY: it is one of these; -EMFILE: there are CALLS_DETOURS; or what kdetour_attach says.
 * The log says what became of it, too. Context of these, but for the last: process; may sleep.
 */
int calls_detour(unsigned long function);
/* 0, or -ENOENT: it is none of these. How often it was called is in the log. */
int calls_release(unsigned long function);
void calls_release_all(void);
/* How many there are. One whose function has gone with its module is none any more. */
unsigned int calls_number(void);
/* Whether a detour of kdetour_next is one of these, and how often it has been called. Context: any. */
bool calls_of(u64 handle, unsigned long *count);

#endif
