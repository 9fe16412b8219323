/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_HOOK_PATH_H
#define KD_HOOK_PATH_H

#include <linux/types.h>

struct notifier_block;

/*
 * Asks this kernel what runs between a breakpoint and `hook`, which is in the chain of die notifiers already. 0, or an
 * errno with a message.
 */
int kd_hook_path_init(const struct notifier_block *hook);
/* Whether the function is on that way: a breakpoint in it would lead back to itself. */
bool kd_on_hook_path(unsigned long function);

#endif
