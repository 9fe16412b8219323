// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * owners: bytes at a function's start that the kernel rewrites or knows by their address, and places there that it
 * comes to without a branch. Each is refused by its name, or shown to be harmless: first in functions that are made
 * for it, then in what the running kernel has in its tables.
 */
#include <linux/bug.h>
#include <linux/extable.h>
#include <linux/jump_label.h>
#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/linkage.h>
#include <linux/static_call.h>
#include <linux/static_call_types.h>
#include <linux/string.h>
#include <asm/alternative.h>
#include <asm/asm.h>
#include <asm/cpufeatures.h>
#include <asm/extable.h>
#include "test.h"

/* How far a window reaches in the kernel. */
#define WINDOW 5
/* How many entries of each of the kernel's tables are tried. */
#define MOST_TRIED 20

#define FUNCTION(name_, body_)						\
	asm(".pushsection .text\n"					\
	    ".type " #name_ ", @function\n"				\
	    #name_ ":\n"						\
	    "	endbr64\n"						\
	    body_							\
	    ".size " #name_ ", . - " #name_ "\n"			\
	    ".popsection\n");						\
	extern char name_[]

/* It may fault at its second instruction. */
FUNCTION(own_exception,
	 "	xor %eax, %eax\n"
	 "1:	mov (%rdi), %al\n"
	 "	mov %rdi, %rdx\n"
	 "	mov %rdi, %rcx\n"
	 "2:	" ASM_RET
	 _ASM_EXTABLE(1b, 2b));

/* It may fault further on, and goes on at its second instruction then. */
FUNCTION(own_fixup,
	 "	xor %eax, %eax\n"
	 "2:	mov %rdi, %rdx\n"
	 "	mov %rdi, %rcx\n"
	 "	mov %rdi, %rsi\n"
	 "	mov %rdi, %r8\n"
	 "1:	mov (%rdi), %al\n"
	 "	" ASM_RET
	 _ASM_EXTABLE(1b, 2b));

/* A branch further on, which is not there until it is switched on, leads to its second instruction. */
DEFINE_STATIC_KEY_FALSE(own_label_key);
FUNCTION(own_label,
	 "	xor %eax, %eax\n"
	 "2:	mov %rdi, %rdx\n"
	 "	mov %rdi, %rcx\n"
	 "	mov %rdi, %rsi\n"
	 "	mov %rdi, %r8\n"
	 "1:	.byte 0x0f, 0x1f, 0x44, 0x00, 0x00\n"	/* nopl 0(%rax,%rax,1) */
	 "	" ASM_RET
	 "	.pushsection __jump_table, \"aw\"\n"
	 "	.balign 8\n"
	 "	.long 1b - ., 2b - .\n"
	 "	.quad own_label_key - .\n"
	 "	.popsection\n");

/* A branch further on leads to its second instruction, and a kprobe's breakpoint hides it. */
FUNCTION(own_probed,
	 "	xor %eax, %eax\n"
	 "2:	inc %eax\n"
	 "	mov %rdi, %rdx\n"
	 "	mov %rdi, %rcx\n"
	 "	cmp $3, %eax\n"
	 "	jb 2b\n"
	 "	" ASM_RET);

/* More owners than a survey is told of one by one, all of them behind the window. */
DEFINE_STATIC_KEY_FALSE(own_crowd_key);
#define LABEL(number_)							\
	 #number_ ":	.byte 0x0f, 0x1f, 0x44, 0x00, 0x00\n"		\
	 "	.pushsection __jump_table, \"aw\"\n"			\
	 "	.balign 8\n"						\
	 "	.long " #number_ "b - ., 9f - .\n"			\
	 "	.quad own_crowd_key - .\n"				\
	 "	.popsection\n"
FUNCTION(own_crowd,
	 "	xor %eax, %eax\n"
	 "	mov %rdi, %rdx\n"
	 LABEL(1) "	nop\n" LABEL(2) "	nop\n" LABEL(3)
	 "9:	" ASM_RET);

