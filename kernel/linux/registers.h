/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_REGISTERS_H
#define KD_REGISTERS_H

/* Processors that come from now on get the debug registers that are set; after exit none is set any more. */
int kd_registers_init(void);
void kd_registers_exit(void);

#endif
