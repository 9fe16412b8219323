// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* kdetour.ko: loading and unloading, and what other modules call. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/security.h>
#include <linux/slab.h>
#include "breakpoint.h"
#include "caller.h"
#include "clients.h"
#include "cold.h"
#include "drain.h"
#include "host.h"
#include "kdetour.h"
#include "landings.h"
#include "list.h"
#include "log.h"
#include "lookup.h"
#include "main.h"
#include "plan.h"
#include "registers.h"
#include "report.h"
#include "requests.h"
#include "reserved.h"
#include "rewritten.h"
#include "rust.h"
#include "stats.h"
#include "untouchable.h"

static unsigned int attempts = 20;
module_param(attempts, uint, 0644);
MODULE_PARM_DESC(attempts, "how often a rendezvous or a local commit that finds a task in a window tries again, every 5 ms (default: 20)");

#define RETRY_MS 5
#define MOST_AT_ONCE 65536
#define RETRY_FOR_EVER_MS 200
#define TELL_MS 10000

/* A kernel can be locked down at any time, and never unlocked: what is attached then can only be detached. */
int kd_check_lockdown(struct kdetour_error *story)
{
	if (security_locked_down(LOCKDOWN_KPROBES))
		kd_set_error(story, KDETOUR_LOCKED_DOWN, 0, 0, "this kernel is locked down: its text must not be patched");
	return story->code;
}

void kd_committed(const char *event, enum kd_counter sets, enum kd_counter detours, const u64 *handles,
		  unsigned int count, u64 ns)
{
	kd_count(sets, 1);
	kd_count(detours, count);
	kd_took(KD_SESSION_TIME, ns);
	kd_log_detours(event, handles, count, ns);
}

int kd_check_set(struct kdetour *const *detours, unsigned int count, enum kdetour_protocol protocol,
		 struct kdetour_error *story)
{
	if (kd_check_caller(story))
		return story->code;
	if (!detours && count)
		kd_set_error(story, KDETOUR_NULL, 0, 0, "the set of detours is null");
	else if (count > MOST_AT_ONCE)
		kd_set_error(story, KDETOUR_NO_SLOT, 0, 0, "too many detours for one set");
	else if (protocol != KDETOUR_LIVE && protocol != KDETOUR_RENDEZVOUS && protocol != KDETOUR_LOCAL)
		kd_set_error(story, KDETOUR_ARGUMENT, 0, 0, "there is no such protocol");
	return story->code;
}

/* A rendezvous may find a task in a window, or somebody else patching: both pass. */
static bool worth_another_try(int code, unsigned int tries)
{
	if ((code != KDETOUR_THREAD_IN_WINDOW && code != KDETOUR_TEXT_BUSY) || tries >= attempts)
		return false;
	kd_count(KD_RETRIES, 1);
	msleep(RETRY_MS);
	return true;
}

/* Those with a trampoline of their client's are planned by now; it has to lead into its slot. 0, or a code with the story told. */
static int fill_trampolines(const struct kd_request *requests, unsigned int count, struct kdetour_error *story)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		struct kdetour *one = (struct kdetour *)requests[i].announce;

		if (!requests[i].slot)
			continue;
		if (!requests[i].handle)
			kd_set_error(story, KDETOUR_ARGUMENT, i, (u64)one->target,
				     "a detour with a trampoline of its client's is planned first: kdetour_plan");
		else if (kd_reserved_lead(one->trampoline, 0))
			kd_set_error(story, KDETOUR_OUT_OF_MEMORY, i, 0, "out of memory");
		else
			continue;
		return story->code;
	}
	return 0;
}

/* Whoever has planned one of them and could write it is kept away meanwhile, and for ever once it is attached. */
static int attach(const struct kd_request *requests, unsigned int count, u32 protocol, u64 *handles,
		  struct kdetour_error *story)
{
	bool closed = false;
	unsigned int i;
	int code;

