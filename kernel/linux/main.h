/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_MAIN_H
#define KD_MAIN_H

#include <linux/mutex.h>

/* Held around every call into the Rust half that says so. */
extern struct mutex kd_mutex;

#endif
