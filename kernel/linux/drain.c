// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * Waiting until nobody is inside.
 *
 *	the targets are as they were: nobody enters any more
 *	quiesce		whoever was on the way in has reached the detour and counted itself
 *	count is 0	whoever slept inside has come back and taken itself off the count: from here on the sum
 *			can only fall, so the first 0 that is seen is true
 *	quiesce		whoever was between the count and its return has returned; and whoever was in a trampoline
 *			or at a breakpoint has left it
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include "drain.h"
#include "host.h"
#include "main.h"
#include "rust.h"

#define POLL_MS 10
#define TELL_AFTER_MS 10000

static u64 calls_inside(const struct kd_draining *detours, unsigned int count)
{
	u64 sum = 0;
	unsigned int i;

	for (i = 0; i < count; i++)
		if (detours[i].in_flight)
			sum += kd_host_in_flight(detours[i].in_flight);
	return sum;
}

int kd_drain(const struct kd_draining *detours, unsigned int count, unsigned int timeout_ms, u64 *calls)
{
	unsigned long start = jiffies, told = start;
	unsigned int i;
	u64 *handles;
	int code;

	handles = kvmalloc_array(count, sizeof(*handles), GFP_KERNEL);
	if (!handles)
		return -ENOMEM;
	for (i = 0; i < count; i++)
		handles[i] = detours[i].handle;

	kd_host_quiesce();
	while ((*calls = calls_inside(detours, count)) != 0) {
		if (timeout_ms && time_after(jiffies, start + msecs_to_jiffies(timeout_ms))) {
			kvfree(handles);
			return -EBUSY;
		}
		if (time_after(jiffies, told + msecs_to_jiffies(TELL_AFTER_MS))) {
			told = jiffies;
			pr_info("still waiting for %llu calls inside detours that were detached\n", *calls);
		}
		msleep(POLL_MS);
	}
	kd_host_quiesce();

	mutex_lock(&kd_mutex);
	code = kd_reclaim(handles, count);
	mutex_unlock(&kd_mutex);
	kvfree(handles);
	if (code)
		return code == KDETOUR_NOT_ATTACHED ? -EEXIST : -ENOMEM;
	return 0;
}
