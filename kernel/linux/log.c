// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* Writes what log.h promises. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/dynamic_debug.h>
#include <linux/module.h>
#include <linux/printk.h>
#include <linux/sched.h>
#include "kdetour.h"
#include "log.h"
#include "rust.h"

#define DETOUR_FORMAT pr_fmt("event=%s handle=%#llx target=%#llx symbol=%ps shape=%s protocol=%s owner=%s " \
			     "slot=%#llx slot_len=%u calls=%llu set=%u ns=%llu\n")

void kd_log_detours(const char *event, const u64 *handles, unsigned int count, u64 ns)
{
#ifdef CONFIG_DYNAMIC_DEBUG
	/* Our own descriptor, so that a set of many is not even gone through while nobody listens. */
	DEFINE_DYNAMIC_DEBUG_METADATA(line, DETOUR_FORMAT);
	struct kd_info info;
	unsigned int i;

	if (!DYNAMIC_DEBUG_BRANCH(line))
		return;
	for (i = 0; i < count; i++) {
		const struct module *owner;

		if (!kd_describe(handles[i], &info))
			continue;
		owner = (const struct module *)info.owner;
		__dynamic_pr_debug(&line, DETOUR_FORMAT, event, info.handle, info.target, (void *)info.target,
				   info.shape, info.protocol, owner ? owner->name : "-", info.slot, info.slot_len,
				   info.calls, count, ns);
		cond_resched();
	}
#endif
}

void kd_log_failure(const char *call, const char *name, unsigned int count, const struct kdetour_error *story)
{
	pr_debug("event=refuse call=%s symbol=%s code=%d address=%#llx index=%u set=%u text=\"%s\"\n", call, name,
		 story->code, story->address, story->index, count, story->text);
}
