/*
 * What the program itself asks of its environment, and nobody else: its own pointer to getenv is detoured, not the function.
 * cc import.c $(pkg-config --cflags --libs kdetour)
 */
#include <kdetour.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

KDETOUR(getenv, char *, (const char *name), (name))
{
	static char nobody[] = "nobody";

	return strcmp(name, "USER") ? getenv_original(name) : nobody;
}

int main(void)
{
	struct kdetour *const set[] = { &getenv_detour };
	struct kdetour_error error;

	getenv_detour.symbol = NULL;
	getenv_detour.method = KDETOUR_POINTER;
	getenv_detour.target = (void *)kdetour_import(NULL, "getenv", 0, &error);
	if (!getenv_detour.target || kdetour_attach_all(set, 1, KDETOUR_EXCHANGE, &error)) {
		printf("%s\n", error.text);
		return 1;
	}
	printf("USER is %s\n", getenv("USER"));
	return kdetour_detach(&getenv_detour) != 0;
}