	code = fill_trampolines(requests, count, story);
	if (code)
		return code;
	for (i = 0; i < count; i++)
		closed |= kd_plan_close(requests[i].handle);
	if (closed)
		kd_plans_wait();
	code = kd_attach(requests, count, protocol, handles, story);
	for (i = 0; closed && i < count; i++)
		if (code)
			kd_plan_reopen(requests[i].handle);
		else
			kd_plan_free(requests[i].handle);
	return code;
}

/*
 * Whoever gets an error takes his detours and their memory along. What a failed attach has left is drained before, unless this is
 * a call inside of one of them, counted by the same counter, which would wait for itself: then it drains until somebody's module goes.
 */
static void drain_left(struct kdetour *const *detours, const u64 *handles, unsigned int count)
{
	struct kdetour_error story = {};
	unsigned int i;

	for (i = 0; i < count && !handles[i]; i++)
		;
	if (i == count)
		return;
	if (kd_check_waiter(detours, count, &story))
		pr_warn("attaching %s has failed, and its calls cannot be waited for: %s\n", kd_name_of(detours, count, &story), story.text);
	else
		kd_drain_left(handles, count);
}

int kdetour_attach_all(struct kdetour *const *detours, unsigned int count, enum kdetour_protocol protocol,
		       struct kdetour_error *error)
{
	struct kdetour_error story = {};
	struct kd_request *requests;
	unsigned int i, tries = 0;
	u64 *handles;
	int code;

	code = kd_check_set(detours, count, protocol, &story);
	if (!code)
		code = kd_check_lockdown(&story);
	if (code)
		return kd_failed("attach", detours, count, &story, error);
	if (!count)
		return 0;
	might_sleep();
	requests = kvcalloc(count, sizeof(*requests), GFP_KERNEL);
	handles = kvcalloc(count, sizeof(*handles), GFP_KERNEL);
	if (!requests || !handles) {
		kd_set_error(&story, KDETOUR_OUT_OF_MEMORY, 0, 0, "out of memory");
		code = story.code;
		goto out;
	}
	do {
		u64 start;

		memset(handles, 0, count * sizeof(*handles));
		kd_lock();
		start = kd_now();
		code = kd_requests_of(detours, count, requests, &story);
		if (!code)
			code = attach(requests, count, protocol, handles, &story);
		if (!code)
			kd_committed("attach", KD_ATTACH_SETS, KD_ATTACHES, handles, count, kd_now() - start);
		for (i = 0; !code && i < count; i++) {
			detours[i]->handle = handles[i];
			detours[i]->target = (void *)requests[i].target;
		}
		kd_unlock();
		if (code)
			drain_left(detours, handles, count);
	} while (worth_another_try(code, tries++));
	if (!code)
		kd_tell("attached", detours, count);
out:
	kvfree(requests);
	kvfree(handles);
	return code ? kd_failed("attach", detours, count, &story, error) : 0;
}
EXPORT_SYMBOL_GPL(kdetour_attach_all);

/*
 * Detaches those that are still attached; all others must be draining, or gone with their target, of which `gone` tells.
 * `draining` is what is to be drained then: the handles of this moment, whatever somebody else does to the structs. 0, or a code
 * with the story told.
 */
static int detach_attached(struct kdetour *const *detours, unsigned int count, u32 protocol, u64 *handles,
			   struct kd_draining *draining, unsigned int *drains, struct kdetour_error *gone,
			   struct kdetour_error *story)
{
	unsigned int i, attached = 0;
	u64 start = kd_now();
	int code;

