// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * forgetful: a client that does not detach when it goes. With fail=1 its init fails after attaching.
 * With target=NAME it detours that function of whatever module by a function that counts and calls the original.
 */
#include <linux/module.h>
#include "kdetour.h"

static bool fail;
module_param(fail, bool, 0444);

static char *target = "forgetful_target";
module_param(target, charp, 0444);

static unsigned long calls;
module_param(calls, ulong, 0444);

noinline int forgetful_target(int value);
noinline int forgetful_target(int value)
{
	barrier();
	return value + 1;
}

KDETOUR(forgetful_target, int, (int value), (value))
{
	calls++;
	return forgetful_target_original(value);
}

static int call(const char *value, const struct kernel_param *parameter)
{
	return forgetful_target(1) == 2 ? 0 : -EIO;
}
static const struct kernel_param_ops call_ops = { .set = call };
module_param_cb(call, &call_ops, NULL, 0200);

static int __init forgetful_init(void)
{
	int error;

	forgetful_target_detour.symbol = target;
	error = kdetour_attach(&forgetful_target_detour);
	if (error)
		return error;
	return fail ? -ENODEV : 0;
}

static void __exit forgetful_exit(void)
{
}

module_init(forgetful_init);
module_exit(forgetful_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("a client that forgets to detach");
