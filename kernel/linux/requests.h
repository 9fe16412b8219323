/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_REQUESTS_H
#define KD_REQUESTS_H

#include <linux/types.h>
#include "kdetour.h"

struct kd_request;

/*
 * Turns what a client says into requests; looks up the names. 0, or a code with the story told. With kd_mutex held.
 */
int kd_requests_of(struct kdetour *const *detours, unsigned int count, struct kd_request *requests,
		   struct kdetour_error *story);

/* Tells a client where its original is. With kd_mutex held. */
void kd_set_original(struct kdetour *detour, u64 function);

#endif
