// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * bad: everything that must be refused by name, with nothing written. The script compares the kernel's text.
 * changed ADDRESS: a detour is attached, the script's kprobe changes its jump, and detaching must notice.
 */
#include <linux/fs.h>
#include <linux/kstrtox.h>
#include <linux/mm.h>
#include <linux/string.h>
#include "test.h"

static int detour_function(void)
{
	return 0;
}

static void expect(struct test_lines *to, const char *what, struct kdetour *detour, int errno_, s32 code, u64 address)
{
	static struct kdetour_error error;
	static void *original;
	int result;

	original = NULL;
	detour->original = &original;
	memset(&error, 0, sizeof(error));
	result = kdetour_attach_all(&detour, 1, KDETOUR_LIVE, &error);
	test_line(to, result == errno_ && error.code == code && error.address == address && error.text[0] &&
		  !detour->handle && !original, "bad: %s gives %d, code %d, address %llx: %s", what, result,
		  error.code, error.address, error.text);
	if (!result)
		kdetour_detach(detour);
}

static int data;

/* kdetour enters a detour behind its landing pad. */
static char *behind_pad(void *function)
{
	return (char *)function + (IS_ENABLED(CONFIG_X86_KERNEL_IBT) ? 4 : 0);
}

/* Longer than a window, and its first bytes are the target of its own loop. */
asm(".pushsection .text\n"
    ".type test_loop, @function\n"
    "test_loop:\n"
    "	endbr64\n"
    "	xor %eax, %eax\n"		/* 31 c0 */
    "1:	inc %eax\n"			/* ff c0: inside the window */
    "	cmp $1000, %eax\n"
    "	jb 1b\n"
    "	" ASM_RET
    ".size test_loop, . - test_loop\n"
    ".popsection\n");
extern char test_loop[];

