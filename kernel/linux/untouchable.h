/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_UNTOUCHABLE_H
#define KD_UNTOUCHABLE_H

#include <linux/types.h>

/* After kd_lookup_init. */
void kd_untouchable_init(void);
/* Whether the function that begins here must not be patched, whatever the kernel's own lists say. */
bool kd_untouchable(unsigned long function);

#endif
