// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* Finds what lookup.h declares. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/string.h>
#include "host.h"
#include "lookup.h"

/* Where a thunk's jump is written: behind its landing pad. */
#define THUNK_JUMP 4

struct mutex *kd_text_mutex;
struct mutex *kd_kprobe_mutex;
unsigned long kd_stext, kd_etext;
unsigned long kd_rodata, kd_rodata_end, kd_data, kd_data_end, kd_bss, kd_bss_end;
unsigned long kd_cpuidle_start, kd_cpuidle_end;
const struct exception_table_entry *kd_fixups, *kd_fixups_end;
const struct jump_entry *kd_labels, *kd_labels_end;
const struct static_call_site *kd_calls, *kd_calls_end;

/*
 * kallsyms_lookup_name is not exported. A kprobe can be put on it by name, and says where it is. With
 * CONFIG_X86_KERNEL_IBT it is put behind the function's landing pad, sealed or not.
 */
static unsigned long find_kallsyms_lookup_name(void)
{
	static const u8 endbr[] = { 0xf3, 0x0f, 0x1e, 0xfa };	/* endbr64 */
	static const u8 sealed[] = { 0x66, 0x0f, 0x1f, 0x00 };	/* nopw (%rax) */
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	unsigned long found;
	u8 before[4];

	if (register_kprobe(&probe))
		return 0;
	found = (unsigned long)probe.addr;
	unregister_kprobe(&probe);
	if (!kd_host_read(found - 4, before, 4) && (!memcmp(before, endbr, 4) || !memcmp(before, sealed, 4)))
		found -= 4;
	return found;
}

static int fill_thunk(const struct kd_thunk *thunk, unsigned long target)
{
	unsigned long jump = (unsigned long)thunk->thunk + THUNK_JUMP;
	u64 page = jump & PAGE_MASK;
	s32 displacement = target - (jump + 5);
	u8 *alias;

	alias = kd_host_map(&page, 1);
	if (!alias)
		return -ENOMEM;
	/* A thunk is 16 bytes at a multiple of 16: it crosses no page. */
	alias += offset_in_page(jump);
	memcpy(alias + 1, &displacement, 4);
	alias[0] = 0xe9;	/* jmp rel32 */
	kd_host_unmap(alias - offset_in_page(jump));
	return 0;
}

static unsigned long find(const char *name)
{
	unsigned long found = kd_k_kallsyms_lookup_name(name);

	if (!found)
		pr_err("this kernel has no %s; kdetour cannot work safely without it\n", name);
	return found;
}

int kd_lookup_init(void)
{
	unsigned long target = find_kallsyms_lookup_name();
	unsigned int i;
	int error;

	if (!target) {
		pr_err("kallsyms_lookup_name cannot be found: kdetour needs CONFIG_KPROBES and CONFIG_KALLSYMS\n");
		return -EOPNOTSUPP;
	}
	/* The first thunk is that of kallsyms_lookup_name; it finds the others. */
	for (i = 0; i < kd_thunk_count; i++) {
		if (i)
			target = find(kd_thunks[i].name);
		if (!target)
			return -EOPNOTSUPP;
		error = fill_thunk(&kd_thunks[i], target);
		if (error)
			return error;
		kd_host_sync_cores();
	}
	kd_text_mutex = (struct mutex *)find("text_mutex");
	kd_kprobe_mutex = (struct mutex *)find("kprobe_mutex");
	kd_stext = find("_stext");
	kd_etext = find("_etext");
	kd_rodata = find("__start_rodata");
	kd_rodata_end = find("__end_rodata");
	kd_data = find("_sdata");
	kd_data_end = find("_edata");
	kd_bss = find("__bss_start");
	kd_bss_end = find("__bss_stop");
	kd_cpuidle_start = find("__cpuidle_text_start");
	kd_cpuidle_end = find("__cpuidle_text_end");
	kd_fixups = (void *)find("__start___ex_table");
	kd_fixups_end = (void *)find("__stop___ex_table");
	kd_labels = (void *)find("__start___jump_table");
	kd_labels_end = (void *)find("__stop___jump_table");
	kd_calls = (void *)find("__start_static_call_sites");
	kd_calls_end = (void *)find("__stop_static_call_sites");
	if (!kd_rodata || !kd_rodata_end || !kd_data || !kd_data_end || !kd_bss || !kd_bss_end)
		return -EOPNOTSUPP;
	if (!kd_text_mutex || !kd_kprobe_mutex || !kd_stext || !kd_etext || !kd_cpuidle_start || !kd_cpuidle_end ||
	    !kd_fixups || !kd_fixups_end || !kd_labels || !kd_labels_end || !kd_calls || !kd_calls_end)
		return -EOPNOTSUPP;
	return 0;
}
