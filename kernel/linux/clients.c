// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * Modules that go while a detour refers to them: their own that they forgot, or that an init which failed has left
 * behind, and those of others whose target lies in them.
 *
 * The notifier runs after the module's exit function and before its memory is freed. Whatever is found is detached
 * and drained here; its client's struct kdetour then names nothing any more.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include "clients.h"
#include "drain.h"
#include "main.h"
#include "rust.h"

#define RETRY_MS 1000

static bool refers_to(const struct kd_info *info, struct module *module)
{
	return info->owner == (u64)module || within_module(info->target, module) || within_module(info->detour, module);
}

/* One detour that refers to the module; false if there is none. Called with kd_mutex held. */
static bool find(struct module *module, struct kd_info *info)
{
	size_t i;

	for (i = 0; kd_info(i, info); i++)
		if (refers_to(info, module))
			return true;
	return false;
}

/* The target's own memory goes: nothing has to be written there, and what a dying kprobe left there does not matter. */
static int detach(struct module *module, const struct kd_info *info, struct kdetour_error *error)
{
	if (!within_module(info->target, module))
		return kd_detach(&info->handle, 1, false, error);
	strscpy(error->text, "out of memory", sizeof(error->text));
	return kd_forget(info->handle);
}

static void let_go(struct module *module)
{
	struct kdetour_error error;
	struct kd_draining draining;
	struct kd_info info;
	bool found;
	u64 calls;
	int code;

	for (;;) {
		mutex_lock(&kd_mutex);
		found = find(module, &info);
		code = found && info.attached ? detach(module, &info, &error) : 0;
		mutex_unlock(&kd_mutex);
		if (!found)
			return;
		if (code) {
			/* The jump would lead into freed memory: there is nothing better than to wait. */
			pr_warn("%s cannot go yet: %ps: %s\n", module->name, (void *)info.target, error.text);
			msleep(RETRY_MS);
			continue;
		}
		if (info.attached)
			pr_info("%s goes: detached %ps\n", module->name, (void *)info.target);
		draining.handle = info.handle;
		draining.in_flight = info.in_flight;
		draining.client = NULL;
		/* It may have been drained by its client meanwhile, which is just as well. */
		kd_drain(&draining, 1, 0, &calls);
	}
}

static int on_module(struct notifier_block *block, unsigned long event, void *data)
{
	if (event == MODULE_STATE_GOING)
		let_go(data);
	return NOTIFY_OK;
}

static struct notifier_block module_block = { .notifier_call = on_module };

int kd_clients_init(void)
{
	return register_module_notifier(&module_block);
}

void kd_clients_exit(void)
{
	unregister_module_notifier(&module_block);
}
