/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_MAIN_H
#define KD_MAIN_H

#include <linux/mutex.h>
#include <linux/types.h>

/* Held around every call into the Rust half that says so. */
extern struct mutex kd_mutex;

struct kdetour;

/* Tells a client where its original is. With kd_mutex held. */
void kd_set_original(struct kdetour *detour, u64 function);

#endif
