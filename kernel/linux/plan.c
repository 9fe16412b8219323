// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * Plan and commit apart.
 *
 *	kdetour_plan		surveys, plans, takes and fills the slot, maps the window once more: where sleeping is allowed
 *	kdetour_patch_write	finds that mapping by the record, compares, writes: anywhere, without a lock
 *	kdetour_written		from now on it is a detour like any other
 *
 * Only what was planned can be written: a copy of the record stays here, and the caller's has to be the same. Whoever may be at it
 * has interrupts off: so once a plan is found no more, a grace period of RCU later nobody is at it, and the mapping may go.
 */
#include <linux/atomic.h>
#include <linux/hashtable.h>
#include <linux/irqflags.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/security.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <asm/sync_core.h>
#include "caller.h"
#include "drain.h"
#include "host.h"
#include "kdetour.h"
#include "log.h"
#include "lookup.h"
#include "main.h"
#include "plan.h"
#include "report.h"
#include "requests.h"
#include "reserved.h"
#include "rust.h"
#include "stats.h"

#define INT3 0xcc

struct planned {
	struct hlist_node by_window, by_handle;
	struct kdetour_patch patch;
	u64 handle;
	u8 *window;		/* writable */
	atomic_t busy;		/* somebody is at it */
	bool open;		/* it can be found by its window */
};

/* Read by whoever writes, under RCU; changed with kd_mutex held. */
static DEFINE_HASHTABLE(plans_by_window, 8);
/* With kd_mutex held. */
static DEFINE_HASHTABLE(plans_by_handle, 8);

static struct planned *plan_of(u64 handle)
{
	struct planned *one;

	if (handle)
		hash_for_each_possible(plans_by_handle, one, by_handle, handle)
			if (one->handle == handle)
				return one;
	return NULL;
}

bool kd_plan_close(u64 handle)
{
	struct planned *one = plan_of(handle);

	if (!one || !one->open)
		return false;
	hash_del_rcu(&one->by_window);
	one->open = false;
	return true;
}

void kd_plans_wait(void)
{
	synchronize_rcu();
}

void kd_plan_reopen(u64 handle)
{
	struct planned *one = plan_of(handle);

	if (!one || one->open)
		return;
	hash_add_rcu(plans_by_window, &one->by_window, one->patch.address);
	one->open = true;
}

void kd_plan_free(u64 handle)
{
	struct planned *one = plan_of(handle);

	if (!one)
		return;
	hash_del(&one->by_handle);
	kd_host_unmap((void *)((unsigned long)one->window & PAGE_MASK));
	kfree(one);
}

/* Makes a plan one that its client may write. 0 or -ENOMEM. With kd_mutex held. */
static int open_plan(struct planned *one, u64 handle)
{
	u64 address = one->patch.address, pages[2] = { address & PAGE_MASK };
	size_t count = 1;
	u8 *alias;

	pages[1] = (address + one->patch.expected_length - 1) & PAGE_MASK;
	if (pages[1] != pages[0])
		count = 2;
	alias = kd_host_map(pages, count);
	if (!alias)
		return -ENOMEM;
	one->window = alias + offset_in_page(address);
	one->handle = handle;
	hash_add(plans_by_handle, &one->by_handle, handle);
	kd_plan_reopen(handle);
	return 0;
}

int kdetour_plan(struct kdetour *detour, enum kdetour_protocol protocol, struct kdetour_patch *patch,
		 struct kdetour_error *error)
{
	struct kdetour *const one[] = { detour };
	struct kdetour_error story = {};
	struct kd_request request = {};
	struct planned *planned = NULL;
	u64 handle = 0, calls, start;
	int code;

