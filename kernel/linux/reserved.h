/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* Static trampolines, which other modules reserve in their own text: kernel_detours.h. */
#ifndef KD_RESERVED_H
#define KD_RESERVED_H

#include <linux/types.h>

struct kdetour;
struct kdetour_error;
struct kdetour_trampoline;

/* The one whose code begins there; NULL if none does. */
struct kdetour_trampoline *kd_reserved_at(u64 code);
/* Where its slot is. 0, or a code with the story told: the detour's trampoline was not reserved, or not by its owner. */
int kd_reserved_slot(const struct kdetour *detour, u32 index, u64 *slot, u64 *len, struct kdetour_error *story);
/*
 * Lets its callers fall into its slot (`to` is 0), or jump elsewhere, while they come and go. 0 or -ENOMEM. May sleep. With kd_mutex
 * held.
 */
int kd_reserved_lead(struct kdetour_trampoline *one, u64 to);
/* Any context: where a processor goes on that has met the breakpoint of a trampoline that is led elsewhere; 0 if it is none. */
u64 kd_reserved_breakpoint(u64 at);

#endif
