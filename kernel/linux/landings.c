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
#include "addresses.h"
#include "host.h"
#include "landings.h"
#include "lookup.h"

/* Distances from the entry that are of interest: a landing pad, an ftrace site, and the longest window. */
#define NEAR_ENTRY 24

/* Those of the kernel itself. */
static struct kd_addresses core;

static unsigned long fixup_of(const struct exception_table_entry *entry)
{
	return (unsigned long)&entry->fixup + entry->fixup;
}

int kd_landings_init(void)
{
	const struct exception_table_entry *fixup;
	const struct jump_entry *label;

	if (kd_addresses_init(&core, (kd_fixups_end - kd_fixups) + (kd_labels_end - kd_labels)))
		return -ENOMEM;
	for (fixup = kd_fixups; fixup < kd_fixups_end; fixup++)
		kd_addresses_add(&core, fixup_of(fixup));
	for (label = kd_labels; label < kd_labels_end; label++)
		kd_addresses_add(&core, jump_entry_target(label));
	kd_addresses_sort(&core);
	return 0;
}

void kd_landings_exit(void)
{
	kd_addresses_free(&core);
}

static void note(u64 *found, u64 entry, unsigned long at)
{
	if (at - entry < NEAR_ENTRY)
		*found |= BIT_ULL(at - entry);
}

static void note_of_module(u64 *found, u64 entry, const struct module *module)
{
	unsigned int i;

	for (i = 0; i < module->num_exentries; i++)
		note(found, entry, fixup_of(module->extable + i));
	for (i = 0; i < module->num_jump_entries; i++)
		note(found, entry, jump_entry_target(module->jump_entries + i));
}

static void note_of_core(u64 *found, u64 entry)
{
	size_t i = kd_addresses_from(&core, entry);

	for (; i < core.count && core.all[i] - entry < NEAR_ENTRY; i++)
		note(found, entry, core.all[i]);
}

void kd_find_landings(struct kd_function *function, const struct module *module)
{
	u64 found = 0;
	unsigned int at;

	if (module)
		note_of_module(&found, function->entry, module);
	else
		note_of_core(&found, function->entry);
	/* The nearest first: those further behind lie in no window that is longer than what these forbid. */
	for (at = 0; at < NEAR_ENTRY && function->landing_count < KD_LANDINGS; at++)
		if (found & BIT_ULL(at))
			function->landings[function->landing_count++] = function->entry + at;
}
