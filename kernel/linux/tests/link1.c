// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
#define LINK 1
#include "link.h"

KDETOUR(test_chain_target, u64, (u64 digits, unsigned int sleep_ms), (digits, sleep_ms))
{
	return test_chain_target_original(link_digits(digits, sleep_ms), sleep_ms);
}

LINK_MODULE(&test_chain_target_detour);
