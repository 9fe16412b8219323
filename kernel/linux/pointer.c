// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * Pointers in the data of the kernel and of modules: where one may be exchanged, and how. Read-only data is written as text is, by a
 * second mapping of its page: the page itself stays read-only.
 */
#include <linux/atomic.h>
#include <linux/errno.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include "clients.h"
#include "host.h"
#include "lookup.h"

static bool is_between(u64 address, unsigned long first, unsigned long end)
{
	return address >= first && address < end;
}

/* Data that the kernel keeps for as long as it runs: neither what only its start needs, nor what it has allocated. */
static bool is_in_kernel_data(u64 place)
{
	return is_between(place, kd_rodata, kd_rodata_end) || is_between(place, kd_data, kd_data_end) ||
	       is_between(place, kd_bss, kd_bss_end);
}

/* Whether there is data that stays. As for code, a module does not go while kd_mutex is held. */
static int check_place(u64 place)
{
	struct module *module;
	int answer = KD_OK;
	u64 pointer;

	if (place % sizeof(void *))
		return KD_MISALIGNED;
	if (kd_host_read(place, &pointer, sizeof(pointer)))
		return KD_UNREADABLE;
	if (is_in_kernel_data(place))
		return KD_OK;
	/* Modules are freed after an RCU grace period. */
	preempt_disable();
	module = kd_k___module_address(place);
	if (!module || kd_k___module_text_address(place))
		answer = KD_NOT_DATA;
	else if (module == THIS_MODULE || module->state == MODULE_STATE_GOING || within_module_init(place, module) ||
		 (module->state == MODULE_STATE_COMING && !kd_is_coming(module)))
		answer = KD_FORBIDDEN;
	preempt_enable();
	return answer;
}

int kd_host_pointer(u64 place, u64 *leads_to)
{
	int answer = check_place(place);

	if (answer)
		return answer;
	return kd_host_read(place, leads_to, sizeof(*leads_to)) ? KD_UNREADABLE : KD_OK;
}

int kd_host_swap(u64 place, u64 expected, u64 new, u64 *found)
{
	u64 page = place & PAGE_MASK;
	u8 *alias, byte;

	if (place % sizeof(void *))
		return KD_MISALIGNED;
	if (kd_host_read(place, &byte, 1))
		return KD_UNREADABLE;
	alias = kd_host_map(&page, 1);
	if (!alias)
		return -ENOMEM;
	*found = cmpxchg((u64 *)(alias + offset_in_page(place)), expected, new);
	kd_host_unmap(alias);
	return KD_OK;
}
