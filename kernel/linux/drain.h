/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_DRAIN_H
#define KD_DRAIN_H

#include <linux/types.h>

struct kdetour;

/* A detour that was detached. */
struct kd_draining {
	u64 handle;
	u64 in_flight;		/* its per-CPU counter, or 0 */
	struct kdetour *client;	/* told when it is gone; NULL for nobody */
};

/*
 * Waits until no call is inside any of these detours and their trampolines, for timeout_ms at most (0: for ever),
 * and frees their slots. Takes kd_mutex now and then, for a moment. 0, -EBUSY with the number of calls in *calls,
 * -EEXIST if one of them was attached again meanwhile, -ESTALE if one is planned and its patch in the text, or -ENOMEM.
 */
int kd_drain(const struct kd_draining *detours, unsigned int count, unsigned int timeout_ms, u64 *calls);

/*
 * Drains what an attach has left that failed after it had begun: calls may have come to its detours in between, and its caller has no
 * handle to wait for them by. So this waits for as long as it takes. Handles that name nothing that drains, as 0, are none.
 */
void kd_drain_left(const u64 *handles, unsigned int count);

#endif
