// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * forgetful: a client that does not detach when it goes. With fail=1 its init fails after attaching.
 * With target=NAME it detours that function of whatever module by a function that counts and calls the original. With
 * also=NAME it detours another one in the same set, and detaches the set when it goes. With plan=1 it only plans, and with write=1
 * writes that itself, and tells nobody.
 */
#include <linux/module.h>
#include "kdetour.h"

static bool fail;
module_param(fail, bool, 0444);

static char *target = "forgetful_target";
module_param(target, charp, 0444);

static bool plan, write;
module_param(plan, bool, 0444);
module_param(write, bool, 0444);

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

static char *also;
module_param(also, charp, 0444);

KDETOUR(forgetful_also, unsigned long, (unsigned long a, unsigned long b, unsigned long c, unsigned long d), (a, b, c, d))
{
	return forgetful_also_original(a, b, c, d);
}

static struct kdetour *const both[] = { &forgetful_target_detour, &forgetful_also_detour };

static int call(const char *value, const struct kernel_param *parameter)
{
	return forgetful_target(1) == 2 ? 0 : -EIO;
}
static const struct kernel_param_ops call_ops = { .set = call };
module_param_cb(call, &call_ops, NULL, 0200);

/* Nobody calls the target before it has been told to. */
static int plan_only(void)
{
	struct kdetour_patch patch;
	int error = kdetour_plan(&forgetful_target_detour, KDETOUR_LOCAL, &patch, NULL);

	if (!error && write)
		error = kdetour_patch_write(&patch, 0, NULL) ?: kdetour_sync(NULL);
	return error;
}

static int __init forgetful_init(void)
{
	int error;

	forgetful_target_detour.symbol = target;
	forgetful_also_detour.symbol = also;
	if (plan)
		return plan_only();
	error = kdetour_attach_all(both, also ? 2 : 1, KDETOUR_LIVE, NULL);
	if (error)
		return error;
	return fail ? -ENODEV : 0;
}

static void __exit forgetful_exit(void)
{
	struct kdetour_error error;

	if (also && kdetour_detach_all(both, 2, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error))
		pr_info("forgetful: %u of the set: %s\n", error.index, error.text);
}

module_init(forgetful_init);
module_exit(forgetful_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("a client that forgets to detach");
