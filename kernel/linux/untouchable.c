// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * Functions that neither a jump nor a breakpoint may be in, though the kernel's lists (the kprobe blacklist, entry code) do
 * not name them: those that also run elsewhere than where they lie, or where there is no stack yet, no table of interrupts
 * or not the kernel's page tables; and those that the compiler puts into every return and indirect call, the breakpoint
 * hook's among them.
 */
#include <linux/kernel.h>
#include "lookup.h"
#include "untouchable.h"

static const char *const names[] = {
	/* A processor that starts. */
	"startup_64", "secondary_startup_64", "secondary_startup_64_no_verify", "common_startup_64", "verify_cpu",
	"sev_verify_cbit", "start_cpu0", "soft_restart_cpu",
	/* One that wakes up; and a whole machine, on page tables that have no modules. */
	"wakeup_long64", "restore_image", "core_restore_code", "restore_registers",
	/* Copied by kexec to a page of their own. */
	"relocate_kernel", "identity_mapped", "virtual_mapped", "swap_pages",
	/* Copied by ftrace into the trampolines that it makes. */
	"ftrace_caller", "ftrace_regs_caller",
	/* Where functions return if the processor needs it, and what entry code calls for that. */
	"__x86_return_thunk", "retbleed_return_thunk", "srso_return_thunk", "srso_alias_return_thunk", "srso_safe_ret",
	"srso_alias_safe_ret", "its_return_thunk", "call_depth_return_thunk", "entry_untrain_ret", "retbleed_untrain_ret",
	"srso_untrain_ret", "srso_alias_untrain_ret", "zen_untrain_ret", "entry_ibpb", "write_ibpb", "__warn_thunk",
	"warn_thunk_thunk", "clear_bhb_loop",
};

/* Where indirect branches go if the processor needs it: one for each register. */
static const char *const branches[] = {
	"__x86_indirect_thunk_%s", "__x86_indirect_call_thunk_%s", "__x86_indirect_jump_thunk_%s",
	"__x86_indirect_its_thunk_%s",
};

static const char *const registers[] = {
	"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
};

static unsigned long addresses[ARRAY_SIZE(names) + ARRAY_SIZE(branches) * ARRAY_SIZE(registers)];

void kd_untouchable_init(void)
{
	unsigned int i, j, count = 0;
	char name[48];

	for (i = 0; i < ARRAY_SIZE(names); i++)
		addresses[count++] = kd_k_kallsyms_lookup_name(names[i]);
	for (i = 0; i < ARRAY_SIZE(branches); i++)
		for (j = 0; j < ARRAY_SIZE(registers); j++) {
			snprintf(name, sizeof(name), branches[i], registers[j]);
			addresses[count++] = kd_k_kallsyms_lookup_name(name);
		}
}

bool kd_untouchable(unsigned long function)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(addresses); i++)
		if (addresses[i] == function)
			return true;
	return false;
}
