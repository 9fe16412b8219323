/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_REPORT_H
#define KD_REPORT_H

#include <linux/types.h>
#include "kdetour.h"

/* Tells the story of a failure. */
void kd_set_error(struct kdetour_error *error, int code, u32 index, u64 address, const char *text);
/* The name of the detour that the story is about. */
const char *kd_name_of(struct kdetour *const *detours, unsigned int count, const struct kdetour_error *story);

/* Hands the story of a failure to the caller, and counts it; the errno. Any context. */
int kd_answer(const struct kdetour_error *story, struct kdetour_error *error);
/* The same, and tells the log. */
int kd_failed(const char *what, struct kdetour *const *detours, unsigned int count, const struct kdetour_error *story,
	      struct kdetour_error *error);
/* Tells the log what has happened. */
void kd_tell(const char *what, struct kdetour *const *detours, unsigned int count);

#endif