void test_bad(struct test_lines *to, const char *argument)
{
	static const u8 jump[] = { 0xe9, 0, 1, 0, 0 };
	struct kdetour_live live;
	size_t place = 0;
	u64 leads_to;
	struct kdetour_error error = {};
	struct kdetour detour = {};
	struct kdetour *one = &detour, *none = NULL;
	struct kdetour other = { .detour = detour_function, .owner = THIS_MODULE };
	char *middle, *loop = test_loop;
	int result;

	/* For objtool a reference to code in the middle of a function is a target of indirect branches. */
	OPTIMIZER_HIDE_VAR(loop);

#define BAD(what_, errno_, code_, address_, ...)							\
	do {												\
		detour = (struct kdetour){ .detour = detour_function, .owner = THIS_MODULE, __VA_ARGS__ };	\
		expect(to, what_, &detour, errno_, code_, address_);					\
	} while (0)

	BAD("no target", -EINVAL, KDETOUR_NULL, 0);
	BAD("no detour", -EINVAL, KDETOUR_NULL, 0, .symbol = "vfs_read", .detour = NULL);
	BAD("an unknown name", -ENOENT, KDETOUR_UNKNOWN_SYMBOL, 0, .symbol = "no_such_function_at_all");
	BAD("an ambiguous name", -ENOTUNIQ, KDETOUR_AMBIGUOUS_SYMBOL, 0, .symbol = "name_show");
	BAD("a detour in data", -EINVAL, KDETOUR_NOT_CODE, (u64)&data, .symbol = "vfs_read", .detour = &data);
	BAD("a detour in kdetour", -EPERM, KDETOUR_FORBIDDEN, (u64)behind_pad(kdetour_find), .symbol = "vfs_read",
	    .detour = kdetour_find);
	BAD("a static call's trampoline", -EOPNOTSUPP, KDETOUR_REFUSED, kdetour_find("__SCT__tp_func_sched_wakeup"),
	    .symbol = "__SCT__tp_func_sched_wakeup");
	BAD("page zero", -EFAULT, KDETOUR_UNREADABLE, 8, .target = (void *)8);
	BAD("a hole", -EFAULT, KDETOUR_UNREADABLE, 0xffffc8ffffff0000, .target = (void *)0xffffc8ffffff0000);
	BAD("no canonical address", -EFAULT, KDETOUR_UNREADABLE, 0x8000000000000000,
	    .target = (void *)0x8000000000000000);
	BAD("the last byte", -EFAULT, KDETOUR_UNREADABLE, ~0ull, .target = (void *)~0ull);
	BAD("data", -EINVAL, KDETOUR_NOT_CODE, (u64)&data, .target = &data);
	BAD("kernel data", -EINVAL, KDETOUR_NOT_CODE, kdetour_find("jiffies"), .symbol = "jiffies");
	middle = (char *)kdetour_find("vfs_read") + 3;
	BAD("the middle of a function", -EINVAL, KDETOUR_NOT_FUNCTION, (u64)middle, .target = middle);
	BAD("the kprobe blacklist", -EPERM, KDETOUR_FORBIDDEN, kdetour_find("notify_die"), .symbol = "notify_die");
	BAD("noinstr text", -EPERM, KDETOUR_FORBIDDEN, kdetour_find("exc_int3"), .symbol = "exc_int3");
	BAD("the idle loop", -EPERM, KDETOUR_FORBIDDEN, kdetour_find("__cpuidle_text_start"),
	    .target = (void *)kdetour_find("__cpuidle_text_start"));
	BAD("the way to the breakpoint hook", -EPERM, KDETOUR_FORBIDDEN, kdetour_find("__rcu_read_lock"),
	    .symbol = "__rcu_read_lock");
	BAD("entry text", -EPERM, KDETOUR_FORBIDDEN, kdetour_find("entry_SYSCALL_64"), .symbol = "entry_SYSCALL_64");
	if (kdetour_find("restore_registers"))
		BAD("what wakes the machine up", -EPERM, KDETOUR_FORBIDDEN, kdetour_find("restore_registers"),
		    .symbol = "restore_registers");
	BAD("what kexec copies", -EPERM, KDETOUR_FORBIDDEN, kdetour_find("relocate_kernel"), .symbol = "relocate_kernel");
	BAD("what ftrace copies", -EPERM, KDETOUR_FORBIDDEN, kdetour_find("ftrace_caller"), .symbol = "ftrace_caller");
	BAD("a processor that starts", -EPERM, KDETOUR_FORBIDDEN, kdetour_find("secondary_startup_64"),
	    .symbol = "secondary_startup_64");
	BAD("where functions return", -EPERM, KDETOUR_FORBIDDEN, kdetour_find("__x86_return_thunk"),
	    .symbol = "__x86_return_thunk");
	BAD("where indirect calls go", -EPERM, KDETOUR_FORBIDDEN, kdetour_find("__x86_indirect_thunk_rax"),
	    .symbol = "__x86_indirect_thunk_rax");
	BAD("kdetour itself", -EPERM, KDETOUR_FORBIDDEN, (u64)kdetour_find, .target = kdetour_find);
	BAD("a branch into the window", -EOPNOTSUPP, KDETOUR_REFUSED, (u64)loop + 6, .target = loop);

	/* Sets: one bad member, and nothing of it happens. */
	other.symbol = "vfs_read";
	detour = (struct kdetour){ .detour = detour_function, .owner = THIS_MODULE, .symbol = "no_such_function" };
	{
		struct kdetour *const set[] = { &other, &detour };
		struct kdetour *const twice[] = { &other, &other };
		struct kdetour same = { .symbol = "vfs_read", .detour = detour_function };
		struct kdetour *const same_target[] = { &other, &same };
		struct kdetour *const with_null[] = { &other, NULL };
		struct kdetour nobodys = { .symbol = "vfs_read", .detour = detour_function, .owner = (void *)&data };
		struct kdetour *const without_owner[] = { &other, &nobodys };

		result = kdetour_attach_all(set, 2, KDETOUR_LIVE, &error);
		CHECK(to, result == -ENOENT && error.index == 1 && !other.handle, "bad: one of two unknown gives %d", result);
		detour.symbol = "notify_die";
		result = kdetour_attach_all(set, 2, KDETOUR_RENDEZVOUS, &error);
		CHECK(to, result == -EPERM && error.index == 1 && !other.handle, "bad: one of two forbidden gives %d", result);
		result = kdetour_attach_all(twice, 2, KDETOUR_LIVE, &error);
		CHECK(to, result == -EEXIST && error.index == 1 && !other.handle, "bad: one struct twice gives %d", result);
		result = kdetour_attach_all(same_target, 2, KDETOUR_LIVE, &error);
		CHECK(to, result == -EEXIST && error.index == 1 && !other.handle, "bad: one target twice gives %d", result);
		result = kdetour_attach_all(with_null, 2, KDETOUR_LIVE, &error);
		CHECK(to, result == -EINVAL && error.index == 1 && !other.handle, "bad: a null in the set gives %d", result);
		result = kdetour_attach_all(without_owner, 2, KDETOUR_LIVE, &error);
		CHECK(to, result == -EINVAL && error.code == KDETOUR_ARGUMENT && error.index == 1 && !other.handle,
		      "bad: an owner that is no module gives %d", result);
		nobodys.owner = (void *)8;
		result = kdetour_attach_all(without_owner, 2, KDETOUR_LIVE, &error);
		CHECK(to, result == -EINVAL && error.code == KDETOUR_ARGUMENT, "bad: an owner that is nothing gives %d", result);
		result = kdetour_attach_all(set, 2, 7, &error);
		CHECK(to, result == -EINVAL && error.code == KDETOUR_ARGUMENT, "bad: an unknown protocol gives %d", result);
		result = kdetour_detach_all(set, 2, -1, KDETOUR_FOR_EVER, &error);
		CHECK(to, result == -EINVAL && error.code == KDETOUR_ARGUMENT, "bad: and for a detach %d", result);
	}
	result = kdetour_attach_all(NULL, 3, KDETOUR_LIVE, &error);
	CHECK(to, result == -EINVAL && error.code == KDETOUR_NULL, "bad: a null set gives %d", result);
	result = kdetour_detach_all(NULL, 3, KDETOUR_LIVE, 0, &error);
	CHECK(to, result == -EINVAL && error.code == KDETOUR_NULL, "bad: detaching a null set gives %d", result);
	result = kdetour_attach_all(&one, UINT_MAX, KDETOUR_LIVE, &error);
	CHECK(to, result == -ENOSPC, "bad: a set of four thousand millions gives %d", result);
	result = kdetour_attach_all(&none, 1, KDETOUR_LIVE, NULL);
	CHECK(to, result == -EINVAL, "bad: a null struct gives %d", result);
	result = kdetour_attach_all(NULL, 0, KDETOUR_LIVE, &error);
	CHECK(to, result == 0, "bad: an empty set gives %d", result);

	/* Handles that name nothing. */
	result = kdetour_detach_all(&one, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);
	CHECK(to, result == -EINVAL && error.code == KDETOUR_NOT_ATTACHED, "bad: detach before attach gives %d", result);
	detour.handle = 0xdeadbeef;
	result = kdetour_detach_all(&one, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error);
	CHECK(to, result == -EINVAL && error.code == KDETOUR_NOT_ATTACHED, "bad: a wrong handle gives %d", result);
	result = kdetour_detach_all(&none, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, NULL);
	CHECK(to, result == -EINVAL, "bad: detaching null gives %d", result);
	CHECK(to, kdetour_survey(NULL, error.text, sizeof(error.text)) > 0, "bad: a survey of null answers");
	CHECK(to, kdetour_survey(test_bad, error.text, 1) == 0, "bad: a survey into one byte answers");
	CHECK(to, kdetour_survey(test_bad, NULL, 64) == 0, "bad: a survey into null answers");
	CHECK(to, kdetour_survey(test_bad, error.text, 0) == 0, "bad: a survey into nothing answers");
	CHECK(to, !kdetour_next(NULL, &live) && !kdetour_next(&place, NULL), "bad: a list without a place, or into null, ends");
	CHECK(to, !kdetour_length(NULL, 5, 0, NULL) && !kdetour_length(jump, 4, 0, NULL), "bad: no bytes, and cut ones, have no length");
	CHECK(to, kdetour_length(jump, 5, 0x1000, &leads_to) == 5 && leads_to == 0x1105, "bad: a jump has a length, and leads somewhere");
	CHECK(to, kdetour_length(jump + 4, 1, 0, &leads_to) == 0, "bad: a byte that is no instruction has no length");
	CHECK(to, kdetour_find(NULL) == 0, "bad: finding null answers");
	CHECK(to, kdetour_find("") == 0, "bad: finding nothing answers");
}

