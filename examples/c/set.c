/*
 * Two functions detoured as one set, by their addresses, with the whole story if that fails; and what a survey says first.
 * cc set.c $(pkg-config --cflags --libs kdetour)
 */
#include <kdetour.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *abs_original, *labs_original;

static int my_abs(int number)
{
	return __extension__ ((int (*)(int))*(void *volatile *)&abs_original)(number) + 1000;
}

static long my_labs(long number)
{
	return __extension__ ((long (*)(long))*(void *volatile *)&labs_original)(number) + 2000;
}

/* So that the compiler calls the library instead of knowing better. */
static int (*volatile call_abs)(int) = abs;
static long (*volatile call_labs)(long) = labs;

int main(void)
{
	struct kdetour one, other, *set[2];
	struct kdetour_error error;
	char text[4096];
	int result;

	memset(&one, 0, sizeof(one));
	memset(&other, 0, sizeof(other));
	one.symbol = "abs";
	one.detour = __extension__ (void *)my_abs;
	one.original = &abs_original;
	other.symbol = "labs";
	other.detour = __extension__ (void *)my_labs;
	other.original = &labs_original;
	set[0] = &one;
	set[1] = &other;

	kdetour_survey(kdetour_find("abs"), text, sizeof(text));
	fputs(text, stdout);
	result = kdetour_attach_all(set, 2, KDETOUR_EXCHANGE, &error);
	if (result) {
		printf("%d: %s: %s\n", result, set[error.index]->symbol, error.text);
		return 1;
	}
	printf("abs(-3) is %d, labs(-4) is %ld\n", call_abs(-3), call_labs(-4));
	result = kdetour_detach_all(set, 2, KDETOUR_EXCHANGE, 5000, &error);
	if (result) {
		printf("%d: %s\n", result, error.text);
		return 1;
	}
	printf("abs(-3) is %d, labs(-4) is %ld\n", call_abs(-3), call_labs(-4));
	return call_abs(-3) != 3 || call_labs(-4) != 4;
}
