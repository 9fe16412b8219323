/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_LIST_H
#define KD_LIST_H

/* The files in debugfs. Without debugfs the module works all the same. */
void kd_list_init(void);
void kd_list_exit(void);

#endif