	code = kd_check_set(one, 1, protocol, &story);
	if (!code)
		code = kd_check_lockdown(&story);
	if (!code && patch && protocol != KDETOUR_LOCAL) {
		kd_set_error(&story, KDETOUR_ARGUMENT, 0, 0, "what its client writes itself is planned for KDETOUR_LOCAL");
		code = story.code;
	}
	if (!code && detour && detour->method != KDETOUR_JUMP) {
		kd_set_error(&story, KDETOUR_ARGUMENT, 0, 0, "only jumps are planned; attach it");
		code = story.code;
	}
	if (code)
		return kd_failed("plan", one, 1, &story, error);
	might_sleep();
	if (patch) {
		planned = kzalloc(sizeof(*planned), GFP_KERNEL);
		if (!planned) {
			kd_set_error(&story, KDETOUR_OUT_OF_MEMORY, 0, 0, "out of memory");
			return kd_failed("plan", one, 1, &story, error);
		}
	}
	kd_lock();
	start = kd_now();
	code = kd_requests_of(one, 1, &request, &story);
	if (!code && request.handle) {
		kd_set_error(&story, KDETOUR_ALREADY_DETOURED, 0, request.target, "this struct kdetour is planned already, or drains");
		code = story.code;
	}
	if (!code)
		code = kd_plan(&request, protocol, &handle, planned ? &planned->patch : NULL, &story);
	if (!code && ((request.slot && kd_reserved_lead(detour->trampoline, 0)) || (planned && open_plan(planned, handle)))) {
		kd_set_error(&story, KDETOUR_OUT_OF_MEMORY, 0, 0, "out of memory");
		code = story.code;
	}
	if (handle) {
		detour->handle = handle;
		detour->target = (void *)request.target;
	}
	if (!code) {
		kd_count(KD_PLANS, 1);
		kd_took(KD_SESSION_TIME, kd_now() - start);
		kd_log_detours("plan", &handle, 1, kd_now() - start);
		if (patch)
			*patch = planned->patch;
	}
	kd_unlock();
	if (!code)
		return 0;
	kfree(planned);
	if (handle) {
		struct kd_draining given_back = {
			.handle = handle, .in_flight = request.in_flight, .client = detour,
		};

		/* Without memory for that either it stays planned: its client may detach it. */
		kd_drain(&given_back, 1, 0, &calls);
	}
	return kd_failed("plan", one, 1, &story, error);
}
EXPORT_SYMBOL_GPL(kdetour_plan);

/* The plan of a record, if there is one that may be written. Interrupts are off. */
static struct planned *find(const struct kdetour_patch *patch)
{
	struct planned *one;

	hash_for_each_possible_rcu(plans_by_window, one, by_window, patch->address, true)
		if (one->patch.address == patch->address && one->patch.trampoline == patch->trampoline)
			return one;
	return NULL;
}

/* Compares the window with `window_bytes`, and what is behind it with what was there when it was planned. */
static int compare(const struct planned *one, const u8 *window_bytes, struct kdetour_error *story)
{
	const struct kdetour_patch *patch = &one->patch;
	unsigned int i;

	for (i = 0; i < patch->expected_length; i++) {
		u8 expected = i < patch->length ? window_bytes[i] : patch->expected[i];
		u8 found = READ_ONCE(one->window[i]);

		if (found == expected)
			continue;
		kd_set_error(story, KDETOUR_CHANGED, 0, patch->address + i, "");
		snprintf(story->text, sizeof(story->text),
			 "the byte at 0x%llx is %02x and should be %02x: somebody else wrote it; remove the other probe first",
			 patch->address + i, found, expected);
		return story->code;
	}
	return 0;
}

/*
 * What nobody can park, a non-maskable interrupt, may call the target all the same: a breakpoint stands at the first byte until
 * the others are written. Whoever meets it goes on at the trampoline.
 */
static void store(u8 *window, const u8 *bytes, unsigned int len)
{
	unsigned int i;

	WRITE_ONCE(window[0], INT3);
	sync_core();
	for (i = 1; i < len; i++)
		WRITE_ONCE(window[i], bytes[i]);
	sync_core();
	WRITE_ONCE(window[0], bytes[0]);
	sync_core();
}

