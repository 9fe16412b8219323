// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* kdetour.ko: loading and unloading, and what other modules call. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/security.h>
#include <linux/slab.h>
#include <linux/static_call.h>
#include <linux/string.h>
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
#include "reserved.h"
#include "rewritten.h"
#include "rust.h"
#include "stats.h"
#include "untouchable.h"

static bool quiet;
module_param(quiet, bool, 0644);
MODULE_PARM_DESC(quiet, "do not log attaching, detaching and refusing (default: N)");

static unsigned int attempts = 20;
module_param(attempts, uint, 0644);
MODULE_PARM_DESC(attempts, "how often a rendezvous or a local commit that finds a task in a window tries again, every 5 ms (default: 20)");

#define RETRY_MS 5
#define MOST_AT_ONCE 65536
#define RETRY_FOR_EVER_MS 200
#define TELL_MS 10000

static int errno_of(int code)
{
	switch (code) {
	case KDETOUR_OK: return 0;
	case KDETOUR_UNKNOWN_SYMBOL: return -ENOENT;
	case KDETOUR_UNREADABLE: return -EFAULT;
	case KDETOUR_FORBIDDEN: return -EPERM;
	case KDETOUR_REFUSED: return -EOPNOTSUPP;
	case KDETOUR_ALREADY_DETOURED: return -EEXIST;
	case KDETOUR_CHANGED: return -ESTALE;
	case KDETOUR_NO_SLOT: return -ENOSPC;
	case KDETOUR_THREAD_IN_WINDOW:
	case KDETOUR_TEXT_BUSY: return -EAGAIN;
	case KDETOUR_BUSY: return -EBUSY;
	case KDETOUR_OUT_OF_MEMORY: return -ENOMEM;
	case KDETOUR_HOST: return -EIO;
	case KDETOUR_PREEMPTIBLE: return -EOPNOTSUPP;
	case KDETOUR_AMBIGUOUS_SYMBOL: return -ENOTUNIQ;
	case KDETOUR_ATOMIC: return -EPERM;
	case KDETOUR_INSIDE: return -EDEADLK;
	case KDETOUR_LOCKED_DOWN: return -EPERM;
	case KDETOUR_NOT_ALONE: return -EOPNOTSUPP;
	case KDETOUR_NO_DEBUG_REGISTER: return -ENOSPC;
	case KDETOUR_DEBUG_REGISTERS_MISSING: return -EOPNOTSUPP;
	default: return -EINVAL;
	}
}

void kd_set_error(struct kdetour_error *error, int code, u32 index, u64 address, const char *text)
{
	error->code = code;
	error->index = index;
	error->address = address;
	strscpy(error->text, text, sizeof(error->text));
}

/* The name of the detour that the story is about. */
static const char *name_of(struct kdetour *const *detours, unsigned int count, const struct kdetour_error *story)
{
	if (!detours || story->index >= count || !detours[story->index])
		return "?";
	return detours[story->index]->symbol ?: "a detour";
}

int kd_answer(const struct kdetour_error *story, struct kdetour_error *error)
{
	kd_count_failure(story->code);
	if (error)
		*error = *story;
	return errno_of(story->code);
}

int kd_failed(const char *what, struct kdetour *const *detours, unsigned int count, const struct kdetour_error *story,
	      struct kdetour_error *error)
{
	const char *name = name_of(detours, count, story);

	if (!quiet)
		pr_info("cannot %s %s: %s\n", what, name, story->text);
	kd_log_failure(what, name, count, story);
	return kd_answer(story, error);
}

void kd_tell(const char *what, struct kdetour *const *detours, unsigned int count)
{
	if (quiet)
		return;
	if (count > 1)
		pr_info("%s %ps and %u more\n", what, detours[0]->target, count - 1);
	else
		pr_info("%s %ps\n", what, detours[0]->target);
}

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

/* No landing pad is needed where a direct jump or call arrives: go behind it. */
static u64 behind_landing_pad(u64 function)
{
	static const u8 endbr[] = { 0xf3, 0x0f, 0x1e, 0xfa };	/* endbr64 */
	static const u8 sealed[] = { 0x66, 0x0f, 0x1f, 0x00 };	/* nopw (%rax) */
	u8 bytes[4];

	if (!kd_host_read(function, bytes, 4) && (!memcmp(bytes, endbr, 4) || !memcmp(bytes, sealed, 4)))
		function += 4;
	return function;
}

void kd_set_original(struct kdetour *detour, u64 function)
{
	if (detour->original)
		WRITE_ONCE(*detour->original, (void *)function);
	if (detour->call)
		__static_call_update(detour->call, detour->call_trampoline, (void *)behind_landing_pad(function));
}

