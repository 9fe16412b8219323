// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * calls: detours of functions that are only known while the machine runs, whatever their types. They count, and that is all.
 *
 * A detour goes on by a jump, so nobody is ever inside, and every register is as it was. Flags are nobody's at a function's entry. An
 * indirect jump to an original is what KDETOUR has a static call for; there is none for a jump.
 */
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/objtool.h>
#include "calls.h"
#include "kdetour.h"

static DEFINE_MUTEX(mutex);
static struct call { struct kdetour detour; bool attached; } all[CALLS_DETOURS];
unsigned long calls_counts[CALLS_DETOURS];
void *calls_originals[CALLS_DETOURS];

#define STUB(number)										\
	asm(".pushsection .text\n"								\
	    ".type calls_stub" #number ", @function\n"						\
	    "calls_stub" #number ":\n"								\
	    "	endbr64\n"									\
	    "	lock incq calls_counts+8*" #number "(%rip)\n"					\
	    ANNOTATE_RETPOLINE_SAFE								\
	    "	jmp *calls_originals+8*" #number "(%rip)\n"					\
	    "	int3\n"										\
	    ".size calls_stub" #number ", . - calls_stub" #number "\n"				\
	    ".popsection\n");									\
	extern char calls_stub##number[];
STUB(0)
STUB(1)
STUB(2)
STUB(3)
static char *const stubs[CALLS_DETOURS] = { calls_stub0, calls_stub1, calls_stub2, calls_stub3 };

/* A detour goes with its target's module: kdetour has it no more, and here it is still said to be attached. */
static void forget_gone(void)
{
	bool there[CALLS_DETOURS] = {};
	struct kdetour_live one;
	unsigned int k;
	size_t at = 0;

	while (kdetour_next(&at, &one))
		for (k = 0; k < CALLS_DETOURS; k++)
			there[k] |= one.handle == all[k].detour.handle;
	for (k = 0; k < CALLS_DETOURS; k++)
		if (all[k].attached && !there[k]) {
			kdetour_detach(&all[k].detour);
			all[k].attached = false;
		}
}

int calls_detour(unsigned long function)
{
	struct call *free = NULL;
	int k, error = -EMFILE;

	mutex_lock(&mutex);
	forget_gone();
	for (k = CALLS_DETOURS - 1; k >= 0; k--)
		if (!all[k].attached)
			free = &all[k];
		else if ((unsigned long)all[k].detour.target == function)
			error = -EALREADY;
	if (free && error != -EALREADY) {
		k = free - all;
		calls_counts[k] = 0;
		free->detour = (struct kdetour){ .target = (void *)function, .detour = stubs[k],
						 .original = &calls_originals[k], .owner = THIS_MODULE };
		error = kdetour_attach(&free->detour);
		free->attached = !error;
		/* Why not is in the log, by kdetour. */
		pr_info("calls: %s %ps\n", error ? "did not detour" : "detoured", (void *)function);
	} else if (error == -EALREADY) {
		pr_info("calls: %ps is detoured already\n", (void *)function);
	} else {
		pr_warn("calls: there are %d detours at most: release one\n", CALLS_DETOURS);
	}
	mutex_unlock(&mutex);
	return error;
}
EXPORT_SYMBOL_GPL(calls_detour);

int calls_release(unsigned long function)
{
	int result = -ENOENT;
	unsigned int k;

	mutex_lock(&mutex);
	forget_gone();
	for (k = 0; k < CALLS_DETOURS; k++)
		if (all[k].attached && (unsigned long)all[k].detour.target == function) {
			result = kdetour_detach(&all[k].detour);
			all[k].attached = result != 0;
			if (!result)
				pr_info("calls: released %ps after %lu calls\n", (void *)function, calls_counts[k]);
		}
	mutex_unlock(&mutex);
	return result;
}
EXPORT_SYMBOL_GPL(calls_release);

void calls_release_all(void)
{
	unsigned int k;

	mutex_lock(&mutex);
	for (k = 0; k < CALLS_DETOURS; k++)
		if (all[k].attached)
			all[k].attached = kdetour_detach(&all[k].detour) != 0;
	mutex_unlock(&mutex);
}
EXPORT_SYMBOL_GPL(calls_release_all);

unsigned int calls_number(void)
{
	unsigned int k, number = 0;

	/* An attach may take long, and is not waited for. */
	if (mutex_trylock(&mutex)) {
		forget_gone();
		mutex_unlock(&mutex);
	}
	for (k = 0; k < CALLS_DETOURS; k++)
		number += READ_ONCE(all[k].attached);
	return number;
}
EXPORT_SYMBOL_GPL(calls_number);

bool calls_of(u64 handle, unsigned long *count)
{
	unsigned int k;

	for (k = 0; k < CALLS_DETOURS; k++)
		if (READ_ONCE(all[k].attached) && READ_ONCE(all[k].detour.handle) == handle) {
			*count = READ_ONCE(calls_counts[k]);
			return true;
		}
	return false;
}
EXPORT_SYMBOL_GPL(calls_of);

static void __exit calls_exit(void)
{
	calls_release_all();
}

module_exit(calls_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("counts the calls of functions that are chosen while the machine runs");
