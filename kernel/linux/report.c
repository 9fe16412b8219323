// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* What callers and the log are told. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/errno.h>
#include <linux/module.h>
#include <linux/printk.h>
#include <linux/string.h>
#include "log.h"
#include "report.h"
#include "stats.h"

static bool quiet;
module_param(quiet, bool, 0644);
MODULE_PARM_DESC(quiet, "do not log attaching, detaching and refusing (default: N)");

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

const char *kd_name_of(struct kdetour *const *detours, unsigned int count, const struct kdetour_error *story)
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
	const char *name = kd_name_of(detours, count, story);
	const struct kdetour *one = detours && story->index < count ? detours[story->index] : NULL;

	/* Who gives an address alone is told whose it is. */
	if (!quiet && one && !one->symbol && one->target)
		pr_info("cannot %s %pS: %s\n", what, one->target, story->text);
	else if (!quiet)
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
