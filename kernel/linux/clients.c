// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * Modules that go while a detour refers to them: their own that they forgot, or that an init which failed has left
 * behind, and those of others whose target lies in them.
 *
 * The notifier runs after the module's exit function and before its memory is freed. Whatever is found is detached
 * and drained here; its client's struct kdetour then names nothing any more. A struct kdetour in the module counts, too:
 * its original is written for as long as the detour is known.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/limits.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include "clients.h"
#include "drain.h"
#include "host.h"
#include "log.h"
#include "main.h"
#include "rust.h"
#include "stats.h"

#define RETRY_MS 1000

static bool refers_to(const struct kd_info *info, struct module *module)
{
	return info->owner == (u64)module || within_module(info->target, module) ||
	       within_module(info->detour, module) || within_module(info->announce, module);
}

/* What refers to a module that goes: as many detours at once as there is memory for. */
struct leaving {
	struct kd_draining *all;
	u64 *attached;		/* those that are to be written */
	u64 *inside;		/* those that are attached, and whose target goes */
	size_t room, count, attached_count, inside_count;
	/* Where there is no memory, one by one. */
	struct kd_draining one;
	u64 one_attached, one_inside;
};

static size_t count_of(struct module *module)
{
	struct kd_info info;
	size_t place = 0, count = 0;

	kd_lock();
	while (kd_info(&place, &info))
		count += refers_to(&info, module);
	kd_unlock();
	return count;
}

static void leaving_init(struct leaving *leaving, size_t room)
{
	memset(leaving, 0, sizeof(*leaving));
	leaving->room = room;
	leaving->all = kvcalloc(room, sizeof(*leaving->all), GFP_KERNEL);
	leaving->attached = kvcalloc(room, sizeof(*leaving->attached), GFP_KERNEL);
	leaving->inside = kvcalloc(room, sizeof(*leaving->inside), GFP_KERNEL);
	if (leaving->all && leaving->attached && leaving->inside)
		return;
	kvfree(leaving->all);
	kvfree(leaving->attached);
	kvfree(leaving->inside);
	leaving->room = 1;
	leaving->all = &leaving->one;
	leaving->attached = &leaving->one_attached;
	leaving->inside = &leaving->one_inside;
}

static void leaving_free(struct leaving *leaving)
{
	if (leaving->all == &leaving->one)
		return;
	kvfree(leaving->all);
	kvfree(leaving->attached);
	kvfree(leaving->inside);
}

/*
 * One that is planned. If its target goes, whatever was written goes with it. Else a patch that was written and not told of is
 * taken as it is, to be detached: nobody else writes it any more, the client's exit has run.
 */
static void look_at_plan(struct kd_info *info, struct module *module)
{
	if (within_module(info->target, module)) {
		kd_forget(info->handle);
	} else if (kd_check_unwritten(info->handle, NULL) == KDETOUR_ALREADY_DETOURED) {
		kd_host_sync_all();
		info->attached = !kd_written(info->handle, NULL);
	}
}

/* With kd_mutex held. */
static void find(struct leaving *leaving, struct module *module)
{
	struct kd_info info;
	size_t place = 0;

	leaving->count = leaving->attached_count = leaving->inside_count = 0;
	while (leaving->count < leaving->room && kd_info(&place, &info)) {
		if (!refers_to(&info, module))
			continue;
		leaving->all[leaving->count++] = (struct kd_draining){ .handle = info.handle, .in_flight = info.in_flight };
		if (info.planned)
			look_at_plan(&info, module);
		if (!info.attached)
			continue;
		if (within_module(info.target, module))
			leaving->inside[leaving->inside_count++] = info.handle;
		else
			leaving->attached[leaving->attached_count++] = info.handle;
	}
}

/*
 * With kd_mutex held. Where the target's own memory goes nothing has to be written, and what a dying kprobe left there
 * does not matter.
 */
