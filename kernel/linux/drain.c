// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * Waiting until nobody is inside.
 *
 *	the targets are as they were, and no neighbour's original leads here: nobody enters any more
 *	quiesce		whoever was on the way in has reached the detour and counted itself
 *	count is 0	whoever slept inside has come back and taken itself off the count: from here on the sum
 *			can only fall, so the first 0 that is seen is true
 *	settle		whoever was between the count and its return has returned; and whoever was in a trampoline
 *			or at a breakpoint has left it
 *
 * ARCHITECTURE.md, "Draining", says why that is enough.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include "drain.h"
#include "host.h"
#include "log.h"
#include "main.h"
#include "plan.h"
#include "requests.h"
#include "reserved.h"
#include "rust.h"
#include "stats.h"

#define POLL_MS 10
#define TELL_FIRST_MS 2000
#define TELL_AGAIN_MS 10000
#define RETRY_MS 200

/*
 * The number of calls inside, or -EEXIST if one of the detours has been attached again, or reclaimed by somebody else:
 * its client may be gone then, counter and all.
 */
static int count_calls(const struct kd_draining *detours, unsigned int count, u64 *calls)
{
	unsigned int i;
	int result = 0;

	*calls = 0;
	kd_lock();
	for (i = 0; i < count && !result; i++) {
		if (kd_state(detours[i].handle, 0) != KD_DRAINING)
			result = -EEXIST;
		else if (detours[i].in_flight)
			*calls += kd_host_in_flight(detours[i].in_flight);
	}
	kd_unlock();
	return result;
}

/* What does the target's work from now on: the target itself, or what its pointer led to. */
static u64 function_of(const struct kd_draining *one)
{
	struct kd_info info;

	if (!kd_describe(one->handle, &info))
		return (u64)one->client->target;
	return info.method == KDETOUR_POINTER ? info.function : info.target;
}

/* What is planned may be written by its client until here. 0, or -ESTALE: it was, and goes nowhere. */
static int close_plans(const u64 *handles, unsigned int count)
{
	bool closed = false, written = false;
	unsigned int i;

	for (i = 0; i < count; i++)
		closed |= kd_plan_close(handles[i]);
	if (closed)
		kd_plans_wait();
	for (i = 0; i < count; i++)
		written |= kd_check_unwritten(handles[i], NULL) != 0;
	return written ? -ESTALE : 0;
}

/* Static trampolines may be called by whomever, at any time: they lead to their targets again before their slots go. */
static int empty_trampolines(const struct kd_draining *detours, unsigned int count)
{
	bool any = false;
	unsigned int i;

	for (i = 0; i < count; i++) {
		const struct kdetour *client = detours[i].client;

		if (!client || !client->trampoline)
			continue;
		if (kd_reserved_lead(client->trampoline, (u64)client->target))
			return -ENOMEM;
		any = true;
	}
	if (any)
		kd_host_settle();
	return 0;
}

/* Frees the slots and tells the clients, all under the mutex: nobody can attach one of them in between. */
static int reclaim(const struct kd_draining *detours, unsigned int count, const u64 *handles, u64 start)
{
	unsigned int i;
	int code;

	kd_lock();
	for (i = 0; i < count; i++)
		if (kd_state(handles[i], 0) != KD_DRAINING) {
			kd_unlock();
			return -EEXIST;
		}
	code = close_plans(handles, count) ?: empty_trampolines(detours, count);
	if (code) {
		for (i = 0; i < count; i++)
			kd_plan_reopen(handles[i]);
		kd_unlock();
		return code;
	}
	/* The trampolines go; the functions themselves do what they did. */
	for (i = 0; i < count; i++)
		if (detours[i].client)
			kd_set_original(detours[i].client, function_of(&detours[i]));
	kd_log_detours("reclaim", handles, count, kd_now() - start);
	code = kd_reclaim(handles, count);
	if (!code)
		kd_count(KD_RECLAIMS, count);
	for (i = 0; i < count; i++)
		if (code)
			kd_plan_reopen(handles[i]);
		else
			kd_plan_free(handles[i]);
	for (i = 0; !code && i < count; i++)
		if (detours[i].client)
			detours[i].client->handle = 0;
	kd_unlock();
	return code ? -ENOMEM : 0;
}

int kd_drain(const struct kd_draining *detours, unsigned int count, unsigned int timeout_ms, u64 *calls)
{
	unsigned long start = jiffies, tell = start + msecs_to_jiffies(TELL_FIRST_MS);
	u64 began = kd_now();
	unsigned int i;
	u64 *handles;
	int result;

	handles = kvmalloc_array(count, sizeof(*handles), GFP_KERNEL);
	if (!handles)
		return -ENOMEM;
	for (i = 0; i < count; i++)
		handles[i] = detours[i].handle;

	kd_host_quiesce();
	for (;;) {
		result = count_calls(detours, count, calls);
		if (result || !*calls)
			break;
		if (timeout_ms && time_after(jiffies, start + msecs_to_jiffies(timeout_ms))) {
			result = -EBUSY;
			break;
		}
		if (time_after(jiffies, tell)) {
			tell = jiffies + msecs_to_jiffies(TELL_AGAIN_MS);
			pr_info("the targets are as they were, waiting for %llu calls inside; debugfs kdetour/detours names them\n",
				*calls);
		}
		msleep(POLL_MS);
	}
	if (!result) {
		kd_host_settle();
		result = reclaim(detours, count, handles, began);
	}
	kvfree(handles);
	return result;
}

/* Those of these handles that still drain. */
static unsigned int find_draining(const u64 *handles, unsigned int count, struct kd_draining *draining)
{
	unsigned int i, found = 0;
	struct kd_info info;

	kd_lock();
	for (i = 0; i < count; i++)
		if (kd_state(handles[i], 0) == KD_DRAINING && kd_describe(handles[i], &info))
			draining[found++] = (struct kd_draining){
				.handle = handles[i], .in_flight = info.in_flight, .client = (struct kdetour *)info.announce,
			};
	kd_unlock();
	return found;
}

void kd_drain_left(const u64 *handles, unsigned int count)
{
	struct kd_draining *draining;
	unsigned int found;
	u64 calls;

	while (!(draining = kvcalloc(count, sizeof(*draining), GFP_KERNEL)))
		msleep(RETRY_MS);
	/* Without memory it is tried again, and what somebody else has drained meanwhile is left out. */
	while ((found = find_draining(handles, count, draining)) && kd_drain(draining, found, 0, &calls))
		msleep(RETRY_MS);
	kvfree(draining);
}
