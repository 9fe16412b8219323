// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* The calls of kernel_detours.h, by those of kdetour.h. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/bug.h>
#include <linux/export.h>
#include <linux/printk.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include "caller.h"
#include "kernel_detours.h"
#include "main.h"
#include "report.h"
#include "reserved.h"
#include "rust.h"

void kdetour_empty_trampoline(void)
{
	pr_emerg("a static trampoline is called from %pS, and was never filled\n", __builtin_return_address(0));
	BUG();
}
EXPORT_SYMBOL_GPL(kdetour_empty_trampoline);

/* The last call that failed. */
static struct {
	const struct task_struct *whose;
	struct kdetour_error story;
} last;
/* Also taken where sleeping is forbidden: that is what may be told of. */
static DEFINE_RAW_SPINLOCK(last_lock);

static BOOLEAN fails(const struct kdetour_error *story)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&last_lock, flags);
	last.whose = current;
	last.story = *story;
	raw_spin_unlock_irqrestore(&last_lock, flags);
	return FALSE;
}

int DetourLastError(struct kdetour_error *error)
{
	struct kdetour_error story = {};
	unsigned long flags;

	raw_spin_lock_irqsave(&last_lock, flags);
	if (last.whose == current)
		story = last.story;
	raw_spin_unlock_irqrestore(&last_lock, flags);
	if (error)
		*error = story;
	return story.code;
}
EXPORT_SYMBOL_GPL(DetourLastError);

/* What can be told of here before kdetour.h's calls are asked; they tell the rest. */
static BOOLEAN refuses(int code, PBYTE at, const char *text)
{
	struct kdetour_error story = {};

	kd_set_error(&story, code, 0, (u64)at, text);
	kd_failed("detour", NULL, 0, &story, NULL);
	return fails(&story);
}

/* The trampoline that is reserved there, for this call alone; NULL if it cannot be had, and why is told. */
static struct kdetour_trampoline *claim(PBYTE code)
{
	struct kdetour_error story = {};
	struct kdetour_trampoline *one;

	if (kd_check_caller(&story)) {
		kd_failed("detour", NULL, 0, &story, NULL);
		fails(&story);
		return NULL;
	}
	if (!code) {
		refuses(KDETOUR_NULL, code, "the trampoline is null");
		return NULL;
	}
	one = kd_reserved_at((u64)code);
	if (!one) {
		refuses(KDETOUR_ARGUMENT, code, "no trampoline was reserved there by DETOUR_TRAMPOLINE");
		return NULL;
	}
	/* Not a lock: a call of ours may run into a detour that calls us again. */
	if (xchg(&one->busy, 1)) {
		refuses(KDETOUR_TEXT_BUSY, code, "another call is at this trampoline; try again");
		return NULL;
	}
	return one;
}

static void release(struct kdetour_trampoline *one)
{
	smp_store_release(&one->busy, 0);
}

static bool is_in_use(const struct kdetour_trampoline *one)
{
	bool is;

	kd_lock();
	is = one->detour.handle && kd_state(one->detour.handle, (u64)&one->detour);
	kd_unlock();
	return is;
}

BOOLEAN DetourFunctionWithTrampolineEx(PBYTE pbTrampoline, PBYTE pbDetour, PBYTE *ppbRealTrampoline, PBYTE *ppbRealTarget,
				       PDELAY_TARGET_JUMP_INSERTION pDelayed)
{
	struct kdetour_trampoline *one;
	struct kdetour_error story = {};
	struct kdetour *detour;
	int error;

	if (ppbRealTrampoline)
		*ppbRealTrampoline = NULL;
	if (ppbRealTarget)
		*ppbRealTarget = NULL;
	one = claim(pbTrampoline);
	if (!one)
		return FALSE;
	if (is_in_use(one)) {
		release(one);
		return refuses(KDETOUR_ALREADY_DETOURED, pbTrampoline, "this trampoline is in use; DetourRemove first");
	}
	detour = &one->detour;
	detour->symbol = one->symbol;
	detour->target = one->variable ? *one->variable : one->target;
	detour->detour = pbDetour;
	detour->handle = 0;
	error = kdetour_plan(detour, pDelayed ? KDETOUR_LOCAL : KDETOUR_LIVE, pDelayed, &story);
	if (!error && !pDelayed) {
		error = kdetour_attach_all(&detour, 1, KDETOUR_LIVE, &story);
		/* The trampoline is empty again then. */
		if (error)
			kdetour_detach_all(&detour, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, NULL);
	}
	if (!error && ppbRealTrampoline)
		*ppbRealTrampoline = pbTrampoline;
	if (!error && ppbRealTarget)
		*ppbRealTarget = detour->target;
	release(one);
	return error ? fails(&story) : TRUE;
}
EXPORT_SYMBOL_GPL(DetourFunctionWithTrampolineEx);

BOOLEAN DetourFunctionWithTrampoline(PBYTE pbTrampoline, PBYTE pbDetour, PDELAY_TARGET_JUMP_INSERTION pDelayed)
{
	return DetourFunctionWithTrampolineEx(pbTrampoline, pbDetour, NULL, NULL, pDelayed);
}
EXPORT_SYMBOL_GPL(DetourFunctionWithTrampoline);

/* Whether a record that was delayed has been written: nobody said so, since there is no call for it in this style. */
static bool was_written(struct kdetour *detour)
{
	bool was;

	kd_lock();
	was = kd_check_unwritten(detour->handle, NULL) == KDETOUR_ALREADY_DETOURED;
	kd_unlock();
	return was;
}

BOOLEAN DetourRemove(PBYTE pbTrampoline, PBYTE pbDetour)
{
	struct kdetour_trampoline *one = claim(pbTrampoline);
	struct kdetour_error story = {};
	struct kdetour *detour;
	int error = 0;

	if (!one)
		return FALSE;
	detour = &one->detour;
	if (!is_in_use(one) || detour->detour != pbDetour) {
		release(one);
		return refuses(KDETOUR_NOT_ATTACHED, pbTrampoline, "this trampoline is not in use, or by another detour");
	}
	if (was_written(detour))
		error = kdetour_written(detour, &story);
	if (!error)
		error = kdetour_detach_all(&detour, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &story);
	release(one);
	return error ? fails(&story) : TRUE;
}
EXPORT_SYMBOL_GPL(DetourRemove);

PBYTE DetourGetFinalCode(PBYTE pbCode, BOOLEAN fSkipJmp)
{
	struct kdetour_error story = {};
	u64 code;

	if (!pbCode || kd_check_caller(&story))
		return NULL;
	kd_lock();
	code = kd_final_code((u64)pbCode, fSkipJmp);
	kd_unlock();
	return (PBYTE)code;
}
EXPORT_SYMBOL_GPL(DetourGetFinalCode);
