/* What kdetour.h promises to a program, and what it says to one that asks for nonsense. Lines `ok` and `FAIL`. */
#define _GNU_SOURCE 1
#include <kdetour.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#define pipe(ends_) _pipe(ends_, 16, _O_BINARY)
/* As kdetour.h says. */
#define ESTALE EILSEQ
#endif

static int failed;

static void check(int holds, const char *what)
{
	printf("%s %s\n", holds ? "ok" : "FAIL", what);
	failed |= !holds;
}

static int code_is(int result, int errno_, const struct kdetour_error *error, int code, const char *what)
{
	int holds = result == -errno_ && error->code == code && error->text[0];

	if (!holds)
		printf("got %d, code %d, \"%s\"\n", result, error->code, error->text);
	check(holds, what);
	return holds;
}

#define TARGET(name_, body_)							\
	__attribute__((noinline, noclone)) static int name_(int number)	\
	{									\
		__asm__ volatile("");						\
		body_								\
	}									\
	static int (*volatile call_##name_)(int) = name_;

TARGET(threefold, return number * 3 + (number > 100 ? printf("large\n") : 0);)
TARGET(squared, return number * number + (number > 100 ? printf("large\n") : 0);)

static void *threefold_original, *squared_original, *second_original;

static int call(void *volatile *function, int number)
{
	return (__extension__ (int (*)(int))*function)(number);
}

static int my_threefold(int number)
{
	return call(&threefold_original, number) + 1;
}

static int my_second(int number)
{
	return call(&second_original, number) * 10;
}

static int my_squared(int number)
{
	return call(&squared_original, number) + 5;
}

static int my_nothing(int number)
{
	return number * 0;
}

static struct kdetour make(int (*target)(int), int (*detour)(int), void **original)
{
	struct kdetour made;

	memset(&made, 0, sizeof(made));
	made.target = __extension__ (void *)target;
	made.detour = __extension__ (void *)detour;
	made.original = original;
	return made;
}

static void one_after_the_other(void)
{
	struct kdetour one = make(threefold, my_threefold, &threefold_original);
	int round;

	check(call_threefold(2) == 6, "as it was");
	for (round = 0; round < 3; round++) {
		check(!kdetour_attach(&one) && one.handle, "attach");
		check(call_threefold(2) == 7, "detoured");
		check(!kdetour_detach(&one) && !one.handle, "detach");
		check(call_threefold(2) == 6, "as it was again");
	}
}

static void every_protocol(void)
{
	static const enum kdetour_protocol all[] = { KDETOUR_LIVE, KDETOUR_RENDEZVOUS, KDETOUR_LOCAL, KDETOUR_EXCHANGE };
	struct kdetour one = make(threefold, my_threefold, &threefold_original), *set = &one;
	struct kdetour_error error;
	unsigned int i;

	for (i = 0; i < 4; i++) {
		check(!kdetour_attach_all(&set, 1, all[i], &error), "attach by each protocol");
		check(call_threefold(2) == 7, "detoured");
		check(!kdetour_detach_all(&set, 1, all[i], 5000, &error), "detach");
		check(call_threefold(2) == 6, "as it was");
	}
}

static void every_method(void)
{
#ifdef _WIN32
	/* There are no debug registers for it there. */
	static const enum kdetour_method all[] = { KDETOUR_JUMP, KDETOUR_INT3 };
#else
	static const enum kdetour_method all[] = { KDETOUR_JUMP, KDETOUR_INT3, KDETOUR_DEBUG_REGISTER };
#endif
	static const unsigned int methods = sizeof(all) / sizeof(all[0]);
	static const enum kdetour_protocol protocols[] = { KDETOUR_EXCHANGE, KDETOUR_LIVE, KDETOUR_RENDEZVOUS };
	struct kdetour one = make(threefold, my_threefold, &threefold_original), *set = &one;
	struct kdetour other = make(threefold, my_second, &second_original);
	struct kdetour_error error;
	unsigned int i, k;

	for (i = 0; i < methods; i++) {
		one.method = all[i];
		for (k = 0; k < 3; k++) {
			check(!kdetour_attach_all(&set, 1, protocols[k], &error), "attach by each method");
			check(call_threefold(2) == 7, "detoured");
			other.method = all[i];
			check(!kdetour_attach(&other) && call_threefold(2) == 70, "two of one method");
			check(!kdetour_detach(&other) && call_threefold(2) == 7, "one leaves");
			other.method = all[(i + 1) % methods];
			set = &other;
			code_is(kdetour_attach_all(&set, 1, protocols[k], &error), EEXIST, &error, KDETOUR_ALREADY_DETOURED,
				"another method");
			set = &one;
			check(!kdetour_detach_all(&set, 1, protocols[k], 5000, &error), "detach");
			check(call_threefold(2) == 6, "as it was");
		}
	}
	one.method = KDETOUR_INT3;
	code_is(kdetour_attach_all(&set, 1, KDETOUR_LOCAL, &error), EOPNOTSUPP, &error, KDETOUR_REFUSED,
		"nobody would answer whoever traps");
	one.method = 77;
	code_is(kdetour_attach_all(&set, 1, KDETOUR_LIVE, &error), EINVAL, &error, KDETOUR_ARGUMENT, "no such method");
	check(call_threefold(2) == 6, "as it was");
}

#ifdef _WIN32
static void five_registers(void)
{
	struct kdetour one = make(threefold, my_nothing, NULL), *set = &one;
	struct kdetour_error error;

	one.method = KDETOUR_DEBUG_REGISTER;
	code_is(kdetour_attach_all(&set, 1, KDETOUR_EXCHANGE, &error), EOPNOTSUPP, &error, KDETOUR_DEBUG_REGISTERS_MISSING,
		"there are no debug registers");
	check(call_threefold(2) == 6, "as it was");
}
#else
static void five_registers(void)
{
	static int (*const targets[5])(int) = { threefold, squared, my_threefold, my_squared, my_second };
	struct kdetour all[5], *set[5];
	struct kdetour_error error;
	unsigned int i;

	for (i = 0; i < 5; i++) {
		all[i] = make(targets[i], my_nothing, NULL);
		all[i].method = KDETOUR_DEBUG_REGISTER;
		set[i] = &all[i];
	}
	code_is(kdetour_attach_all(set, 5, KDETOUR_EXCHANGE, &error), ENOSPC, &error, KDETOUR_NO_DEBUG_REGISTER,
		"there are four debug registers");
	check(error.index == 4 && call_threefold(2) == 6, "none of the set is attached");
	check(!kdetour_attach_all(set, 4, KDETOUR_EXCHANGE, &error), "four can be");
	check(call_threefold(2) == 0 && call_squared(3) == 0, "and are");
	check(!kdetour_detach_all(set, 4, KDETOUR_EXCHANGE, 5000, &error), "detach");
	check(call_threefold(2) == 6 && call_squared(3) == 9, "as it was");
}
#endif

static void chains(void)
{
	struct kdetour one = make(threefold, my_threefold, &threefold_original);
	struct kdetour second = make(threefold, my_second, &second_original);

	check(!kdetour_attach(&one) && !kdetour_attach(&second), "two detours of one target");
	check(call_threefold(2) == 70, "the younger one first");
	check(!kdetour_detach(&one), "the older one leaves");
	check(call_threefold(2) == 60, "the younger one alone");
	check(!kdetour_attach(&one), "it comes again");
	check(call_threefold(2) == 61, "and is the younger one now");
	check(!kdetour_detach(&second) && !kdetour_detach(&one), "both leave");
	check(call_threefold(2) == 6, "as it was");
}

static void sets(void)
{
	struct kdetour one = make(threefold, my_threefold, &threefold_original);
	struct kdetour other = make(squared, my_squared, &squared_original), *set[2];
	struct kdetour_error error;

	set[0] = &one;
	set[1] = &other;
	check(!kdetour_attach_all(set, 2, KDETOUR_EXCHANGE, &error), "a set");
	check(call_threefold(2) == 7 && call_squared(3) == 14, "both are detoured");
	code_is(kdetour_attach_all(set, 2, KDETOUR_EXCHANGE, &error), EEXIST, &error, KDETOUR_ALREADY_DETOURED, "attached already");
	check(!kdetour_detach_all(set, 2, KDETOUR_EXCHANGE, KDETOUR_NO_WAIT, &error), "detached without waiting");
	check(call_threefold(2) == 6 && call_squared(3) == 9, "both are as they were");
	check(!kdetour_attach_all(set, 2, KDETOUR_EXCHANGE, &error), "attached again, as they were");
	check(call_threefold(2) == 7 && call_squared(3) == 14, "both are detoured");
	check(!kdetour_detach_all(set, 2, KDETOUR_EXCHANGE, 5000, &error), "detached");
	code_is(kdetour_detach_all(set, 2, KDETOUR_EXCHANGE, 5000, &error), EINVAL, &error, KDETOUR_NOT_ATTACHED, "detached twice");

	other.target = (void *)16;
	code_is(kdetour_attach_all(set, 2, KDETOUR_EXCHANGE, &error), EFAULT, &error, KDETOUR_UNREADABLE, "one of two is nowhere");
	check(error.index == 1 && error.address == 16 && !one.handle && !other.handle, "it says which; neither is attached");
	check(call_threefold(2) == 6, "as it was");
	set[1] = &one;
	code_is(kdetour_attach_all(set, 2, KDETOUR_EXCHANGE, &error), EEXIST, &error, KDETOUR_ALREADY_DETOURED, "twice in a set");
	check(!kdetour_attach_all(set, 0, KDETOUR_EXCHANGE, &error), "a set of none");
	check(!kdetour_attach_all(NULL, 0, KDETOUR_EXCHANGE, NULL), "and no set of none");
}

static void nonsense(void)
{
	struct kdetour one = make(threefold, my_threefold, &threefold_original), *set[1];
	struct kdetour_error error;
	static char data[64];
	char text[8];

	set[0] = NULL;
	code_is(kdetour_attach_all(NULL, 1, KDETOUR_EXCHANGE, &error), EINVAL, &error, KDETOUR_NULL, "no set");
	code_is(kdetour_attach_all(set, 1, KDETOUR_EXCHANGE, &error), EINVAL, &error, KDETOUR_NULL, "a null in the set");
	code_is(kdetour_detach_all(set, 1, KDETOUR_EXCHANGE, 1, &error), EINVAL, &error, KDETOUR_NULL, "a null to detach");
	set[0] = (struct kdetour *)(data + 1);
	code_is(kdetour_attach_all(set, 1, KDETOUR_EXCHANGE, &error), EINVAL, &error, KDETOUR_NULL, "a struct that is not aligned");
	set[0] = &one;
	code_is(kdetour_attach_all(set, 1, (enum kdetour_protocol)99, &error), EINVAL, &error, KDETOUR_ARGUMENT, "no such protocol");
	check(kdetour_attach_all(set, 1, (enum kdetour_protocol)99, NULL) == -EINVAL, "and nobody who wants to know");
	one.target = NULL;
	code_is(kdetour_attach_all(set, 1, KDETOUR_EXCHANGE, &error), EINVAL, &error, KDETOUR_NULL, "no target");
	one.symbol = "no_function_has_this_name";
	code_is(kdetour_attach_all(set, 1, KDETOUR_EXCHANGE, &error), ENOENT, &error, KDETOUR_UNKNOWN_SYMBOL, "an unknown name");
	one.symbol = NULL;
	one.target = data;
	code_is(kdetour_attach_all(set, 1, KDETOUR_EXCHANGE, &error), EINVAL, &error, KDETOUR_NOT_CODE, "data");
	one = make(threefold, my_threefold, &threefold_original);
	one.detour = NULL;
	code_is(kdetour_attach_all(set, 1, KDETOUR_EXCHANGE, &error), EINVAL, &error, KDETOUR_NULL, "no detour");
	one.detour = one.target;
	code_is(kdetour_attach_all(set, 1, KDETOUR_EXCHANGE, &error), EOPNOTSUPP, &error, KDETOUR_REFUSED, "a detour to itself");
	one = make(threefold, my_threefold, (void **)(data + 1));
	code_is(kdetour_attach_all(set, 1, KDETOUR_EXCHANGE, &error), EINVAL, &error, KDETOUR_ARGUMENT, "a place that is not aligned");
	one = make(threefold, my_threefold, &threefold_original);
	one.handle = 0x123456789abcdefull;
	code_is(kdetour_detach_all(set, 1, KDETOUR_EXCHANGE, 1, &error), EINVAL, &error, KDETOUR_NOT_ATTACHED, "a handle of nothing");
	code_is(kdetour_written(&one, &error), EINVAL, &error, KDETOUR_NOT_ATTACHED, "written, and never planned");
	check(!kdetour_attach(&one) && !kdetour_detach(&one), "which an attach overwrites");
	check(!kdetour_find(NULL) && !kdetour_find("no_function_has_this_name"), "nothing to find");
	check(kdetour_find("malloc") != NULL, "something to find");
	check(!kdetour_survey(NULL, NULL, 5) && !kdetour_survey(NULL, text, 0), "nowhere to write a survey");
	check(kdetour_survey(NULL, text, sizeof(text)) == 7 && !strcmp(text, "target "), "a survey that is cut");
	code_is(kdetour_patch_write(NULL, 0, &error), EINVAL, &error, KDETOUR_NULL, "no patch");
	check(call_threefold(2) == 6, "as it was");
}

static void plan_and_commit(void)
{
	struct kdetour one = make(threefold, my_threefold, &threefold_original), *set = &one;
	struct kdetour_error error;
	struct kdetour_patch patch, other;

	check(!kdetour_plan(&one, KDETOUR_LOCAL, &patch, &error), "planned");
	check(patch.length && patch.expected_length >= patch.length && patch.boundary_count, "with a record");
	check(call_threefold(2) == 6, "nothing is written");
	check(call(&threefold_original, 2) == 6, "the original can be called");
	code_is(kdetour_plan(&one, KDETOUR_LOCAL, &other, &error), EEXIST, &error, KDETOUR_ALREADY_DETOURED, "planned twice");
	code_is(kdetour_written(&one, &error), ESTALE, &error, KDETOUR_CHANGED, "it is not written");
	check(!kdetour_patch_write(&patch, 0, &error), "written");
	check(call_threefold(2) == 7, "detoured");
	code_is(kdetour_patch_write(&patch, 0, &error), ESTALE, &error, KDETOUR_CHANGED, "written twice");
	check(!kdetour_patch_write(&patch, 1, &error) && call_threefold(2) == 6, "taken back");
	check(!kdetour_sync(&error), "and every processor knows");
	check(!kdetour_patch_write(&patch, 0, &error) && !kdetour_written(&one, &error), "written again, and told");
	code_is(kdetour_written(&one, &error), EEXIST, &error, KDETOUR_ALREADY_DETOURED, "told twice");
	check(call_threefold(2) == 7, "detoured");
	check(!kdetour_detach_all(&set, 1, KDETOUR_EXCHANGE, 5000, &error) && !one.handle, "detached as any other");
	check(call_threefold(2) == 6, "as it was");

	check(!kdetour_plan(&one, KDETOUR_EXCHANGE, NULL, &error), "planned for another protocol");
	check(!kdetour_attach_all(&set, 1, KDETOUR_EXCHANGE, &error) && call_threefold(2) == 7, "and attached by it");
	code_is(kdetour_plan(&one, KDETOUR_LOCAL, &patch, &error), EEXIST, &error, KDETOUR_ALREADY_DETOURED, "attached");
	check(!kdetour_detach(&one) && call_threefold(2) == 6, "as it was");

	check(!kdetour_plan(&one, KDETOUR_LOCAL, &patch, &error), "planned");
	check(!kdetour_detach_all(&set, 1, KDETOUR_EXCHANGE, 5000, &error) && !one.handle, "and given up");
	check(call(&threefold_original, 2) == 6, "the original is the target itself");

	code_is(kdetour_plan(&one, KDETOUR_LIVE, &patch, &error), EINVAL, &error, KDETOUR_ARGUMENT, "not for other protocols");
	check(!kdetour_plan(&one, KDETOUR_LOCAL, &patch, &error) && !kdetour_patch_write(&patch, 0, &error), "written");
	code_is(kdetour_detach_all(&set, 1, KDETOUR_EXCHANGE, 5000, &error), EEXIST, &error, KDETOUR_ALREADY_DETOURED, "not told");
	check(call_threefold(2) == 7, "its slot is still there");
	check(!kdetour_patch_write(&patch, 1, &error), "taken back");
	one.detour = __extension__ (void *)my_second;
	code_is(kdetour_attach_all(&set, 1, KDETOUR_EXCHANGE, &error), EINVAL, &error, KDETOUR_ARGUMENT, "not what was planned");
	one.detour = __extension__ (void *)my_threefold;
	check(!kdetour_detach_all(&set, 1, KDETOUR_EXCHANGE, 5000, &error) && !one.handle, "and given up");
	check(call_threefold(2) == 6, "as it was");
}

/* A call that stays inside until it is told to go on. */
static int stays[2], goes[2];
static void *stay_original;

static int stay(int number)
{
	char byte = 0;

	if (write(stays[1], &byte, 1) != 1 || read(goes[0], &byte, 1) != 1)
		abort();
	return call(&stay_original, number) + 2;
}

static void *caller(void *unused)
{
	(void)unused;
	return (void *)(size_t)call_threefold(2);
}

static void a_call_inside(void)
{
	struct kdetour one = make(threefold, stay, &stay_original), *set = &one;
	struct kdetour_error error;
	pthread_t thread;
	char byte = 0;
	void *answer;

	if (pipe(stays) || pipe(goes))
		abort();
	check(!kdetour_attach(&one), "attach");
	if (pthread_create(&thread, NULL, caller, NULL) || read(stays[0], &byte, 1) != 1)
		abort();
	code_is(kdetour_detach_all(&set, 1, KDETOUR_EXCHANGE, 50, &error), EBUSY, &error, KDETOUR_BUSY, "a call is inside");
	code_is(kdetour_detach_all(&set, 1, KDETOUR_EXCHANGE, 50, &error), EBUSY, &error, KDETOUR_BUSY, "still");
	if (write(goes[1], &byte, 1) != 1)
		abort();
	check(!kdetour_detach_all(&set, 1, KDETOUR_EXCHANGE, KDETOUR_FOR_EVER, &error), "it is waited for");
	check(!pthread_join(thread, &answer) && (size_t)answer == 8, "and came back with its answer");
}

static struct kdetour from_inside;
static int inside_result;
static struct kdetour_error inside_error;
static void *inside_original;

static int detaches_itself(int number)
{
	struct kdetour *set = &from_inside;

	inside_result = kdetour_detach_all(&set, 1, KDETOUR_EXCHANGE, KDETOUR_FOR_EVER, &inside_error);
	return call(&inside_original, number);
}

static void a_detour_that_detaches_itself(void)
{
	struct kdetour *set = &from_inside;

	from_inside = make(threefold, detaches_itself, &inside_original);
	check(!kdetour_attach(&from_inside), "attach");
	check(call_threefold(2) == 6, "called");
	code_is(inside_result, EDEADLK, &inside_error, KDETOUR_INSIDE, "it cannot wait for itself");
	check(!kdetour_detach_all(&set, 1, KDETOUR_EXCHANGE, 5000, NULL), "but others can");
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	one_after_the_other();
	every_protocol();
	every_method();
	five_registers();
	chains();
	sets();
	nonsense();
	plan_and_commit();
	a_call_inside();
	a_detour_that_detaches_itself();
	return failed;
}
