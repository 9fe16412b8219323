/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_COLD_H
#define KD_COLD_H

/* Goes through all of the kernel's symbols, twice. 0 or -ENOMEM. */
int kd_cold_init(void);
void kd_cold_exit(void);
/* Tells the address of each piece of a function of the kernel itself; ends with the first answer that is not 0, and gives that. */
int kd_cold_pieces(const char *name, int (*found)(void *data, unsigned long address), void *data);

#endif