/* Attached twice: by a second client, and after somebody changed the jump. */
static atomic_long_t calls;

KDETOUR(vfs_llseek, loff_t, (struct file *file, loff_t offset, int whence), (file, offset, whence))
{
	atomic_long_inc(&calls);
	return vfs_llseek_original(file, offset, whence);
}

void test_changed(struct test_lines *to, const char *argument)
{
	struct kdetour *const one[] = { &vfs_llseek_detour };
	struct kdetour second = { .symbol = "vfs_llseek", .detour = detour_function, .owner = THIS_MODULE };
	struct kdetour *const again[] = { &second };
	struct kdetour_error error = {};
	static char text[1024];
	int result;

	if (!strcmp(argument, "attach")) {
		CHECK(to, !kdetour_attach_all(one, 1, KDETOUR_LIVE, &error), "changed: attach %s", error.text);
		CHECK(to, kdetour_survey(vfs_llseek_detour.target, text, sizeof(text)) &&
		      strstr(text, "detours 1\n") && strstr(text, "verdict can be detoured"),
		      "changed: a survey says that it is detoured and can be once more");
		result = kdetour_attach_all(one, 1, KDETOUR_LIVE, &error);
		CHECK(to, result == -EEXIST, "changed: the same struct again gets %d", result);
	} else if (!strcmp(argument, "refused")) {
		result = kdetour_detach_all(one, 1, KDETOUR_LIVE, 100, &error);
		CHECK(to, result == -ESTALE && error.code == KDETOUR_CHANGED && error.address,
		      "changed: live detach gives %d: %s", result, error.text);
		result = kdetour_detach_all(one, 1, KDETOUR_RENDEZVOUS, 100, &error);
		CHECK(to, result == -ESTALE && error.code == KDETOUR_CHANGED,
		      "changed: detach at a rendezvous gives %d: %s", result, error.text);
		CHECK(to, vfs_llseek_detour.handle, "changed: it is still attached");
		result = kdetour_attach_all(again, 1, KDETOUR_LIVE, &error);
		CHECK(to, result == -EOPNOTSUPP && error.code == KDETOUR_REFUSED && strstr(error.text, "kprobe") &&
		      !second.handle, "changed: a second client gets %d: %s", result, error.text);
	} else {
		CHECK(to, !kdetour_detach_all(one, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error), "changed: detach %s", error.text);
	}
}
