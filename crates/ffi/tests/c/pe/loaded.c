/*
 * What kdetour.h promises of PE images: shop.dll, as a linker for Windows made it, is loaded here without Windows. Lines `ok` and `FAIL`.
 * "PE Format", Microsoft, says where all the numbers are.
 */
#define _GNU_SOURCE 1
#include <kdetour.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __x86_64__
#define WINDOWS __attribute__((ms_abi))
#define DIRECTORIES 112
#else
#define WINDOWS
#define DIRECTORIES 96
#endif

typedef int WINDOWS function(int);
typedef unsigned char byte;

static int failed;

static void check(int holds, const char *what)
{
	printf("%s %s\n", holds ? "ok" : "FAIL", what);
	failed |= !holds;
}

static unsigned int u16(const byte *at)
{
	return at[0] | (unsigned int)at[1] << 8;
}

static unsigned int u32(const byte *at)
{
	return u16(at) | u16(at + 2) << 16;
}

/* The image. */
static byte *base;
static byte *headers;	/* the optional header */

static byte *directory(int index)
{
	return base + u32(headers + DIRECTORIES + 8 * index);
}

/* What a loader does that knows of everything that imports. */

static int WINDOWS price(int of)
{
	return of + 100;
}

static int WINDOWS seventh(int of)
{
	return of + 700;
}

static void relocate(size_t distance)
{
	byte *block = directory(5), *end = block + u32(headers + DIRECTORIES + 8 * 5 + 4);

	while (block < end) {
		byte *page = base + u32(block), *entry = block + 8, *next = block + u32(block + 4);

		for (; entry < next; entry += 2) {
			byte *place = page + (u16(entry) & 0xfff);
			size_t value;

			if (!(u16(entry) >> 12))
				continue;
			memcpy(&value, place, sizeof(value));
			value += distance;
			memcpy(place, &value, sizeof(value));
		}
		block = next;
	}
}

static int bind(void)
{
	byte *library = directory(1);
	int count = 0;

	for (; u32(library + 12); library += 20) {
		size_t *pointer = (size_t *)(void *)(base + u32(library + 16));

		for (; *pointer; pointer++, count++) {
			int is_numbered = *pointer >> (8 * sizeof(*pointer) - 1);
			int is_price = !is_numbered && !strcmp((char *)base + *pointer + 2, "price");

			if (!is_price && !(is_numbered && (*pointer & 0xffff) == 7))
				return 0;
			*pointer = (size_t)__extension__ (void *)(is_price ? price : seventh);
		}
	}
	return count;
}

static int load(const char *path)
{
	static byte file[1 << 20];
	FILE *stream = fopen(path, "rb");
	size_t size = stream ? fread(file, 1, sizeof(file), stream) : 0;
	byte *header = file + u32(file + 0x3c), *section;
	unsigned int count = u16(header + 6), at;

	if (!stream || size < 1024 || memcmp(header, "PE\0", 4))
		return 0;
	fclose(stream);
	headers = header + 24;
	size = u32(headers + 56);
	base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (base == MAP_FAILED)
		return 0;
	memcpy(base, file, u32(headers + 60));
	section = headers + u16(header + 20);
	for (at = 0; at < count; at++)
		if (u32(section + 40 * at + 20))
			memcpy(base + u32(section + 40 * at + 12), file + u32(section + 40 * at + 20), u32(section + 40 * at + 16));
#ifdef __x86_64__
	relocate((size_t)base - (u32(headers + 24) | (size_t)u32(headers + 28) << 32));
#else
	relocate((size_t)base - u32(headers + 28));
#endif
	if (bind() != 2)
		return 0;
	mprotect(base, 4096, PROT_READ);
	for (at = 0; at < count; at++) {
		unsigned int flags = u32(section + 40 * at + 36);
		int protection = PROT_READ | (flags & 0x80000000 ? PROT_WRITE : 0) | (flags & 0x20000000 ? PROT_EXEC : 0);

		/* As if the loader had made all that it filled read-only. */
		if (!memcmp(section + 40 * at, ".idata", 6))
			protection = PROT_READ;
		mprotect(base + u32(section + 40 * at + 12), u32(section + 40 * at + 8), protection);
	}
	return 1;
}

/* What GetProcAddress does. */
static function *look_up(const char *name)
{
	byte *table = directory(0), *names = base + u32(table + 32), *numbers = base + u32(table + 36);
	unsigned int at;

	for (at = 0; at < u32(table + 24); at++)
		if (!strcmp((char *)base + u32(names + 4 * at), name))
			return __extension__ (function *)(void *)(base + u32(base + u32(table + 28) + 4 * u16(numbers + 2 * at)));
	return NULL;
}

static void *originals[2];

