// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * Where the kernel comes to without a branch that a survey could see: the fixups of the exception table, and the
 * labels that a static branch jumps to once it is switched on.
 */
#include <linux/bits.h>
#include <linux/jump_label.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <asm/extable.h>
#include "host.h"
#include "landings.h"
#include "lookup.h"

/* Distances from the entry that are of interest: a landing pad, an ftrace site, and the longest window. */
#define NEAR_ENTRY 24

static void note(u64 *found, u64 entry, unsigned long at)
{
	if (at - entry < NEAR_ENTRY)
		*found |= BIT_ULL(at - entry);
}

static void note_fixups(u64 *found, u64 entry, const struct exception_table_entry *first,
			const struct exception_table_entry *end)
{
	for (; first < end; first++)
		note(found, entry, (unsigned long)&first->fixup + first->fixup);
}

static void note_labels(u64 *found, u64 entry, const struct jump_entry *first, const struct jump_entry *end)
{
	for (; first < end; first++)
		note(found, entry, jump_entry_target(first));
}

void kd_find_landings(struct kd_function *function, const struct module *module)
{
	u64 found = 0;
	unsigned int at;

	if (module) {
		note_fixups(&found, function->entry, module->extable, module->extable + module->num_exentries);
		note_labels(&found, function->entry, module->jump_entries,
			    module->jump_entries + module->num_jump_entries);
	} else {
		note_fixups(&found, function->entry, kd_fixups, kd_fixups_end);
		note_labels(&found, function->entry, kd_labels, kd_labels_end);
	}
	/* The nearest first: those further behind lie in no window that is longer than what these forbid. */
	for (at = 0; at < NEAR_ENTRY && function->landing_count < KD_LANDINGS; at++)
		if (found & BIT_ULL(at))
			function->landings[function->landing_count++] = function->entry + at;
}
