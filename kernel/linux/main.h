/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_MAIN_H
#define KD_MAIN_H

#include <linux/mutex.h>
#include <linux/types.h>

/* Held around every call into the Rust half that says so. These two note who holds it: caller.c. */
extern struct mutex kd_mutex;
void kd_lock(void);
void kd_unlock(void);

struct kdetour;
struct kdetour_error;

/* Tells the story of a failure. */
void kd_set_error(struct kdetour_error *error, int code, u32 index, u64 address, const char *text);

/* Tells a client where its original is. With kd_mutex held. */
void kd_set_original(struct kdetour *detour, u64 function);

#endif
