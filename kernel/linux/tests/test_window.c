// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* The targets of window.h, and changes that run beside the test. */
#include <linux/err.h>
#include <linux/kstrtox.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/string.h>
#include "window.h"

/* Nobody comes back right from a wrong place: each value goes through the registers that the first instructions save. */
asm(".pushsection .text\n"
    ".type test_window_222, @function\n"
    "test_window_222:\n"
    "	endbr64\n"
    "	push %r15\n"			/* 41 57 */
    "	push %r14\n"			/* 41 56 */
    "	push %r13\n"			/* 41 55: the window ends inside it */
    "	mov %rdi, %r13\n"
    "	mov %rdi, %r15\n"
    "	lea 1(%r13, %r15), %rax\n"
    "	pop %r13\n"
    "	pop %r14\n"
    "	pop %r15\n"
    "	" ASM_RET
    ".size test_window_222, . - test_window_222\n"
    ".type test_window_131, @function\n"
    "test_window_131:\n"
    "	endbr64\n"
    "	push %rbp\n"			/* 55 */
    "	mov %rsp, %rbp\n"		/* 48 89 e5 */
    "	push %rbx\n"			/* 53 */
    "	mov %rdi, %rbx\n"
    "	lea 2(%rbx, %rdi), %rax\n"
    "	pop %rbx\n"
    "	pop %rbp\n"
    "	" ASM_RET
    ".size test_window_131, . - test_window_131\n"
    ".type test_window_11111, @function\n"
    "test_window_11111:\n"
    "	endbr64\n"
    "	push %rbx\n"			/* 53 */
    "	push %rbp\n"			/* 55 */
    "	push %rdi\n"			/* 57 */
    "	push %rsi\n"			/* 56 */
    "	push %rdx\n"			/* 52 */
    "	mov 16(%rsp), %rbx\n"
    "	lea 3(%rbx, %rdi), %rax\n"
    "	pop %rdx\n"
    "	pop %rsi\n"
    "	pop %rdi\n"
    "	pop %rbp\n"
    "	pop %rbx\n"
    "	" ASM_RET
    ".size test_window_11111, . - test_window_11111\n"
    ".popsection\n");
long test_window_222(long value);
long test_window_131(long value);
long test_window_11111(long value);

struct window_target window_targets[WINDOW_TARGETS] = {
	{ .name = "2+2+2", .function = test_window_222, .plus = 1 },
	{ .name = "1+3+1", .function = test_window_131, .plus = 2 },
	{ .name = "1+1+1+1+1", .function = test_window_11111, .plus = 3 },
};

static void *trampoline;

static noinline long detour_function(long value)
{
	long (*original)(long value) = trampoline;

	return original(value) + DETOURED;
}

struct kdetour *window_detour(const struct window_target *target)
{
	static struct kdetour detour;

	detour = (struct kdetour){
		.target = target->function, .detour = detour_function, .original = &trampoline, .owner = THIS_MODULE,
	};
	return &detour;
}

void *window_trampoline(void)
{
	return trampoline;
}

/* The number behind a word at the start of a line; where the text goes on. */
static char *next(char *text, const char *word, u64 *number)
{
	char *found = strstr(text, word), *end;

	if (!found)
		return NULL;
	found += strlen(word);
	end = strpbrk(found, " \n");
	if (!end)
		return NULL;
	*end = '\0';
	return kstrtou64(found, 16, number) ? NULL : end + 1;
}

bool window_survey(struct test_lines *to, struct window_target *target)
{
	char *text = kzalloc(PAGE_SIZE, GFP_KERNEL), *rest = text;
	bool can, free;
	u64 at;

	if (!text) {
		test_line(to, false, "window %s: no memory", target->name);
		return false;
	}
	kdetour_survey(target->function, text, PAGE_SIZE);
	can = strstr(text, "verdict can be detoured");
	/* Only a free Jump5 changes what is on the boundaries. */
	free = strstr(text, "shape Jump5\n");
	target->count = 0;
	rest = next(rest, "\nwindow ", &target->window);
	while (rest && target->count < MOST_BOUNDARIES && (rest = next(rest, "displaced ", &at)))
		if (at > target->window && at < target->window + WINDOW)
			target->boundaries[target->count++] = at;
	kfree(text);
	memcpy(target->original, (void *)target->window, WINDOW);
	return CHECK(to, can && free && target->count >= 2, "window %s: %u boundaries inside", target->name,
		     target->count);
}

bool window_is_original(const struct window_target *target)
{
	return !memcmp((void *)target->window, target->original, WINDOW);
}

bool window_is_trapping(const struct window_target *target)
{
	const u8 *now = (void *)target->window;

	return READ_ONCE(now[0]) == 0xcc && !memcmp(now + 1, target->original + 1, WINDOW - 1);
}

static int change_thread(void *argument)
{
	struct window_change *change = argument;
	struct kdetour *const one[] = { change->detour };

	if (change->attach)
		change->result = kdetour_attach_all(one, 1, change->protocol, &change->error);
	else
		change->result = kdetour_detach_all(one, 1, change->protocol, KDETOUR_FOR_EVER, &change->error);
	complete(&change->done);
	return 0;
}

int window_start(struct window_change *change, bool attach, enum kdetour_protocol protocol, struct kdetour *detour)
{
	struct task_struct *task;

	*change = (struct window_change){ .detour = detour, .protocol = protocol, .attach = attach };
	init_completion(&change->done);
	task = kthread_create(change_thread, change, "kdetour_change");
	if (IS_ERR(task))
		return PTR_ERR(task);
	kthread_bind(task, 0);
	wake_up_process(task);
	return 0;
}

bool window_wait(struct window_change *change, unsigned int ms)
{
	if (!wait_for_completion_timeout(&change->done, msecs_to_jiffies(ms)))
		return false;
	/* For whoever asks again. */
	complete_all(&change->done);
	return true;
}
