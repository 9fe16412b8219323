/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_MAIN_H
#define KD_MAIN_H

#include <linux/mutex.h>
#include <linux/types.h>
#include "kdetour.h"
#include "stats.h"

/* Held around every call into the Rust half that says so. These two note who holds it: caller.c. */
extern struct mutex kd_mutex;
void kd_lock(void);
void kd_unlock(void);

/* One set more. With kd_mutex held. */
void kd_committed(const char *event, enum kd_counter sets, enum kd_counter detours, const u64 *handles,
		  unsigned int count, u64 ns);

/* Each of these gives 0, or a code with the story told. */
int kd_check_lockdown(struct kdetour_error *story);
int kd_check_set(struct kdetour *const *detours, unsigned int count, enum kdetour_protocol protocol,
		 struct kdetour_error *story);

#endif
