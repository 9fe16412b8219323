/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_CLIENTS_H
#define KD_CLIENTS_H

/* Watches modules go: what they leave attached is detached before their memory is freed. */
int kd_clients_init(void);
void kd_clients_exit(void);

#endif
