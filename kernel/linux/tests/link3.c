// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* As link1 and link2, but without KDETOUR: the original is called through a pointer. */
#define LINK 3
#include "link.h"

static DEFINE_PER_CPU(unsigned long, in_flight);
static u64 (*original)(u64 digits, unsigned int sleep_ms);

static notrace u64 detour(u64 digits, unsigned int sleep_ms)
{
	u64 result;

	this_cpu_inc(in_flight);
	digits = link_digits(digits, sleep_ms);
	result = READ_ONCE(original)(digits, sleep_ms);
	this_cpu_dec(in_flight);
	return result;
}

static struct kdetour by_hand = {
	.symbol = "test_chain_target",
	.detour = detour,
	.original = (void **)&original,
	.in_flight = &in_flight,
	.owner = THIS_MODULE,
};

LINK_MODULE(&by_hand);