static DEFINE_STATIC_KEY_FALSE(own_branch_key);
static noinline int own_branch(int value)
{
	if (static_branch_unlikely(&own_branch_key))
		return value + 2;
	return value + 1;
}

static int static_called(int value)
{
	return value + 3;
}
DEFINE_STATIC_CALL(own_static_call_key, static_called);
static noinline int own_static_call(int value)
{
	return static_call(own_static_call_key)(value) + 1;
}

static noinline int own_warning(int value)
{
	__WARN();
	return value + 1;
}

/* Applied once, when the module is loaded: what is there now stays. */
static noinline int own_alternative(int value)
{
	asm volatile(ALTERNATIVE("add $1, %0; nop; nop", "add $5, %0; nop; nop", X86_FEATURE_ALWAYS) : "+r" (value));
	return value * 3;
}

/* While only one processor runs the kernel writes over the prefix, and back when it gets a second one. */
static atomic_t counter;
static noinline int own_lock(int value)
{
	atomic_inc(&counter);
	return value + 1;
}

static int detoured(int value)
{
	return value + 100;
}

/* Attaching is refused, and so is a survey, with these words. */
static void refused(struct test_lines *to, const char *what, void *target, const char *words)
{
	struct kdetour one = { .target = target, .detour = detoured, .owner = THIS_MODULE };
	struct kdetour *const set[] = { &one };
	struct kdetour_error error = {};
	static char text[1024];
	int result = kdetour_attach_all(set, 1, KDETOUR_LIVE, &error);

	kdetour_survey(target, text, sizeof(text));
	test_line(to, result == -EOPNOTSUPP && error.code == KDETOUR_REFUSED && strstr(error.text, words) &&
		  strstr(text, words), "owners: %s gives %d: %s", what, result, error.text);
	if (!result)
		kdetour_detach(&one);
}

/* Attaching works, and the function is the same through it. */
static int (*original)(int value);

static int through(int value)
{
	return original(value) + 100;
}

static void harmless(struct test_lines *to, const char *what, int (*target)(int value))
{
	struct kdetour one = { .target = target, .detour = through, .original = (void **)&original, .owner = THIS_MODULE };
	struct kdetour *const set[] = { &one };
	struct kdetour_error error = {};
	int before = target(7), result = kdetour_attach_all(set, 1, KDETOUR_LIVE, &error);
	int during = target(7);

	if (!result)
		kdetour_detach(&one);
	CHECK(to, !result && during == before + 100 && target(7) == before, "owners: %s is harmless: %d %s", what, result,
	      error.text);
}

/* What a survey says of the function around `at`, if that may lie in its window; else nothing. */
static const char *survey_around(unsigned long at)
{
	static char text[1024], symbol[KSYM_SYMBOL_LEN];
	unsigned long long entry, fentry = 0;
	unsigned long offset;
	char *plus, *line;

	sprint_symbol(symbol, at);
	plus = strchr(symbol, '+');
	if (!plus || sscanf(plus, "+0x%lx/", &offset) != 1 || offset >= 9 + WINDOW)
		return NULL;
	entry = at - offset;
	kdetour_survey((void *)entry, text, sizeof(text));
	line = strstr(text, "fentry ");
	if (!line || sscanf(line, "fentry %llx", &fentry) != 1)
		return NULL;
	/* Behind the site, or behind a landing pad of four bytes if there is one. */
	if (fentry ? at < fentry + WINDOW || at >= fentry + 2 * WINDOW : offset >= WINDOW)
		return NULL;
	return text;
}

struct found {
	unsigned int tried, named, other;
	char wrong[160];
};

static void look(struct found *found, unsigned long at, const char *words)
{
	const char *text = found->tried < MOST_TRIED ? survey_around(at) : NULL;

	if (!text)
		return;
	found->tried++;
	if (strstr(text, words))
		found->named++;
	else if (strstr(text, "verdict no"))
		found->other++;
	else
		snprintf(found->wrong, sizeof(found->wrong), "%pS can be detoured", (void *)at);
	if (!strstr(text, words) && !found->wrong[0])
		snprintf(found->wrong, sizeof(found->wrong), "%pS: %.100s", (void *)at, strstr(text, "error") ?: "");
}

