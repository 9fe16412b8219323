/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * The log: one line for each detour that comes or goes and for each call that fails, at the level of pr_debug, for
 * machines to read. Off, it costs a jump label; docs/kernel/log.md says how to turn it on.
 */
#ifndef KD_LOG_H
#define KD_LOG_H

#include <linux/types.h>

struct kdetour_error;

/* One line for each of these detours; `ns` is what all of them took. With kd_mutex held. */
void kd_log_detours(const char *event, const u64 *handles, unsigned int count, u64 ns);
/* `name` is that of the detour that the story is about. */
void kd_log_failure(const char *call, const char *name, unsigned int count, const struct kdetour_error *story);

#endif
