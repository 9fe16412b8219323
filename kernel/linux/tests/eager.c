// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * eager: a client that does not wait for the module that it detours. It attaches to a function of victim.ko when that
 * is loaded, before its init runs; and tries to once more when it goes, and to its own when it goes itself.
 */
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/string.h>
#include "kdetour.h"

static int came = 1, init_text = 1, went = 1;
static unsigned long calls;
module_param(came, int, 0444);
module_param(init_text, int, 0444);
module_param(went, int, 0444);
module_param(calls, ulong, 0444);

KDETOUR(victim_function, int, (int value), (value))
{
	calls++;
	return victim_function_original(value);
}

static int attach_to(const char *symbol)
{
	static struct kdetour other;

	other = (struct kdetour){ .symbol = symbol, .detour = victim_function_detour.detour, .owner = THIS_MODULE };
	return kdetour_attach(&other);
}

static int on_module(struct notifier_block *block, unsigned long event, void *data)
{
	struct module *module = data;

	if (strcmp(module->name, "victim"))
		return NOTIFY_OK;
	if (event == MODULE_STATE_COMING) {
		came = kdetour_attach(&victim_function_detour);
		init_text = attach_to("victim:victim_init");
	} else if (event == MODULE_STATE_GOING) {
		went = attach_to("victim_function");
	}
	return NOTIFY_OK;
}

static struct notifier_block block = { .notifier_call = on_module };

static int __init eager_init(void)
{
	return register_module_notifier(&block);
}

static void __exit eager_exit(void)
{
	unregister_module_notifier(&block);
	/* Its text is about to go. */
	if (attach_to("version_proc_show") != -EPERM)
		pr_err("BUG: eager could attach in its exit\n");
}

module_init(eager_init);
module_exit(eager_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("a client that attaches to modules that come");