	*drains = 0;
	for (i = 0; i < count; i++) {
		struct kdetour *one = detours[i];
		int state = one && one->handle ? kd_state(one->handle, (u64)one) : 0;

		/* One that was attached once, and whose target went with its module, does not keep the others. */
		if (!state && one && one->handle) {
			if (!gone->code)
				kd_set_error(gone, KDETOUR_NOT_ATTACHED, i, (u64)one->target,
					     "this detour is not attached any more: its target's module has gone");
			continue;
		}
		if (!state) {
			kd_set_error(story, KDETOUR_NOT_ATTACHED, i, 0, "this detour is not attached");
			return story->code;
		}
		/* The story is that of the plan that its client has written, and not said so. */
		if (state == KD_DRAINING && kd_check_unwritten(one->handle, story)) {
			story->index = i;
			return story->code;
		}
		draining[*drains].handle = one->handle;
		draining[*drains].in_flight = (u64)(uintptr_t)one->in_flight;
		draining[(*drains)++].client = one;
		if (state == KD_ATTACHED)
			handles[attached++] = one->handle;
	}
	if (!attached)
		return 0;
	code = kd_detach(handles, attached, protocol, story);
	if (!code)
		kd_committed("detach", KD_DETACH_SETS, KD_DETACHES, handles, attached, kd_now() - start);
	/* The story counts the attached ones only. */
	for (i = 0; code && story->index < attached && i < count; i++)
		if (detours[i]->handle == handles[story->index]) {
			story->index = i;
			break;
		}
	return code;
}

static int drain_all(const struct kd_draining *draining, unsigned int count, unsigned int timeout_ms,
		     struct kdetour_error *story)
{
	u64 calls = 0;

	if (!count)
		return 0;
	switch (kd_drain(draining, count, timeout_ms, &calls)) {
	case 0:
		return 0;
	case -EBUSY:
		kd_set_error(story, KDETOUR_BUSY, 0, 0, "");
		snprintf(story->text, sizeof(story->text), "%llu calls are still inside the detours; try again later",
			 calls);
		return story->code;
	case -EEXIST:
		kd_set_error(story, KDETOUR_NOT_ATTACHED, 0, 0, "one of the set was attached or detached meanwhile");
		return story->code;
	case -ESTALE:
		kd_set_error(story, KDETOUR_ALREADY_DETOURED, 0, 0, "one of the set is planned, and its patch was written meanwhile");
		return story->code;
	default:
		kd_set_error(story, KDETOUR_OUT_OF_MEMORY, 0, 0, "detached, but out of memory; call again");
		return story->code;
	}
}

int kdetour_detach_all(struct kdetour *const *detours, unsigned int count, enum kdetour_protocol protocol,
		       unsigned int timeout_ms, struct kdetour_error *error)
{
	unsigned long told = jiffies - msecs_to_jiffies(TELL_MS);
	struct kdetour_error story = {}, gone = {};
	struct kd_draining *draining;
	unsigned int tries, drains;
	u64 *handles;
	int code;

	code = kd_check_set(detours, count, protocol, &story);
	if (!code && timeout_ms != KDETOUR_NO_WAIT)
		code = kd_check_waiter(detours, count, &story);
	if (code)
		return kd_failed("detach", detours, count, &story, error);
	if (!count)
		return 0;
	might_sleep();
	for (;;) {
		handles = kvcalloc(count, sizeof(*handles), GFP_KERNEL);
		draining = kvcalloc(count, sizeof(*draining), GFP_KERNEL);
		if (handles && draining)
			break;
		kvfree(handles);
		kvfree(draining);
		kd_set_error(&story, KDETOUR_OUT_OF_MEMORY, 0, 0, "out of memory");
		if (timeout_ms != KDETOUR_FOR_EVER)
			return kd_failed("detach", detours, count, &story, error);
		msleep(RETRY_FOR_EVER_MS);
	}
	for (tries = 0;; tries++) {
		kd_lock();
		code = detach_attached(detours, count, protocol, handles, draining, &drains, &gone, &story);
		kd_unlock();
		if (!code && timeout_ms != KDETOUR_NO_WAIT)
			code = drain_all(draining, drains, timeout_ms, &story);
		if (!code || code == KDETOUR_NOT_ATTACHED || code == KDETOUR_ALREADY_DETOURED)
			break;
		/* It has to be detached, and the other processor may stay. */
		if (code == KDETOUR_NOT_ALONE && timeout_ms == KDETOUR_FOR_EVER) {
			pr_info("detaching %s live: another processor has come\n", kd_name_of(detours, count, &story));
			protocol = KDETOUR_LIVE;
			continue;
		}
		if (timeout_ms != KDETOUR_FOR_EVER) {
			if (!worth_another_try(code, tries))
				break;
			continue;
		}
		if (time_after(jiffies, told + msecs_to_jiffies(TELL_MS))) {
			told = jiffies;
			pr_info("waiting to detach %s: %s\n", kd_name_of(detours, count, &story), story.text);
		}
		msleep(RETRY_FOR_EVER_MS);
	}
	kvfree(handles);
	kvfree(draining);
	if (code)
		return kd_failed("detach", detours, count, &story, error);
	if (gone.code)
		return kd_failed("detach", detours, count, &gone, error);
	kd_tell("detached", detours, count);
	return 0;
}
EXPORT_SYMBOL_GPL(kdetour_detach_all);

