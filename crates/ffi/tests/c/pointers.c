/* What kdetour.h promises of KDETOUR_POINTER. Lines `ok` and `FAIL`. */
#define _GNU_SOURCE 1
#include <kdetour.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _WIN32
/* As kdetour.h says. */
#define ESTALE EILSEQ
/* A library, and what it imports. */
#define LIBRARY "kernelbase.dll"
#define OF_ANOTHER "NtClose"
#else
#define LIBRARY "libc.so.6"
#define OF_ANOTHER "malloc"
#endif

static int failed;

static void check(int holds, const char *what)
{
	printf("%s %s\n", holds ? "ok" : "FAIL", what);
	failed |= !holds;
}

static void code_is(int result, int errno_, const struct kdetour_error *error, int code, const char *what)
{
	int holds = result == -errno_ && error->code == code && error->text[0];

	if (!holds)
		printf("got %d, code %d, \"%s\"\n", result, error->code, error->text);
	check(holds, what);
}

__attribute__((noinline, noclone)) static int threefold(int number)
{
	__asm__ volatile("");
	return number * 3;
}

__attribute__((noinline, noclone)) static int squared(int number)
{
	__asm__ volatile("");
	return number * number;
}

typedef int function(int);

/* Read-only once the loader has written it; the compiler must not know what it holds. */
static function *const table[] = { threefold, squared, NULL };
static function *const *volatile rows = table;
/* One that the program writes itself. */
static function *volatile current = threefold;

static void *originals[3];

static int original(int number, int of)
{
	return (__extension__ (function *)*(void *volatile *)&originals[number])(of);
}

static int one_more(int number)
{
	return original(0, number) + 1;
}

static int tenfold(int number)
{
	return original(1, number) * 10;
}

static int five_more(int number)
{
	return original(2, number) + 5;
}

static struct kdetour pointer(const void *place, function *detour, int number)
{
	struct kdetour made;

	memset(&made, 0, sizeof(made));
	made.method = KDETOUR_POINTER;
	made.target = (void *)(size_t)place;
	made.detour = __extension__ (void *)detour;
	made.original = &originals[number];
	return made;
}

static int detach(struct kdetour *one, struct kdetour_error *error)
{
	return kdetour_detach_all(&one, 1, KDETOUR_EXCHANGE, 5000, error);
}

static void a_table(void)
{
	struct kdetour one = pointer(&rows[0], one_more, 0), other = pointer(&rows[0], tenfold, 1);
	struct kdetour patched = pointer(NULL, five_more, 2), *set[3];
	struct kdetour_error error;

	check(!kdetour_attach(&one) && rows[0](2) == 7, "a pointer in read-only data leads to the detour");
	check(current(2) == 6 && threefold(2) == 6, "nobody else comes there");
	check(!kdetour_attach(&other) && rows[0](2) == 70, "the youngest is called first");
	check(!kdetour_detach(&one) && rows[0](2) == 60 && original(1, 2) == 6, "the older one goes");
	check(!kdetour_detach(&other) && rows[0](2) == 6 && rows[0] == threefold, "both have gone");

	patched.method = KDETOUR_JUMP;
	patched.target = __extension__ (void *)squared;
	other.target = (void *)(size_t)&rows[1];
	set[0] = &one;
	set[1] = &patched;
	set[2] = &other;
	check(!kdetour_attach_all(set, 3, KDETOUR_EXCHANGE, &error), "a set of pointers and a function");
	check(rows[0](2) == 7 && squared(3) == 14 && rows[1](3) == 140, "all are detoured");
	check(!kdetour_detach_all(set, 3, KDETOUR_EXCHANGE, KDETOUR_NO_WAIT, &error), "detached without waiting");
	check(rows[0](2) == 6 && squared(3) == 9 && rows[1](3) == 9, "all are as they were");
	check(!kdetour_attach_all(set, 3, KDETOUR_EXCHANGE, &error) && rows[1](3) == 140, "attached again, as they were");
	check(!kdetour_detach_all(set, 3, KDETOUR_EXCHANGE, 5000, &error) && !one.handle, "detached");

	other.target = (void *)(size_t)&rows[2];
	code_is(kdetour_attach_all(set, 3, KDETOUR_EXCHANGE, &error), EINVAL, &error, KDETOUR_NULL, "one of three is null");
	check(error.index == 2 && error.address == (size_t)&rows[2], "it says which");
	check(rows[0](2) == 6 && squared(3) == 9 && !one.handle && !patched.handle, "none is attached");
}

