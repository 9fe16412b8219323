// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* The thunks of lookup.h: text that is filled in when the module is loaded. */
#include <linux/kernel.h>
#include <linux/linkage.h>
#include "lookup.h"

/*
 * Until it is filled in a thunk returns at once. It must look as if it could return: objtool takes what follows a
 * call of a function that cannot for unreachable, and gives it no unwind information.
 */
#define THUNK(name_)							\
	extern char kd_thunk_##name_[] asm("kd_k_" #name_);		\
	asm(".pushsection .text\n"					\
	    ".balign 16\n"						\
	    ".globl kd_k_" #name_ "\n"					\
	    ".type kd_k_" #name_ ", @function\n"			\
	    "kd_k_" #name_ ":\n"					\
	    "	endbr64\n"						\
	    "	" ASM_RET						\
	    "	.balign 16, 0xcc\n"					\
	    ".size kd_k_" #name_ ", . - kd_k_" #name_ "\n"		\
	    ".popsection\n");

#define ALL_THUNKS(X)							\
	X(kallsyms_lookup_name)						\
	X(kallsyms_lookup_size_offset)					\
	X(kallsyms_on_each_match_symbol)				\
	X(kallsyms_on_each_symbol)					\
	X(core_kernel_text)						\
	X(__module_text_address)					\
	X(__module_address)						\
	X(get_kprobe)							\
	X(within_kprobe_blacklist)					\
	X(ftrace_location)						\
	X(ftrace_text_reserved)						\
	X(jump_label_text_reserved)					\
	X(static_call_text_reserved)					\
	X(alternatives_text_reserved)					\
	X(find_bug)							\
	X(search_exception_tables)

ALL_THUNKS(THUNK)

#define ENTRY(name_) { #name_, kd_thunk_##name_ },
const struct kd_thunk kd_thunks[] = { ALL_THUNKS(ENTRY) };
const unsigned int kd_thunk_count = ARRAY_SIZE(kd_thunks);