unsigned long kdetour_find(const char *symbol)
{
	return symbol ? kd_k_kallsyms_lookup_name(symbol) : 0;
}
EXPORT_SYMBOL_GPL(kdetour_find);

size_t kdetour_survey(void *target, char *text, size_t size)
{
	struct kdetour_error story = {};
	size_t len;

	if (!text || !size)
		return 0;
	if (kd_check_caller(&story))
		return scnprintf(text, size, "error %s\nverdict no\n", story.text);
	kd_lock();
	len = kd_survey((u64)target, (u8 *)text, size);
	kd_unlock();
	return len;
}
EXPORT_SYMBOL_GPL(kdetour_survey);

bool kdetour_next(size_t *place, struct kdetour_live *live)
{
	struct kdetour_error story;
	struct kd_info *info;
	bool found = false;

	if (!place || !live || kd_check_caller(&story))
		return false;
	info = kmalloc(sizeof(*info), GFP_KERNEL);
	if (!info)
		return false;
	kd_lock();
	if (kd_info(place, info)) {
		/* A client depends on this module, and its detours go before it does. */
		const struct module *owner = (const struct module *)info->owner;

		*live = (struct kdetour_live){ .handle = info->handle, .target = info->target, .detour = info->detour, .calls = info->calls,
					       .method = info->method, .attached = info->attached };
		strscpy(live->owner, owner ? owner->name : "-", sizeof(live->owner));
		found = true;
	}
	kd_unlock();
	kfree(info);
	return found;
}
EXPORT_SYMBOL_GPL(kdetour_next);

size_t kdetour_length(const void *bytes, size_t size, u64 address, u64 *leads_to)
{
	u64 unused;

	return bytes ? kd_length(bytes, size, address, leads_to ?: &unused) : 0;
}
EXPORT_SYMBOL_GPL(kdetour_length);

/* What the kernel's tables say, so that it is found fast. */
static int init_tables(void)
{
	kd_untouchable_init();
	return kd_cold_init() ?: kd_landings_init() ?: kd_rewritten_init();
}

static void free_tables(void)
{
	kd_rewritten_exit();
	kd_landings_exit();
	kd_cold_exit();
}

static void stop(void)
{
	kd_lock();
	kd_stop();
	kd_unlock();
	kd_host_free_all();
}

static int __init kd_init(void)
{
	int error = security_locked_down(LOCKDOWN_KPROBES);

	if (error) {
		pr_err("this kernel is locked down: its text must not be patched\n");
		return error;
	}
	error = kd_lookup_init();
	if (error)
		return error;
	error = init_tables();
	if (error)
		goto no_tables;
	kd_start();
	error = kd_breakpoint_init();
	if (error)
		goto no_breakpoints;
	error = kd_registers_init();
	if (error)
		goto no_registers;
	error = kd_clients_init();
	if (error)
		goto no_clients;
	kd_list_init();
	pr_info("ready\n");
	return 0;

no_clients:
	kd_registers_exit();
no_registers:
	kd_breakpoint_exit();
no_breakpoints:
	stop();
no_tables:
	free_tables();
	return error;
}

static void __exit kd_exit(void)
{
	/* Clients depend on this module: none is left, and with the last of them its detours went. */
	kd_list_exit();
	kd_clients_exit();
	kd_registers_exit();
	kd_breakpoint_exit();
	stop();
	free_tables();
}

module_init(kd_init);
module_exit(kd_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_AUTHOR("the kdetour developers");
MODULE_DESCRIPTION("Detours of functions of the running kernel");
