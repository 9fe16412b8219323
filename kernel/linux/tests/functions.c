// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* What functions.h says. The kernel is asked symbol by symbol, and kdetour about each. */
#include <linux/kallsyms.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/string.h>
#include "functions.h"

int functions_init(struct functions *functions)
{
	memset(functions, 0, sizeof(*functions));
	functions->counting = symbol_get(counting);
	if (!functions->counting)
		return -ENOENT;
	functions->detours = kvcalloc(COUNTING_MOST, sizeof(*functions->detours), GFP_KERNEL);
	functions->set = kvcalloc(COUNTING_MOST, sizeof(*functions->set), GFP_KERNEL);
	if (functions->detours && functions->set)
		return 0;
	functions_exit(functions);
	return -ENOMEM;
}

void functions_exit(struct functions *functions)
{
	if (functions->counting)
		symbol_put(counting);
	kvfree(functions->detours);
	kvfree(functions->set);
	memset(functions, 0, sizeof(*functions));
}

/* The symbol that an address is in; false if it is in none. */
static bool symbol_at(unsigned long at, char *name, unsigned long *start, unsigned long *end)
{
	unsigned long offset, size;
	char *plus;

	sprint_symbol(name, at);
	plus = strrchr(name, '+');
	if (!plus || sscanf(plus, "+0x%lx/0x%lx", &offset, &size) != 2 || offset >= size)
		return false;
	*plus = '\0';
	*start = at - offset;
	*end = *start + size;
	return true;
}

/* The reason for which a survey refuses the function; NULL if it accepts it. */
static char *refused(void *target, char *text)
{
	char *reason;

	kdetour_survey(target, text, PAGE_SIZE);
	if (strstr(text, "\nverdict can be detoured"))
		return NULL;
	reason = strstr(text, "\nreason ");
	if (!reason)
		return "(no reason)";
	reason += strlen("\nreason ");
	return strsep(&reason, "\n");
}

static void count_reason(struct functions *functions, const char *name)
{
	unsigned int i;

	/* More reasons than there is room for count as the last. */
	for (i = 0; i < FUNCTIONS_REASONS - 1; i++)
		if (!functions->refused[i].count || !strcmp(functions->refused[i].name, name))
			break;
	strscpy(functions->refused[i].name, name, sizeof(functions->refused[i].name));
	functions->refused[i].count++;
}

struct kdetour **functions_add(struct functions *functions, void *target)
{
	struct kdetour *one = &functions->detours[functions->count];

	if (functions->count == COUNTING_MOST)
		return NULL;
	memset(one, 0, sizeof(*one));
	one->target = target;
	one->detour = functions->counting->detours + functions->count * COUNTING_SIZE;
	one->original = &functions->counting->originals[functions->count];
	one->owner = THIS_MODULE;
	functions->set[functions->count] = one;
	return &functions->set[functions->count++];
}

int functions_find(struct functions *functions, unsigned int step)
{
	char *text = kmalloc(PAGE_SIZE, GFP_KERNEL), *name = kmalloc(KSYM_SYMBOL_LEN, GFP_KERNEL);
	unsigned long at = kdetour_find("_stext"), last = kdetour_find("_etext"), start, end;
	int result = text && name && at && last ? 0 : -ENOMEM;

	functions->count = functions->symbols = functions->padding = functions->surveyed = 0;
	memset(functions->refused, 0, sizeof(functions->refused));
	memset(functions->counting->calls, 0, COUNTING_MOST * sizeof(*functions->counting->calls));
	for (; !result && at < last && functions->count < COUNTING_MOST; at = end) {
		char *reason;

		if (!symbol_at(at, name, &start, &end)) {
			end = at + 1;
			continue;
		}
		if (start < at)
			continue;
		/* What stands in front of a function has a name, too. */
		if (strstarts(name, "__pfx_") || strstarts(name, "__cfi_")) {
			functions->padding++;
			continue;
		}
		if (functions->symbols++ % step)
			continue;
		functions->surveyed++;
		reason = refused((void *)start, text);
		if (reason)
			count_reason(functions, reason);
		else
			functions_add(functions, (void *)start);
		cond_resched();
	}
	kfree(name);
	kfree(text);
	return result;
}