static void somebody_else(void)
{
	struct kdetour one = pointer((const void *)&current, one_more, 0), *set = &one;
	struct kdetour_error error;

	check(!kdetour_attach(&one) && current(2) == 7, "a pointer that the program writes");
	current = squared;
	code_is(detach(&one, &error), ESTALE, &error, KDETOUR_CHANGED, "it has written it");
	check(current == squared && error.address == (size_t)&current, "it is left as it is");
	current = __extension__ (function *)one.detour;
	check(!detach(&one, &error) && current == threefold, "detached");
	code_is(kdetour_detach_all(&set, 1, KDETOUR_EXCHANGE, 5000, &error), EINVAL, &error, KDETOUR_NOT_ATTACHED, "twice");
	check(!kdetour_attach(&one), "attached");
	current = threefold;
	check(!detach(&one, &error), "what is as it was needs no write");
}

static void nonsense(void)
{
	struct kdetour one = pointer(&rows[0], one_more, 0), *set = &one;
	struct kdetour_error error;
	struct kdetour_patch patch;
	const char *place = (const char *)&rows[0];

#define BAD(errno_, code_, what_) \
	code_is(kdetour_attach_all(&set, 1, KDETOUR_EXCHANGE, &error), errno_, &error, code_, what_)
	one.method = 77;
	BAD(EINVAL, KDETOUR_ARGUMENT, "no such method");
	one = pointer(NULL, one_more, 0);
	BAD(EINVAL, KDETOUR_NULL, "no place");
	one = pointer(place + 1, one_more, 0);
	BAD(EINVAL, KDETOUR_ARGUMENT, "a place that is not aligned");
	one = pointer((const void *)16, one_more, 0);
	BAD(EFAULT, KDETOUR_UNREADABLE, "a place that is nowhere");
	one = pointer(__extension__ (const void *)((size_t)threefold & ~(size_t)7), one_more, 0);
	BAD(EPERM, KDETOUR_FORBIDDEN, "a place in code");
	one = pointer((const void *)&rows, one_more, 0);
	BAD(EINVAL, KDETOUR_NOT_CODE, "a pointer to data");
	one = pointer(place, threefold, 0);
	BAD(EEXIST, KDETOUR_ALREADY_DETOURED, "the function that it leads to");
	one = pointer(place, one_more, 0);
	code_is(kdetour_plan(&one, KDETOUR_LOCAL, &patch, &error), EINVAL, &error, KDETOUR_ARGUMENT, "there is nothing to plan");
	check(rows[0](2) == 6, "as it was");
}

static void *getenv_original[4];

static char *my_getenv(const char *name)
{
	static char answer[] = "detoured";

	if (strcmp(name, "KDETOUR_TEST"))
		return (__extension__ (char *(*)(const char *))*(void *volatile *)&getenv_original[0])(name);
	return answer;
}

static void imports(void)
{
	struct kdetour all[4], *set[4];
	struct kdetour_error error;
	unsigned int count;
	void **place;

	memset(all, 0, sizeof(all));
	for (count = 0; count < 4; count++) {
		place = kdetour_import(NULL, "getenv", count, &error);
		if (!place)
			break;
		all[count].method = KDETOUR_POINTER;
		all[count].target = (void *)place;
		all[count].detour = __extension__ (void *)my_getenv;
		all[count].original = &getenv_original[count];
		set[count] = &all[count];
	}
	check(count > 0 && error.code == KDETOUR_UNKNOWN_SYMBOL, "the program's pointers to getenv");
	check(!getenv("KDETOUR_TEST"), "nobody has set it");
	check(!kdetour_attach_all(set, count, KDETOUR_EXCHANGE, &error), "attached");
	check(getenv("KDETOUR_TEST") && getenv("PATH"), "the program's calls are answered by the detour");
	check(!kdetour_detach_all(set, count, KDETOUR_EXCHANGE, 5000, &error) && !getenv("KDETOUR_TEST"), "detached");
	check(!kdetour_import(NULL, NULL, 0, &error) && error.code == KDETOUR_NULL, "no symbol");
	check(!kdetour_import(NULL, "nobody_imports_this", 0, NULL), "no import");
	check(!kdetour_import("libnothing.so", "getenv", 0, &error) && error.code == KDETOUR_UNKNOWN_SYMBOL, "no image");
	check(kdetour_import(LIBRARY, OF_ANOTHER, 0, &error) != NULL, "of a library");
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	a_table();
	somebody_else();
	nonsense();
	imports();
	return failed;
}