static int WINDOWS one_more(int of)
{
	return (__extension__ (function *)*(void *volatile *)&originals[0])(of) + 1;
}

static int WINDOWS tenfold(int of)
{
	return (__extension__ (function *)*(void *volatile *)&originals[1])(of) * 10;
}

static struct kdetour pointer(void **place, function *detour, int number)
{
	struct kdetour made;

	memset(&made, 0, sizeof(made));
	made.method = KDETOUR_POINTER;
	made.target = (void *)place;
	made.detour = __extension__ (void *)detour;
	made.original = &originals[number];
	return made;
}

static int detach(struct kdetour *const *set, unsigned int count)
{
	return kdetour_detach_all(set, count, KDETOUR_EXCHANGE, 5000, NULL);
}

static void imports(void)
{
	struct kdetour_error error;
	void **by_name = kdetour_pe_import(base, "PRICES.DLL", "price", 0, &error);
	void **by_number = kdetour_pe_import(base, NULL, "#7", 0, &error);
	struct kdetour one = pointer(by_name, one_more, 0), other = pointer(by_number, tenfold, 1), *set[2];

	set[0] = &one;
	set[1] = &other;
	check(by_name && by_number, "imports are found by name and by number");
	check(look_up("buy")(2) == 103 && look_up("buy_seventh")(2) == 703, "nothing is detoured");
	check(!kdetour_attach_all(set, 2, KDETOUR_EXCHANGE, &error), "both are attached");
	check(look_up("buy")(2) == 104 && look_up("buy_seventh")(2) == 7021, "the image calls the detours");
	check(!detach(set, 2), "both are detached");
	check(look_up("buy")(2) == 103 && look_up("buy_seventh")(2) == 703, "it calls the functions");
	check(!kdetour_pe_import(base, NULL, "price", 1, &error) && error.code == KDETOUR_UNKNOWN_SYMBOL, "there is one of each");
	check(!kdetour_pe_import(base, "other.dll", "price", 0, NULL), "no such library");
}

static void exports(void)
{
	struct kdetour_error error;
	function *earlier = look_up("treble"), *kept;
	void **place = kdetour_pe_export(base, "treble", &error);
	void **numbered = kdetour_pe_export(base, "#77", &error);
	struct kdetour one = pointer(place, one_more, 0), *set = &one;

	check(place && numbered && place != numbered, "exports lead to pointers");
	kept = look_up("treble");
	check(kept != earlier && kept(5) == 15, "and by them to the function");
	check(!kdetour_attach(&one) && kept(5) == 16 && earlier(5) == 15, "who looks it up comes to the detour");
	check(!kdetour_pe_restore(place, &error) && look_up("treble") == earlier, "the export is restored");
	check(kept(5) == 16, "who has looked it up meanwhile is still detoured");
	check(!detach(&set, 1) && kept(5) == 15, "until the detour goes");
	check(kdetour_pe_restore(place, &error) == -EINVAL && error.code == KDETOUR_NOT_ATTACHED, "it is restored once");
	check(!kdetour_pe_restore(numbered, NULL), "so is the one without a name");
}

static void nonsense(void)
{
	struct kdetour_error error;

#define BAD(call_, code_, what_) check(!(call_) && error.code == (code_) && error.text[0], what_)
	BAD(kdetour_pe_export(base, "elsewhere", &error), KDETOUR_NOT_FUNCTION, "an export of another image");
	BAD(kdetour_pe_export(base, "stock", &error), KDETOUR_NOT_CODE, "an export of data");
	BAD(kdetour_pe_export(base, "nothing", &error), KDETOUR_UNKNOWN_SYMBOL, "no export");
	BAD(kdetour_pe_export(base, NULL, &error), KDETOUR_NULL, "no name");
	BAD(kdetour_pe_export(NULL, "treble", &error), KDETOUR_NULL, "no image");
	BAD(kdetour_pe_export(base + 4096, "treble", &error), KDETOUR_ARGUMENT, "the middle of an image");
	BAD(kdetour_pe_import(base, NULL, "treble", 0, &error), KDETOUR_UNKNOWN_SYMBOL, "no import");
	BAD(kdetour_pe_import(base, NULL, NULL, 0, &error), KDETOUR_NULL, "no name of an import");
	BAD(kdetour_pe_import((void *)16, NULL, "price", 0, &error), KDETOUR_UNREADABLE, "no image to import");
	check(kdetour_pe_restore(NULL, &error) == -EINVAL && error.code == KDETOUR_NULL, "nothing to restore");
}

int main(int count, char **arguments)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (count != 2 || !load(arguments[1])) {
		check(0, "the image is loaded");
		return 1;
	}
	imports();
	exports();
	nonsense();
	return failed;
}
