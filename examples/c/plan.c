/*
 * Plan and commit apart: kdetour plans, this program writes the bytes itself, at a moment when nobody else runs.
 * cc plan.c $(pkg-config --cflags --libs kdetour)
 */
#define _GNU_SOURCE 1
#include <kdetour.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

KDETOUR(atoi, int, (const char *text), (text))
{
	return atoi_original(text) + 1;
}

/* So that the compiler calls the library instead of knowing better. */
static int (*volatile call)(const char *) = atoi;

/* Plain stores, by the only thread. */
static int store(const struct kdetour_patch *patch, const unsigned char *bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	char *window = (char *)(size_t)patch->address;
	char *start = window - (size_t)patch->address % page;
	size_t length = (size_t)(window - start) + patch->length;

	if (memcmp(window, bytes == patch->patched ? patch->expected : patch->patched, patch->length))
		return -1;
	if (mprotect(start, length, PROT_READ | PROT_WRITE))
		return -1;
	memcpy(window, bytes, patch->length);
	return mprotect(start, length, PROT_READ | PROT_EXEC);
}

int main(void)
{
	struct kdetour_error error;
	struct kdetour_patch patch;
	int before = call("41"), during, after;

	if (kdetour_plan(&atoi_detour, KDETOUR_LOCAL, &patch, &error)) {
		printf("%s\n", error.text);
		return 1;
	}
	printf("%u bytes at %#llx\n", patch.length, (unsigned long long)patch.address);
	/* Nothing has changed yet. */
	if (call("41") != before || store(&patch, patch.patched))
		return 1;
	during = call("41");
	/* From now on kdetour knows that it is there: it may be detached by any protocol, and drained. */
	if (kdetour_written(&atoi_detour, &error) || kdetour_detach(&atoi_detour)) {
		printf("%s\n", error.text);
		return 1;
	}
	after = call("41");
	printf("%d, %d, %d\n", before, during, after);
	return before != 41 || during != 42 || after != 41;
}
