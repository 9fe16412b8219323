// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* calls: examples/calls.c counts, tells one that it has already, and when it has no more; and forgets what it has released. */
#include <linux/kernel.h>
#include <linux/module.h>
#include "../examples/calls.h"
#include "test.h"

static int added = 7;

#define FUNCTION(number)						\
	static noinline __used int counted##number(int value)		\
	{								\
		return value * 3 + READ_ONCE(added) + number;		\
	}
FUNCTION(0)
FUNCTION(1)
FUNCTION(2)
FUNCTION(3)
FUNCTION(4)
static int (*const functions[])(int) = { counted0, counted1, counted2, counted3, counted4 };

static unsigned long handle_of(unsigned long target)
{
	struct kdetour_live one;
	size_t at = 0;

	while (kdetour_next(&at, &one))
		if (one.target == target)
			return one.handle;
	return 0;
}

void test_calls(struct test_lines *to, const char *argument)
{
	typeof(&calls_detour) detour = symbol_get(calls_detour);
	typeof(&calls_release) release = symbol_get(calls_release);
	typeof(&calls_number) number = symbol_get(calls_number);
	typeof(&calls_of) of = symbol_get(calls_of);
	unsigned long count, first = (unsigned long)functions[0];
	unsigned int i;
	int sum = 0;

	if (!CHECK(to, detour && release && number && of, "calls: calls.ko is there"))
		goto gone;
	for (i = 0; i < CALLS_DETOURS; i++)
		CHECK(to, !detour((unsigned long)functions[i]), "calls: %u is detoured", i);
	CHECK(to, detour(first) == -EALREADY, "calls: not a second time");
	CHECK(to, detour((unsigned long)functions[CALLS_DETOURS]) == -EMFILE, "calls: and no fifth");
	CHECK(to, number() == CALLS_DETOURS, "calls: so many there are");
	for (i = 0; i < 1000; i++)
		sum += READ_ONCE(functions[0])(i);
	CHECK(to, sum == 3 * 1000 * 999 / 2 + 7 * 1000, "calls: what is called does what it did");
	CHECK(to, of(handle_of(first), &count) && count == 1000, "calls: a thousand calls are counted");
	CHECK(to, !of(handle_of(first) ^ 1, &count), "calls: another's detour is not one of these");
	for (i = 0; i < CALLS_DETOURS; i++)
		CHECK(to, !release((unsigned long)functions[i]), "calls: %u is released", i);
	CHECK(to, release(first) == -ENOENT && !number(), "calls: it is none any more");
gone:
	if (of)
		symbol_put(calls_of);
	if (number)
		symbol_put(calls_number);
	if (release)
		symbol_put(calls_release);
	if (detour)
		symbol_put(calls_detour);
}