/* Interrupts are off. */
static void write_plan(const struct kdetour_patch *patch, bool back, struct kdetour_error *story)
{
	struct planned *one = find(patch);
	const u8 *from, *to;
	u64 kprobe;

	if (!one) {
		kd_set_error(story, KDETOUR_NOT_ATTACHED, 0, patch->address,
			     "no plan of this record is to be written: it is attached, was given back, or was never made");
		return;
	}
	if (memcmp(&one->patch, patch, sizeof(*patch))) {
		kd_set_error(story, KDETOUR_ARGUMENT, 0, patch->address, "this record is not what kdetour_plan said");
		return;
	}
	/* Whoever holds them may be in the middle of its own steps. */
	if (mutex_is_locked(kd_text_mutex) || mutex_is_locked(kd_kprobe_mutex) || atomic_xchg(&one->busy, 1)) {
		kd_set_error(story, KDETOUR_TEXT_BUSY, 0, patch->address, "somebody else is patching text; try again");
		return;
	}
	from = back ? one->patch.patched : one->patch.expected;
	to = back ? one->patch.expected : one->patch.patched;
	/* One that is not armed keeps a byte, which it would put back one day. */
	kprobe = kd_host_kprobe(one->patch.address, one->patch.expected_length);
	if (kprobe)
		kd_set_error(story, KDETOUR_REFUSED, 0, kprobe, "a kprobe was registered there since; remove it first");
	else if (!compare(one, from, story))
		store(one->window, to, one->patch.length);
	atomic_set(&one->busy, 0);
}

int kdetour_patch_write(const struct kdetour_patch *patch, int back, struct kdetour_error *error)
{
	struct kdetour_error story = {};
	unsigned long flags;

	if (!patch) {
		kd_set_error(&story, KDETOUR_NULL, 0, 0, "the patch is null");
		return kd_answer(&story, error);
	}
	/* Lockdown may have come since; what was there may be put back all the same. */
	if (!back && kd_check_lockdown(&story))
		return kd_answer(&story, error);
	local_irq_save(flags);
	write_plan(patch, back, &story);
	local_irq_restore(flags);
	return story.code ? kd_answer(&story, error) : 0;
}
EXPORT_SYMBOL_GPL(kdetour_patch_write);

int kdetour_sync(struct kdetour_error *error)
{
	struct kdetour_error story = {};

	if (kd_check_caller(&story))
		return kd_answer(&story, error);
	might_sleep();
	kd_host_sync_all();
	return 0;
}
EXPORT_SYMBOL_GPL(kdetour_sync);

/* The client says so. With kd_mutex held; the story is told. */
static int take_for_written(struct kdetour *detour, struct kdetour_error *story)
{
	int state = detour->handle ? kd_state(detour->handle, (u64)detour) : 0;
	int code;

	if (state == KD_ATTACHED) {
		kd_set_error(story, KDETOUR_ALREADY_DETOURED, 0, (u64)detour->target, "this struct kdetour is attached already");
		return story->code;
	}
	if (!state) {
		kd_set_error(story, KDETOUR_NOT_ATTACHED, 0, 0, "this detour is not planned");
		return story->code;
	}
	/* Nobody writes it from now on: what is found stays. */
	if (kd_plan_close(detour->handle))
		kd_plans_wait();
	/* Whoever wrote it was to do so, and may have forgotten a processor. */
	kd_host_sync_all();
	code = kd_written(detour->handle, story);
	if (code)
		kd_plan_reopen(detour->handle);
	else
		kd_plan_free(detour->handle);
	return code;
}

int kdetour_written(struct kdetour *detour, struct kdetour_error *error)
{
	struct kdetour *const one[] = { detour };
	struct kdetour_error story = {};
	u64 start;
	int code;

	if (!detour)
		kd_set_error(&story, KDETOUR_NULL, 0, 0, "the struct kdetour is null");
	else
		kd_check_caller(&story);
	if (story.code)
		return kd_failed("attach", one, 1, &story, error);
	might_sleep();
	kd_lock();
	start = kd_now();
	code = take_for_written(detour, &story);
	if (!code)
		kd_committed("attach", KD_ATTACH_SETS, KD_ATTACHES, &detour->handle, 1, kd_now() - start);
	kd_unlock();
	if (code)
		return kd_failed("attach", one, 1, &story, error);
	kd_tell("attached", one, 1);
	return 0;
}
EXPORT_SYMBOL_GPL(kdetour_written);
