// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * toggle live|rendezvous|local|mixed ROUNDS [int3|register]: vfs_read and vfs_write attached and detached, again and again; mixed attaches
 * live and detaches at a rendezvous, which every preemption model allows: a jump has no inside. Every fiftieth time
 * the detach waits until nobody is inside, so that the next attach plans anew and takes new slots.
 */
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/string.h>
#include "test.h"

static atomic_long_t reads, writes;

KDETOUR(vfs_read, ssize_t, (struct file *file, char __user *to, size_t count, loff_t *position),
	(file, to, count, position))
{
	atomic_long_inc(&reads);
	return vfs_read_original(file, to, count, position);
}

KDETOUR(vfs_write, ssize_t, (struct file *file, const char __user *from, size_t count, loff_t *position),
	(file, from, count, position))
{
	atomic_long_inc(&writes);
	return vfs_write_original(file, from, count, position);
}

static struct kdetour *const both[] = { &vfs_read_detour, &vfs_write_detour };

/* Nobody is inside when a test is asked for. */
KDETOUR(lcm, unsigned long, (unsigned long a, unsigned long b), (a, b))
{
	return lcm_original(a, b);
}

static struct kdetour *const quiet[] = { &lcm_detour };

/* A module whose two detours stay until "hold off"; "hold local" and "hold local-off": another one, by that protocol. */
void test_hold(struct test_lines *to, const char *argument)
{
	if (!strcmp(argument, "local"))
		CHECK(to, !kdetour_attach_all(quiet, 1, KDETOUR_LOCAL, NULL), "attach");
	else if (!strcmp(argument, "local-off"))
		CHECK(to, !kdetour_detach_all(quiet, 1, KDETOUR_LOCAL, KDETOUR_FOR_EVER, NULL), "detach");
	else if (!strcmp(argument, "off"))
		CHECK(to, !kdetour_detach_all(both, 2, KDETOUR_LIVE, KDETOUR_FOR_EVER, NULL), "detach");
	else
		CHECK(to, !kdetour_attach_all(both, 2, KDETOUR_LIVE, NULL), "attach");
}

static int method_of(const char *name)
{
	if (!strcmp(name, "int3"))
		return KDETOUR_INT3;
	return strcmp(name, "register") ? KDETOUR_JUMP : KDETOUR_DEBUG_REGISTER;
}

void test_toggle(struct test_lines *to, const char *argument)
{
	enum kdetour_protocol protocol = KDETOUR_LIVE, detach;
	struct kdetour_error error = {};
	unsigned int round, rounds;
	char name[32], method[16] = "";
	int result = 0;

	if (sscanf(argument, "%31s %u %15s", name, &rounds, method) < 2) {
		test_line(to, false, "toggle live|rendezvous|local|mixed ROUNDS [int3|register]");
		return;
	}
	both[0]->method = both[1]->method = method_of(method);
	if (!strncmp(name, "rendezvous", 10))
		protocol = KDETOUR_RENDEZVOUS;
	if (!strncmp(name, "local", 5))
		protocol = KDETOUR_LOCAL;
	detach = strcmp(name, "mixed") ? protocol : KDETOUR_RENDEZVOUS;
	if (strstr(name, "-refused")) {
		int code = protocol == KDETOUR_LOCAL ? KDETOUR_NOT_ALONE : KDETOUR_PREEMPTIBLE;

		result = kdetour_attach_all(both, 2, protocol, &error);
		CHECK(to, result == -EOPNOTSUPP && error.code == code, "%s: %s", name, error.text);
		return;
	}
	atomic_long_set(&reads, 0);
	atomic_long_set(&writes, 0);
	for (round = 0; round < rounds && !result; round++) {
		result = kdetour_attach_all(both, 2, protocol, &error);
		/* The only processor goes from one to the other without a pause. */
		if (!result && protocol == KDETOUR_LOCAL)
			msleep(1);
		if (!result)
			result = kdetour_detach_all(both, 2, detach, round % 50 ? KDETOUR_NO_WAIT : KDETOUR_FOR_EVER,
						    &error);
	}
	if (!result && vfs_read_detour.handle)
		result = kdetour_detach_all(both, 2, detach, KDETOUR_FOR_EVER, &error);
	test_line(to, !result, "toggle %s %u rounds%s%s", name, round, result ? ": " : "", error.text);
	/* Four loads call both all the time: a round in which no call arrived would mean that nothing was attached. */
	CHECK(to, atomic_long_read(&reads) > rounds && atomic_long_read(&writes) > rounds,
	      "toggle %s: %ld reads, %ld writes detoured", name, atomic_long_read(&reads), atomic_long_read(&writes));
}
