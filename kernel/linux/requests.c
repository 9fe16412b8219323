// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* A client's struct kdetour: what it asks for, and where its original is. */
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/static_call.h>
#include <linux/string.h>
#include "host.h"
#include "lookup.h"
#include "report.h"
#include "requests.h"
#include "reserved.h"
#include "rust.h"

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
