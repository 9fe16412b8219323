/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * Functions of the kernel that it does not export, found by name when the module is loaded.
 *
 * Each is called through a thunk in this module's text, `kd_k_NAME`: ENDBR64 and a direct jump, written once when
 * the address is known. So no call here is indirect: a kernel with IBT seals the landing pads of functions to
 * which nothing of its own branches indirectly, and a call through a pointer would fault there.
 */
#ifndef KD_LOOKUP_H
#define KD_LOOKUP_H

#include <linux/types.h>
#include <linux/version.h>

struct bug_entry;
struct exception_table_entry;
struct jump_entry;
struct kprobe;
struct module;
struct static_call_site;

unsigned long kd_k_kallsyms_lookup_name(const char *name);
int kd_k_kallsyms_lookup_size_offset(unsigned long address, unsigned long *size, unsigned long *offset);
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
int kd_k_kallsyms_on_each_symbol(int (*each)(void *data, const char *name, struct module *module, unsigned long address),
				 void *data);
#else
int kd_k_kallsyms_on_each_symbol(int (*each)(void *data, const char *name, unsigned long address), void *data);
#endif
int kd_k_kallsyms_on_each_match_symbol(int (*found)(void *data, unsigned long address), const char *name, void *data);
int kd_k_core_kernel_text(unsigned long address);
struct module *kd_k___module_text_address(unsigned long address);
struct module *kd_k___module_address(unsigned long address);
struct kprobe *kd_k_get_kprobe(void *address);
bool kd_k_within_kprobe_blacklist(unsigned long address);
unsigned long kd_k_ftrace_location(unsigned long address);
int kd_k_ftrace_text_reserved(const void *start, const void *end);
int kd_k_jump_label_text_reserved(void *start, void *end);
int kd_k_static_call_text_reserved(void *start, void *end);
int kd_k_alternatives_text_reserved(void *start, void *end);
struct bug_entry *kd_k_find_bug(unsigned long address);
const struct exception_table_entry *kd_k_search_exception_tables(unsigned long address);

/* Finds all of the above, and the data below. 0, or an errno with a message that names what is missing. */
int kd_lookup_init(void);

struct mutex;
/* The lock that everybody in the kernel holds who patches text. */
extern struct mutex *kd_text_mutex;
/* The lock under which kprobes are registered; taken before the other one. */
extern struct mutex *kd_kprobe_mutex;
/* The bounds of the kernel's own text. */
extern unsigned long kd_stext, kd_etext;
/* Those of its data: what is read-only, what is not, what begins as zero. */
extern unsigned long kd_rodata, kd_rodata_end, kd_data, kd_data_end, kd_bss, kd_bss_end;
/* The kernel's own exception table, static branches and static calls. */
extern const struct exception_table_entry *kd_fixups, *kd_fixups_end;
extern const struct jump_entry *kd_labels, *kd_labels_end;
extern const struct static_call_site *kd_calls, *kd_calls_end;
/* The bounds of the idle loop's text, where RCU does not watch. */
extern unsigned long kd_cpuidle_start, kd_cpuidle_end;

/* thunks.c */
struct kd_thunk {
	const char *name;
	void *thunk;
};
extern const struct kd_thunk kd_thunks[];
extern const unsigned int kd_thunk_count;

#endif
