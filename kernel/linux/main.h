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

struct kd_request;

/* Tells the story of a failure. */
void kd_set_error(struct kdetour_error *error, int code, u32 index, u64 address, const char *text);

/* Tells a client where its original is. With kd_mutex held. */
void kd_set_original(struct kdetour *detour, u64 function);

/* Hands the story of a failure to the caller, and counts it; the errno. Any context. */
int kd_answer(const struct kdetour_error *story, struct kdetour_error *error);
/* The same, and tells the log. */
int kd_failed(const char *what, struct kdetour *const *detours, unsigned int count, const struct kdetour_error *story,
	      struct kdetour_error *error);
/* Tells the log what has happened. */
void kd_tell(const char *what, struct kdetour *const *detours, unsigned int count);
/* One set more. With kd_mutex held. */
void kd_committed(const char *event, enum kd_counter sets, enum kd_counter detours, const u64 *handles,
		  unsigned int count, u64 ns);

/* Each of these gives 0, or a code with the story told. */
int kd_check_lockdown(struct kdetour_error *story);
int kd_check_set(struct kdetour *const *detours, unsigned int count, enum kdetour_protocol protocol,
		 struct kdetour_error *story);
/* Turns what a client says into requests; looks up the names. With kd_mutex held. */
int kd_requests_of(struct kdetour *const *detours, unsigned int count, struct kd_request *requests,
		   struct kdetour_error *story);

#endif
