// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * words: kdetour_words.ko is called by tasks on all processors, by interrupts in between, and by itself; what is refused; how much of
 * the stack it takes.
 * tell ADDRESS: what it says of the kernel's instruction there.
 */
#include <linux/delay.h>
#include <linux/kstrtox.h>
#include <linux/kthread.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <asm/stacktrace.h>
#include "kdetour_words.h"
#include "test.h"

static typeof(&kdetour_words) words;

/* Whether they agree, with whatever is in other calls' lines. */
struct told { u8 code[15]; u8 length; const char *text; };

static const struct told by_task = { { 0xe8, 0xfb, 0, 0, 0 }, 5, "call 0xffffffff81000100" };
static const struct told by_interrupt = { { 0x48, 0x8b, 0x45, 0xf8 }, 4, "mov rax, [rbp-0x8]" };
/* The longest way: EVEX, a mask, memory. */
static const struct told longest = { { 0x62, 0xf2, 0x4f, 0xdd, 0x72, 0x50, 0x01 }, 7, "vcvtne2ps2bf16 zmm2{k5}{z}, zmm6, dword bcst [rax+0x4]" };

static bool agrees(const struct told *one)
{
	char text[KDETOUR_WORDS_TEXT];

	return words(one->code, sizeof(one->code), 0xffffffff81000000, text, sizeof(text)) == one->length && !strcmp(text, one->text);
}

static atomic_t told, wrong;

static int task(void *unused)
{
	while (!kthread_should_stop()) {
		if (!agrees(&by_task))
			atomic_inc(&wrong);
		atomic_inc(&told);
		cond_resched();
	}
	return 0;
}

static void interrupt(void *unused)
{
	if (!agrees(&by_interrupt))
		atomic_inc(&wrong);
}

static void everywhere(struct test_lines *to)
{
	struct task_struct *tasks[8] = {};
	unsigned int cpu, rounds;

	atomic_set(&told, 0);
	atomic_set(&wrong, 0);
	for_each_online_cpu(cpu)
		if (cpu < ARRAY_SIZE(tasks))
			tasks[cpu] = kthread_run_on_cpu(task, NULL, cpu, "words/%u");
	for (rounds = 0; rounds < 3000; rounds++)
		on_each_cpu(interrupt, NULL, true);
	for (cpu = 0; cpu < ARRAY_SIZE(tasks); cpu++)
		if (!IS_ERR_OR_NULL(tasks[cpu]))
			kthread_stop(tasks[cpu]);
	test_line(to, !atomic_read(&wrong) && atomic_read(&told), "words: %d times by tasks, in which interrupts came: %d were wrong",
		  atomic_read(&told), atomic_read(&wrong));
}

/* What kdetour_words calls with a line of its own: here it is interrupted, again and again. */
static int deeper, results[8];

KDETOUR(kd_words, int, (size_t line, const u8 *code, size_t length, u64 address, u8 *text, size_t size),
	(line, code, length, address, text, size))
{
	char own[KDETOUR_WORDS_TEXT];

	if (deeper > 0) {
		int at = --deeper;

		results[at] = words("\x90", 1, 0, own, sizeof(own));
		if (results[at] > 0 && strcmp(own, "nop"))
			results[at] = 0;
	}
	return kd_words_original(line, code, length, address, text, size);
}

static void nested(struct test_lines *to)
{
	if (!CHECK(to, !kdetour_attach(&kd_words_detour), "words: what it calls is detoured"))
		return;
	preempt_disable();
	deeper = ARRAY_SIZE(results);
	CHECK(to, agrees(&by_task), "words: what others told meanwhile changes nothing");
	preempt_enable();
	/* This one is the first of six, and those that it called the other five. */
	CHECK(to, deeper == 2 && results[7] == 1 && results[3] == 1 && results[2] == -EBUSY, "words: the seventh is refused");
	CHECK(to, agrees(&by_interrupt), "words: and all come back from it");
	kdetour_detach(&kd_words_detour);
}

static noinline unsigned int stack_of(const struct told *one)
{
	static char text[KDETOUR_WORDS_TEXT];
	volatile u8 *below;
	unsigned long flags;
	unsigned int i;

	local_irq_save(flags);
	below = (u8 *)current_stack_pointer - 3072;
	for (i = 0; i < 3072; i++)
		below[i] = 0xa5;
	words(one->code, sizeof(one->code), 0, text, sizeof(text));
	for (i = 0; i < 3072 && below[i] == 0xa5; i++)
		;
	local_irq_restore(flags);
	return 3072 - i;
}

static void refusals(struct test_lines *to)
{
	char text[KDETOUR_WORDS_TEXT] = "as it was";

	CHECK(to, words(NULL, 1, 0, text, 96) == -EINVAL, "words: no code");
	CHECK(to, words("\x90", 0, 0, text, 96) == -EINVAL, "words: no bytes");
	CHECK(to, words("\x90", 1, 0, NULL, 96) == -EINVAL, "words: nowhere to write");
	CHECK(to, words("\x90", 1, 0, text, 0) == -EINVAL, "words: no room");
	CHECK(to, words("\x06\x06", 2, 0, text, 96) == -EILSEQ, "words: no instruction");
	CHECK(to, words("\xe8", 1, 0, text, 96) == -ENODATA, "words: a cut one");
	CHECK(to, words("\x90", 1, 0, text, 3) == -ENOSPC, "words: too little room");
	CHECK(to, !strcmp(text, "as it was"), "words: nothing is written then");
	CHECK(to, words("\x90", 1, 0, text, 4) == 1 && !strcmp(text, "nop"), "words: enough of it");
}

void test_words(struct test_lines *to, const char *argument)
{
	unsigned int used;

	words = symbol_get(kdetour_words);
	if (!CHECK(to, words, "words: kdetour_words.ko is there"))
		return;
	refusals(to);
	CHECK(to, agrees(&longest), "words: EVEX");
	used = max3(stack_of(&by_task), stack_of(&by_interrupt), stack_of(&longest));
	test_line(to, used > 64 && used < 1536, "words: it took %u bytes of the stack", used);
	nested(to);
	everywhere(to);
	symbol_put(kdetour_words);
}

void test_tell(struct test_lines *to, const char *argument)
{
	char text[KDETOUR_WORDS_TEXT];
	unsigned long at;
	u8 code[15];
	int length;

	words = symbol_get(kdetour_words);
	if (!CHECK(to, words, "words: kdetour_words.ko is there"))
		return;
	if (CHECK(to, !kstrtoul(argument, 16, &at) && !copy_from_kernel_nofault(code, (void *)at, sizeof(code)), "words: it can be read")) {
		length = words(code, sizeof(code), at, text, sizeof(text));
		test_line(to, length > 0, "words: told %016lx %*phN %s", at, max(length, 0), code, text);
	}
	symbol_put(kdetour_words);
}
