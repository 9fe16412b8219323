// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * many COUNT NAME...: one session of COUNT functions, attached, called and detached at once.
 *
 * The detour must serve any function, whatever its signature: a stub for each that counts and jumps to the
 * trampoline, with every register and the stack as they were.
 */
#include <linux/delay.h>
#include <linux/kernel.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/stringify.h>
#include <asm/nospec-branch.h>
#include "test.h"

#define MOST 256
#define STUB_SIZE 32

u64 test_many_calls[MOST];
void *test_many_originals[MOST];
extern char test_many_stubs[];

asm(".pushsection .text\n"
    ".altmacro\n"
    ".macro test_many_stub number\n"
    "	.type test_many_stub_\\number, @function\n"
    "test_many_stub_\\number:\n"
    "	endbr64\n"
    "	lock incq test_many_calls + 8 * \\number(%rip)\n"
    "	" ANNOTATE_RETPOLINE_SAFE "\n"
    "	jmp *test_many_originals + 8 * \\number(%rip)\n"
    "	.size test_many_stub_\\number, . - test_many_stub_\\number\n"
    "	.balign 32, 0xcc\n"
    ".endm\n"
    ".balign 32\n"
    ".globl test_many_stubs\n"
    "test_many_stubs:\n"
    ".set index, 0\n"
    ".rept " __stringify(MOST) "\n"
    "	test_many_stub %index\n"
    "	.set index, index + 1\n"
    ".endr\n"
    ".purgem test_many_stub\n"
    ".noaltmacro\n"
    ".popsection\n");

static bool acceptable(void *target, char *text)
{
	kdetour_survey(target, text, PAGE_SIZE);
	return !strstr(text, "\nerror ");
}

static unsigned int called(unsigned int count)
{
	unsigned int i, some = 0;

	for (i = 0; i < count; i++)
		some += test_many_calls[i] != 0;
	return some;
}

void test_many(struct test_lines *to, const char *argument)
{
	struct kdetour *detours = kvcalloc(MOST, sizeof(*detours), GFP_KERNEL);
	struct kdetour **set = kvcalloc(MOST, sizeof(*set), GFP_KERNEL);
	unsigned int wanted, count = 0, refused = 0, some, i;
	char *text = kmalloc(PAGE_SIZE, GFP_KERNEL);
	char *names = kstrdup(argument, GFP_KERNEL);
	char *rest = names, *stubs = test_many_stubs, *name;
	struct kdetour_error error = {};
	int result;

	OPTIMIZER_HIDE_VAR(stubs);
	name = rest ? strsep(&rest, " ") : NULL;
	if (!detours || !set || !text || !name || kstrtouint(name, 10, &wanted) || wanted > MOST) {
		test_line(to, false, "many COUNT NAME...");
		goto out;
	}
	memset(test_many_calls, 0, sizeof(test_many_calls));
	while (count < wanted && (name = strsep(&rest, " \n"))) {
		void *target = (void *)kdetour_find(name);

		if (!target || !acceptable(target, text)) {
			refused++;
			continue;
		}
		for (i = 0; i < count && detours[i].target != target; i++)
			;
		if (i < count)
			continue;
		detours[count].target = target;
		detours[count].detour = stubs + count * STUB_SIZE;
		detours[count].original = &test_many_originals[count];
		detours[count].owner = THIS_MODULE;
		set[count] = &detours[count];
		count++;
	}
	if (!CHECK(to, count == wanted, "many: %u functions, %u names refused", count, refused))
		goto out;

	for (i = 0; i < 2; i++) {
		enum kdetour_protocol protocol = i ? KDETOUR_RENDEZVOUS : KDETOUR_LIVE;
		const char *how = i ? "rendezvous" : "live";

		result = kdetour_attach_all(set, count, protocol, &error);
		if (!CHECK(to, !result, "many: attached %u %s (%s)", count, how, error.text))
			goto out;
		msleep(1500);
		result = kdetour_detach_all(set, count, protocol, KDETOUR_FOR_EVER, &error);
		if (!CHECK(to, !result, "many: detached %u %s (%s)", count, how, error.text)) {
			/* The stubs must not go away under the kernel. */
			__module_get(THIS_MODULE);
			goto out;
		}
		some = called(count);
		/* All of them were called just before, under the same load. */
		CHECK(to, some > count / 4, "many: %u of %u were called", some, count);
		memset(test_many_calls, 0, sizeof(test_many_calls));
	}
	msleep(100);
	CHECK(to, called(count) == 0, "many: none is called after detaching");
out:
	kfree(names);
	kfree(text);
	kvfree(set);
	kvfree(detours);
}
