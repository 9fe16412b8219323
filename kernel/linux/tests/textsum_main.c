// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * textsum: remembers the whole text of the kernel when it is loaded, and says what has changed since.
 *
 *	insmod textsum.ko; ...; cat /sys/kernel/debug/textsum
 *
 *	bytes 14684160 own 20 changed 0 crc 1c291ca3 then 1c291ca3
 *
 * `own` counts changed bytes at sites that the kernel itself rewrites at run time: jump labels, static calls, SMP
 * locks and ftrace sites, each asked of the kernel by the function that its own kprobes ask. In `crc` those bytes
 * stand as they were, so both sums agree if and only if `changed` is 0.
 */
#include <linux/crc32.h>
#include <linux/debugfs.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/vmalloc.h>
#include "host.h"
#include "lookup.h"

#define MOST_NAMED 8

static u8 *then;
static size_t size;
static struct dentry *file;

static bool is_own(unsigned long at)
{
	return kd_k_jump_label_text_reserved((void *)at, (void *)at) ||
	       kd_k_static_call_text_reserved((void *)at, (void *)at) ||
	       kd_k_alternatives_text_reserved((void *)at, (void *)at + 1) ||
	       kd_k_ftrace_text_reserved((void *)at, (void *)at);
}

static int sum_show(struct seq_file *to, void *unused)
{
	const u8 *now = (const u8 *)kd_stext;
	size_t i, own = 0, changed = 0;
	u32 crc = ~0;

	for (i = 0; i < size; i++) {
		u8 byte = READ_ONCE(now[i]);

		if (byte != then[i] && is_own(kd_stext + i)) {
			own++;
			byte = then[i];
		}
		if (byte != then[i] && changed++ < MOST_NAMED)
			seq_printf(to, "changed %pS: %02x, was %02x\n", now + i, byte, then[i]);
		crc = crc32_le(crc, &byte, 1);
		if (i % PAGE_SIZE == 0)
			cond_resched();
	}
	seq_printf(to, "bytes %zu own %zu changed %zu crc %08x then %08x\n", size, own, changed, crc,
		   crc32_le(~0, then, size));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(sum);

static int __init textsum_init(void)
{
	int error = kd_lookup_init();

	if (error)
		return error;
	size = kd_etext - kd_stext;
	then = vmalloc(size);
	if (!then)
		return -ENOMEM;
	memcpy(then, (const void *)kd_stext, size);
	file = debugfs_create_file("textsum", 0400, NULL, NULL, &sum_fops);
	return 0;
}

static void __exit textsum_exit(void)
{
	debugfs_remove(file);
	vfree(then);
}

module_init(textsum_init);
module_exit(textsum_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("says which bytes of the kernel's text have changed");
