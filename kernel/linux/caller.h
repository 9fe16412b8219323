/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_CALLER_H
#define KD_CALLER_H

#include <linux/types.h>

struct kdetour;
struct kdetour_error;

/* Whether whoever calls may do so at all: it may sleep, and is not inside kdetour already. Else the story is told. */
int kd_check_caller(struct kdetour_error *story);

/*
 * Whether it may wait until nobody is inside these detours: it is not inside one of them itself. Else the story is
 * told.
 */
int kd_check_waiter(struct kdetour *const *detours, unsigned int count, struct kdetour_error *story);

#endif
