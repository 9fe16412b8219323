/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_REWRITTEN_H
#define KD_REWRITTEN_H

#include <linux/types.h>

struct module;

/* Sorts the places of the kernel itself, which never change. 0 or -ENOMEM. */
int kd_rewritten_init(void);
void kd_rewritten_exit(void);
/*
 * Whether one of these bytes may be of a jump label or a static call, so that the kernel is worth asking. `module` is where
 * they lie, NULL for the kernel.
 */
bool kd_may_be_rewritten(unsigned long from, unsigned long end, const struct module *module);

#endif
