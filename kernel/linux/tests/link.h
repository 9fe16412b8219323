/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * link1, link2, link3: clients that detour one function, test_chain_target of kdetour_test.ko. Each writes its number
 * behind the digits that it is given, so that the result tells who was called, and in which order. It may sleep in
 * front of the original: until then the neighbour that it is going to call can leave.
 *
 * With forget=1 its exit does not detach. With hold=1 a call that sleeps goes on sleeping until that is 0.
 */
#ifndef KD_LINK_H
#define KD_LINK_H

#include <linux/delay.h>
#include <linux/module.h>
#include "kdetour.h"

static bool forget;
module_param(forget, bool, 0644);

static bool hold;
module_param(hold, bool, 0644);

static inline u64 link_digits(u64 digits, unsigned int sleep_ms)
{
	if (sleep_ms)
		do
			msleep(sleep_ms);
		while (READ_ONCE(hold));
	return digits << 4 | LINK;
}

#define LINK_MODULE(detour_)							\
	static int __init link_init(void)					\
	{									\
		return kdetour_attach(detour_);					\
	}									\
	static void __exit link_exit(void)					\
	{									\
		if (!forget)							\
			kdetour_detach(detour_);				\
	}									\
	module_init(link_init);							\
	module_exit(link_exit);							\
	MODULE_LICENSE("Dual MIT/GPL");						\
	MODULE_DESCRIPTION("one of several clients with one target")

#endif
