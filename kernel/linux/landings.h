/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_LANDINGS_H
#define KD_LANDINGS_H

struct kd_function;
struct module;

/* Sorts those of the kernel itself, which never change. 0 or -ENOMEM. */
int kd_landings_init(void);
void kd_landings_exit(void);
/* Fills in the landings of the function whose entry is there; `module` is where it lies, NULL for the kernel. */
void kd_find_landings(struct kd_function *function, const struct module *module);

#endif
