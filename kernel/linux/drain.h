/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_DRAIN_H
#define KD_DRAIN_H

#include <linux/types.h>

/* A detour that was detached. */
struct kd_draining {
	u64 handle;
	u64 in_flight;		/* its per-CPU counter, or 0 */
};

/*
 * Waits until no call is inside any of these detours and their trampolines, for timeout_ms at most (0: for ever),
 * and frees their slots. Takes kd_mutex for the last step only. 0, -EBUSY with the number of calls in *calls,
 * -EEXIST if one of them was attached again meanwhile, or -ENOMEM.
 */
int kd_drain(const struct kd_draining *detours, unsigned int count, unsigned int timeout_ms, u64 *calls);

#endif
