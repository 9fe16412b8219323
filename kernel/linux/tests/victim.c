// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* victim: a module whose function others detour. Writing its parameter `call` calls it. */
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

MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("a module to be detoured");