static void say(struct test_lines *to, const char *what, const struct found *found)
{
	CHECK(to, found->tried && found->named + found->other == found->tried,
	      "owners: %u functions of the kernel begin with %s: %u refused for it, %u otherwise %s", found->tried, what,
	      found->named, found->other, found->wrong);
}

static void tables(struct test_lines *to)
{
	struct exception_table_entry *fault = (void *)kdetour_find("__start___ex_table");
	struct exception_table_entry *fault_end = (void *)kdetour_find("__stop___ex_table");
	struct jump_entry *label = (void *)kdetour_find("__start___jump_table");
	struct jump_entry *label_end = (void *)kdetour_find("__stop___jump_table");
	struct static_call_site *call = (void *)kdetour_find("__start_static_call_sites");
	struct static_call_site *call_end = (void *)kdetour_find("__stop_static_call_sites");
	struct bug_entry *bug = (void *)kdetour_find("__start___bug_table");
	struct bug_entry *bug_end = (void *)kdetour_find("__stop___bug_table");
	struct found faults = {}, labels = {}, calls = {}, bugs = {};

	if (!CHECK(to, fault && fault_end && label && label_end && call && call_end && bug && bug_end,
		   "owners: the kernel's tables"))
		return;
	for (; fault < fault_end; fault++)
		look(&faults, (unsigned long)&fault->insn + fault->insn, "exception table");
	for (; label < label_end; label++)
		if (!jump_entry_is_init(label))
			look(&labels, jump_entry_code(label), "jump label");
	for (; call < call_end; call++)
		look(&calls, (unsigned long)&call->addr + call->addr, "static call");
	for (; bug < bug_end; bug++)
		look(&bugs, (unsigned long)&bug->bug_addr_disp + bug->bug_addr_disp, "a trap");
	say(to, "what may fault", &faults);
	say(to, "a static branch", &labels);
	say(to, "a static call", &calls);
	say(to, "a BUG or WARN", &bugs);
}

void test_owners(struct test_lines *to, const char *argument)
{
	struct kprobe hides = {};
	char *probed = own_probed, *crowd = own_crowd;
	int error;

	/* For objtool a reference to code in the middle of a function is a target of indirect branches. */
	OPTIMIZER_HIDE_VAR(probed);
	OPTIMIZER_HIDE_VAR(crowd);
	refused(to, "what may fault", own_exception, "exception table");
	refused(to, "a fixup in the window", own_fixup, "jumps to");
	refused(to, "a static branch into the window", own_label, "jumps to");
	refused(to, "a branch into the window", own_probed, "jumps to");
	hides.addr = (kprobe_opcode_t *)probed + 17;
	error = register_kprobe(&hides);
	CHECK(to, !error && *(u8 *)hides.addr == 0xcc, "owners: kprobe on the branch: %d", error);
	refused(to, "a branch under a kprobe", own_probed, "jumps to");
	if (!error)
		unregister_kprobe(&hides);
	hides = (struct kprobe){ .addr = (kprobe_opcode_t *)crowd + 6 };
	error = register_kprobe(&hides);
	CHECK(to, !error, "owners: kprobe in a crowd: %d", error);
	refused(to, "a kprobe in front of many owners", own_crowd, "belongs to a kprobe");
	if (!error)
		unregister_kprobe(&hides);
	refused(to, "a static branch", own_branch, "jump label");
	refused(to, "a static call", own_static_call, "static call");
	refused(to, "a warning", own_warning, "a trap");
	harmless(to, "an alternative", own_alternative);
	refused(to, "a lock prefix", own_lock, "alternatives");
	tables(to);
	CHECK(to, own_branch(1) == 2 && own_static_call(1) == 5, "owners: all is as it was");
}
