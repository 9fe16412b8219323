/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_CLIENTS_H
#define KD_CLIENTS_H

#include <linux/types.h>

/* Watches modules go: what they leave attached is detached before their memory is freed. */
int kd_clients_init(void);
void kd_clients_exit(void);

struct module;
/* Whether a module that is being loaded is known here, so that its end will be heard of. Any context but NMI. */
bool kd_is_coming(const struct module *module);

#endif
