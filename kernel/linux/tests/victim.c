// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * victim: a module whose function others detour. Its init calls it, and so does writing its parameter `call`. With fail=1
 * its init fails after that.
 */
#include <linux/module.h>

noinline int victim_function(int value);
noinline int victim_function(int value)
{
	barrier();
	return value + 1;
}

static int call(const char *value, const struct kernel_param *parameter)
{
	return victim_function(1) == 2 ? 0 : -EIO;
}
static const struct kernel_param_ops call_ops = { .set = call };
module_param_cb(call, &call_ops, NULL, 0200);

static bool fail;
module_param(fail, bool, 0444);

static int __init victim_init(void)
{
	if (victim_function(1) != 2)
		return -EIO;
	return fail ? -ENODEV : 0;
}

static void __exit victim_exit(void)
{
}

module_init(victim_init);
module_exit(victim_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("a module to be detoured");