static int detach(const struct leaving *leaving, struct kdetour_error *error)
{
	u64 start = kd_now();
	size_t i;
	int code;

	if (leaving->attached_count) {
		code = kd_detach(leaving->attached, leaving->attached_count, KDETOUR_LIVE, error);
		if (code)
			return code;
		kd_count(KD_DETACHES, leaving->attached_count);
		kd_log_detours("detach", leaving->attached, leaving->attached_count, kd_now() - start);
	}
	for (i = 0; i < leaving->inside_count; i++) {
		/* All detours of a target go with the first one. */
		if (kd_state(leaving->inside[i], 0) == KD_ATTACHED) {
			code = kd_forget(leaving->inside[i]);
			if (code) {
				strscpy(error->text, "out of memory", sizeof(error->text));
				return code;
			}
		}
		kd_count(KD_FORGETS, 1);
		kd_log_detours("forget", &leaving->inside[i], 1, kd_now() - start);
	}
	return 0;
}

static void let_go(struct module *module)
{
	size_t gone, count = count_of(module);
	struct kdetour_error error = {};
	struct leaving leaving;
	u64 calls;
	int code;

	if (!count)
		return;
	leaving_init(&leaving, count);
	for (;;) {
		kd_lock();
		find(&leaving, module);
		code = detach(&leaving, &error);
		kd_unlock();
		if (!leaving.count)
			break;
		if (code) {
			/* The jump would lead into freed memory: there is nothing better than to wait. */
			pr_warn("%s cannot go yet: 0x%llx: %s\n", module->name, error.address, error.text);
			msleep(RETRY_MS);
			continue;
		}
		gone = leaving.attached_count + leaving.inside_count;
		if (gone)
			pr_info("%s goes: detached %zu that it had forgotten, or whose target was in it\n", module->name, gone);
		/* They may have been drained by their clients meanwhile, which is just as well. */
		if (kd_drain(leaving.all, leaving.count, 0, &calls) == -ESTALE) {
			pr_warn("%s cannot go yet: somebody's probe is on a patch that was planned and written\n", module->name);
			msleep(RETRY_MS);
		}
	}
	leaving_free(&leaving);
}

/*
 * Modules that are being loaded, and of which this notifier will hear again, whether that succeeds or not. Before it has heard
 * of one, and after it was told that loading fails, nobody would tell when such a module's memory goes.
 */
static const struct module *coming[64];
static DEFINE_SPINLOCK(coming_lock);

/* Puts a module where another one, or none, was. */
static void replace_coming(const struct module *which, const struct module *by)
{
	unsigned int i;

	spin_lock(&coming_lock);
	for (i = 0; i < ARRAY_SIZE(coming); i++)
		if (coming[i] == which) {
			coming[i] = by;
			break;
		}
	spin_unlock(&coming_lock);
}

bool kd_is_coming(const struct module *module)
{
	bool is = false;
	unsigned int i;

	spin_lock(&coming_lock);
	for (i = 0; i < ARRAY_SIZE(coming); i++)
		is |= coming[i] == module;
	spin_unlock(&coming_lock);
	return is;
}

static int on_module(struct notifier_block *block, unsigned long event, void *data)
{
	switch (event) {
	case MODULE_STATE_COMING:
		/* Where more than that are loaded at once, functions of the others cannot be detoured yet. */
		replace_coming(NULL, data);
		break;
	case MODULE_STATE_LIVE:
		replace_coming(data, NULL);
		break;
	case MODULE_STATE_GOING:
		replace_coming(data, NULL);
		let_go(data);
		break;
	}
	return NOTIFY_OK;
}

/*
 * The first to hear of it. Static calls in the module are updated no more once the kernel's own notifier has been told,
 * and those of a detour that still runs must be, should a neighbour leave. And what another notifier detours in a module
 * that is coming is found, whoever makes that module's loading fail.
 */
static struct notifier_block module_block = { .notifier_call = on_module, .priority = INT_MAX };

int kd_clients_init(void)
{
	return register_module_notifier(&module_block);
}

void kd_clients_exit(void)
{
	unregister_module_notifier(&module_block);
}