void kd_announce(u64 announce, u64 handle, u64 original, bool attached)
{
	struct kdetour *detour = (struct kdetour *)announce;

	/* A client may have cleared what drains and attached it anew: it says then where that one's original is. */
	if (attached || !detour->handle || detour->handle == handle)
		kd_set_original(detour, original);
}

static int add_match(void *data, unsigned long address)
{
	unsigned long *found = data;

	if (found[0] && found[0] != address)
		found[1] = address;
	found[0] = address;
	return 0;
}

/* The function of that name; 0 with *several set if the kernel itself has more than one. */
static u64 find_symbol(const char *symbol, bool *several)
{
	unsigned long found[2] = {};

	kd_k_kallsyms_on_each_match_symbol(add_match, symbol, found);
	*several = found[1];
	if (found[1])
		return 0;
	return found[0] ?: kd_k_kallsyms_lookup_name(symbol);
}

/*
 * What is kept of a detour until it has been drained must last as long. 0, or a code with the story told. Modules do not
 * go while kd_mutex is held.
 */
static int check_owner(const struct kdetour *one, u32 index, struct kdetour_error *story)
{
	struct module *holds, *owns;

	preempt_disable();
	holds = kd_k___module_address((unsigned long)one);
	owns = one->owner ? kd_k___module_address((unsigned long)one->owner) : NULL;
	preempt_enable();
	if (one->owner != owns) {
		kd_set_error(story, KDETOUR_ARGUMENT, index, (u64)one->owner, "the owner is no module");
		return story->code;
	}
	if (holds && within_module_init((unsigned long)one, holds)) {
		kd_set_error(story, KDETOUR_FORBIDDEN, index, (u64)one,
			     "this struct kdetour lies in memory that is freed after its module's init");
		return story->code;
	}
	/* The story may be that of an attempt before. */
	return 0;
}

/*
 * One that drains is attached again as it was. So its struct must still say what it was, but for the name: that may mean
 * another function by now, of a module that came since.
 */
static int check_again(struct kd_request *request, u32 index, struct kdetour_error *story)
{
	struct kd_info info;

	if (!kd_describe(request->handle, &info))
		return 0;
	if (request->detour != info.detour || request->in_flight != info.in_flight || request->owner != info.owner ||
	    request->target != info.target || request->method != info.method)
		kd_set_error(story, KDETOUR_ARGUMENT, index, info.target,
			     "this struct kdetour drains, and says something else now; detach it with waiting first");
	/* The story may be that of an attempt before. */
	return story->code == KDETOUR_ARGUMENT ? story->code : 0;
}

int kd_requests_of(struct kdetour *const *detours, unsigned int count, struct kd_request *requests,
		   struct kdetour_error *story)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		struct kdetour *one = detours[i];
		struct kd_request *request = &requests[i];
		bool several = false;
		int state;

		if (!one || !one->detour || (!one->target && !one->symbol)) {
			kd_set_error(story, KDETOUR_NULL, i, 0, "the target or the detour is null");
			return story->code;
		}
		if (one->method < KDETOUR_JUMP || one->method > KDETOUR_DEBUG_REGISTER) {
			kd_set_error(story, KDETOUR_ARGUMENT, i, 0, "there is no such method");
			return story->code;
		}
		if (check_owner(one, i, story))
			return story->code;
		/* A handle counts in the struct that it was given to, and nowhere else. */
		state = one->handle ? kd_state(one->handle, (u64)one) : 0;
		if (state == KD_ATTACHED) {
			kd_set_error(story, KDETOUR_ALREADY_DETOURED, i, (u64)one->target,
				     "this struct kdetour is attached; detach it first");
			return story->code;
		}
		/* One that drains is attached again as it was, trampoline and all. */
		request->handle = state == KD_DRAINING ? one->handle : 0;
		request->target = one->symbol ? find_symbol(one->symbol, &several) : (u64)one->target;
		if (!request->target) {
			if (several)
				kd_set_error(story, KDETOUR_AMBIGUOUS_SYMBOL, i, 0,
					     "several functions have this name; set symbol to NULL and target to the one");
			else
				kd_set_error(story, KDETOUR_UNKNOWN_SYMBOL, i, 0, "no function has this name");
			return story->code;
		}
		request->method = one->method;
		/* Through a pointer it is called indirectly. */
		request->detour = one->method == KDETOUR_POINTER ? (u64)one->detour :
								   behind_landing_pad((u64)one->detour);
		request->announce = (u64)one;
		request->in_flight = (u64)(uintptr_t)one->in_flight;
		request->owner = (u64)one->owner;
		if (kd_reserved_slot(one, i, &request->slot, &request->slot_len, story))
			return story->code;
		if (request->handle && check_again(request, i, story))
			return story->code;
	}
	return 0;
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
			pr_info("detaching %s live: another processor has come\n", name_of(detours, count, &story));
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
			pr_info("waiting to detach %s: %s\n", name_of(detours, count, &story), story.text);
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
