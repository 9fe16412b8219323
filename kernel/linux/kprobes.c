// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * Kprobes near a target: where they are, and what code is without them.
 *
 * A probe further in a function may hide a branch to the window behind its breakpoint, so a survey reads what is under
 * it: struct kprobe keeps the first byte, an optimised one the four behind it as well.
 */
#include <linux/kprobes.h>
#include <linux/minmax.h>
#include <linux/mutex.h>
#include <linux/preempt.h>
#include <linux/string.h>
#include "host.h"
#include "lookup.h"

#define INT3 0xcc
#define JMP32 0xe9

/* Also those that are registered and not armed: arming one later would write into the patch. */
u64 kd_host_kprobe(u64 address, size_t len)
{
	u64 end = address + len;

	for (; address < end; address++) {
		bool found;

		preempt_disable();
		found = kd_k_get_kprobe((void *)address);
		preempt_enable();
		if (found)
			return address;
	}
	return 0;
}

/* Puts back what a probe at `address` has overwritten; `bytes` were read there. */
static void restore(u64 address, u8 *bytes, size_t len)
{
	struct optimized_kprobe *optimized;
	struct kprobe *probe;

	preempt_disable();
	probe = kd_k_get_kprobe((void *)address);
	/* Where the jump itself was probed, as ours may be, that is what the probe keeps. Such a probe is never optimised. */
	if (probe && bytes[0] == JMP32 && probe->opcode != JMP32) {
		optimized = container_of(probe, struct optimized_kprobe, kp);
		memcpy(bytes + 1, optimized->optinsn.copied_insn,
		       min(len - 1, sizeof(optimized->optinsn.copied_insn)));
	}
	if (probe)
		bytes[0] = probe->opcode;
	preempt_enable();
}

int kd_host_read_code(u64 address, void *to, size_t len)
{
	u8 *bytes = to;
	size_t i;
	int error;

	/* Nobody arms, optimises or removes one meanwhile. */
	mutex_lock(kd_kprobe_mutex);
	error = kd_host_read(address, to, len);
	for (i = 0; !error && i < len; i++)
		if (bytes[i] == INT3 || bytes[i] == JMP32)
			restore(address + i, bytes + i, len - i);
	mutex_unlock(kd_kprobe_mutex);
	return error;
}
