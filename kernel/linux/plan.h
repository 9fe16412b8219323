/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * Plans that their clients may write themselves, at any moment and in any context: kdetour_patch_write. Each has its window's
 * pages mapped, writable. All calls here with kd_mutex held; a handle that is no such plan's is left alone.
 */
#ifndef KD_PLAN_H
#define KD_PLAN_H

#include <linux/types.h>

/* Nobody finds it any more; true if somebody could. Once kd_plans_wait has returned nobody is at it either. */
bool kd_plan_close(u64 handle);
void kd_plans_wait(void);
/* It may be written again. */
void kd_plan_reopen(u64 handle);
/* It is closed, and over. */
void kd_plan_free(u64 handle);

#endif
