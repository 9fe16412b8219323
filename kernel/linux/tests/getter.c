// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* getter: a client that does not depend on kdetour.ko, since it looks its functions up. */
#include <linux/module.h>
#include "kdetour.h"

KDETOUR(int_sqrt, unsigned long, (unsigned long value), (value))
{
	return int_sqrt_original(value);
}

static struct kdetour *const set[] = { &int_sqrt_detour };

static int __init getter_init(void)
{
	typeof(&kdetour_attach_all) attach = symbol_get(kdetour_attach_all);
	int error;

	if (!attach)
		return -ENOENT;
	error = attach(set, 1, KDETOUR_LIVE, NULL);
	symbol_put(kdetour_attach_all);
	return error;
}

static void __exit getter_exit(void)
{
	typeof(&kdetour_detach_all) detach = symbol_get(kdetour_detach_all);

	detach(set, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, NULL);
	symbol_put(kdetour_detach_all);
}

module_init(getter_init);
module_exit(getter_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("a client by symbol_get");
