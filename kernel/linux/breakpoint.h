/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_BREAKPOINT_H
#define KD_BREAKPOINT_H

/* Hooks INT3; after exit no handler runs any more. */
int kd_breakpoint_init(void);
void kd_breakpoint_exit(void);

#endif
