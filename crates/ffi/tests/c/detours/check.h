/* What the tests of detours.h have in common: lines `ok` and `FAIL`. To be included first. */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <windows.h>
#include <detours.h>
#ifndef _WIN32
#include <dlfcn.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed;

static __inline__ void check(int holds, const char *what)
{
	printf("%s %s\n", holds ? "ok" : "FAIL", what);
	failed |= !holds;
}

static __inline__ void gives(LONG result, LONG wanted, const char *what)
{
	if (result != wanted)
		printf("got %d in place of %d\n", (int)result, (int)wanted);
	check(result == wanted, what);
}

/* Nothing is said of what holds: there are thousands. */
static __inline__ void each(int holds, const char *what, const char *of)
{
	if (!holds)
		printf("FAIL %s: %s\n", what, of);
	failed |= !holds;
}

/* What GetLastError() has to be after a call; then it is another one. */
static __inline__ void leaves(DWORD wanted, const char *what)
{
	gives((LONG)GetLastError(), (LONG)wanted, what);
	SetLastError(4242);
}

#define F(function_) ((PVOID)(function_))
#define P(pointer_) ((PVOID *)&(pointer_))
#define AT(address_) ((PBYTE)(address_))

#ifndef _WIN32
/* The permissions of the mapping that holds an address, as in /proc/self/maps; "none" where nothing is. */
static __inline__ const char *mapped(const void *address)
{
	static char permissions[8];
	unsigned long start, end, at = (unsigned long)address;
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");

	strcpy(permissions, "none");
	while (maps && fgets(line, sizeof(line), maps)) {
		char found[8];

		if (sscanf(line, "%lx-%lx %7s", &start, &end, found) == 3 && start <= at && at < end)
			strcpy(permissions, found);
	}
	if (maps)
		fclose(maps);
	return permissions;
}
#endif

#endif
