// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * Where jump labels and static calls are. Which bytes are theirs only the kernel says (function.c asks), but it goes through
 * its whole tables for an answer, and decodes an instruction for each jump label: millions of instructions, for each of tens
 * of thousands of functions. So it is asked where there can be one.
 */
#include <linux/jump_label.h>
#include <linux/module.h>
#include <linux/static_call.h>
#include "addresses.h"
#include "lookup.h"
#include "rewritten.h"

/* No jump label and no static call is longer. */
#define LONGEST 8

static struct kd_addresses core;

static unsigned long call_site(const struct static_call_site *site)
{
	return (unsigned long)&site->addr + site->addr;
}

int kd_rewritten_init(void)
{
	const struct static_call_site *call;
	const struct jump_entry *label;

	if (kd_addresses_init(&core, (kd_labels_end - kd_labels) + (kd_calls_end - kd_calls)))
		return -ENOMEM;
	for (label = kd_labels; label < kd_labels_end; label++)
		kd_addresses_add(&core, jump_entry_code(label));
	for (call = kd_calls; call < kd_calls_end; call++)
		kd_addresses_add(&core, call_site(call));
	kd_addresses_sort(&core);
	return 0;
}

void kd_rewritten_exit(void)
{
	kd_addresses_free(&core);
}

static bool in_module(unsigned long from, unsigned long end, const struct module *module)
{
	int i;

	for (i = 0; i < module->num_jump_entries; i++)
		if (jump_entry_code(module->jump_entries + i) - from < end - from)
			return true;
	for (i = 0; i < module->num_static_call_sites; i++)
		if (call_site(module->static_call_sites + i) - from < end - from)
			return true;
	return false;
}

bool kd_may_be_rewritten(unsigned long from, unsigned long end, const struct module *module)
{
	size_t first;

	from -= LONGEST - 1;
	if (module)
		return in_module(from, end, module);
	first = kd_addresses_from(&core, from);
	return first < core.count && core.all[first] < end;
}
