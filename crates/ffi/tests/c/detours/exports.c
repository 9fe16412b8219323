/* Exports and functions by name, against dlsym and the files. Lines `ok` and `FAIL`. */
#include "check.h"
#include <elf.h>
#include <fcntl.h>
#include <libgen.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>

static struct found {
	ULONG ordinal;
	const char *name;
	PVOID code;
} found[20000];
static int count, limit;

static BOOL CALLBACK on_export(PVOID context, ULONG ordinal, LPCSTR name, PVOID code)
{
	check(context == &count && count < 20000, "what the caller gave");
	found[count].ordinal = ordinal;
	found[count].name = name;
	found[count++].code = code;
	return count != limit;
}

/* Of thousands the line would be too many. */
static BOOL CALLBACK on_each(PVOID context, ULONG ordinal, LPCSTR name, PVOID code)
{
	if (context != &count || count >= 20000)
		return FALSE;
	found[count].ordinal = ordinal;
	found[count].name = name;
	found[count++].code = code;
	return TRUE;
}

int exported_one(int number)
{
	return number + 1;
}

__attribute__((visibility("hidden"), noinline, noclone)) int hidden_one(int number)
{
	return number + 2;
}

static __attribute__((noinline, noclone)) int static_one(int number)
{
	__asm__ volatile("");
	return number + 3;
}

int exported_data = 5;
__thread int exported_thread = 7;

static const struct found *named(const char *name)
{
	int i;

	for (i = 0; i < count; i++)
		if (!strcmp(found[i].name, name))
			return &found[i];
	return NULL;
}

static void of_the_program(void)
{
	count = limit = 0;
	SetLastError(4242);
	check(DetourEnumerateExports(NULL, &count, on_each), "of the program");
	leaves(NO_ERROR, "is no error");
	check(named("exported_one") && named("exported_one")->code == F(exported_one), "a function");
	check(named("exported_data") && named("exported_data")->code == &exported_data, "data");
	check(named("exported_thread") && !named("exported_thread")->code, "each thread has its own: no place");
	check(!named("hidden_one") && !named("static_one"), "those for nobody else are not there");
	check(!named("getpid"), "nor those of others");
}

/* How many symbols the file has for others, by its section headers. */
static int in_the_file(const char *path)
{
	int fd = open(path, O_RDONLY), defined = 0;
	struct stat about;
	const char *file;
	const ElfW(Ehdr) *header;
	const ElfW(Shdr) *sections;
	size_t i, j;

	if (fd < 0 || fstat(fd, &about))
		return -1;
	file = mmap(NULL, about.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	header = (const ElfW(Ehdr) *)file;
	sections = (const ElfW(Shdr) *)(file + header->e_shoff);
	for (i = 0; i < header->e_shnum; i++) {
		const ElfW(Sym) *symbols = (const ElfW(Sym) *)(file + sections[i].sh_offset);

		if (sections[i].sh_type != SHT_DYNSYM)
			continue;
		for (j = 0; j < sections[i].sh_size / sizeof(*symbols); j++) {
			int bind = ELF64_ST_BIND(symbols[j].st_info), seen = ELF64_ST_VISIBILITY(symbols[j].st_other);

			defined += symbols[j].st_shndx != SHN_UNDEF && bind != STB_LOCAL &&
				   (seen == STV_DEFAULT || seen == STV_PROTECTED);
		}
	}
	munmap((void *)file, about.st_size);
	close(fd);
	return defined;
}

static void of_the_c_library(void)
{
	HMODULE libc = DetourGetContainingModule(dlsym(RTLD_DEFAULT, "getpid"));
	void *handle = dlopen("libc.so.6", RTLD_LAZY);
	Dl_info about;
	int i, j, compared = 0;

	count = limit = 0;
	check(DetourEnumerateExports(libc, &count, on_each), "of the C library");
	dladdr(dlsym(handle, "getpid"), &about);
	gives(count, in_the_file(about.dli_fname), "as many as the file has");
	for (i = 0; i < count; i++) {
		void *place = dlsym(handle, found[i].name);
		int is_there = 0, is_anywhere = 0;

		each(found[i].ordinal > (i ? found[i - 1].ordinal : 0), "in the order of the table", found[i].name);
		/* Of a name there may be several versions: one of them is the one that everybody gets. */
		for (j = 0; j < count; j++) {
			if (found[i].name[0] != found[j].name[0] || strcmp(found[i].name, found[j].name))
				continue;
			is_there |= found[j].code == place;
			is_anywhere |= found[j].code != NULL;
		}
		if (!place || !is_anywhere)
			continue;
		each(is_there, "dlsym has the same", found[i].name);
		compared++;
	}
	check(compared > 1000, "thousands");
	check(named("strlen") && named("strlen")->code == dlsym(handle, "strlen"),
	      "of one of which there are several the one that is used");
}

static void every_module(void)
{
	HMODULE module = NULL;
	int modules = 0;

	for (limit = 0; (module = DetourEnumerateModules(module)); modules++) {
		count = 0;
		each(DetourEnumerateExports(module, &count, on_each), "exports", "a module");
	}
	check(modules > 2, "all of them");
}

static void what_stops_it(void)
{
	int on_stack = 0;

	count = 0, limit = 1;
	SetLastError(4242);
	check(DetourEnumerateExports(NULL, &count, on_export) && count == 1, "FALSE stops it");
	leaves(NO_ERROR, "and is no error");
	check(!DetourEnumerateExports(NULL, &count, NULL), "nobody to be told");
	leaves(ERROR_INVALID_PARAMETER, "said so");
	check(!DetourEnumerateExports(&on_stack, &count, on_export), "no module");
	leaves(ERROR_BAD_EXE_FORMAT, "said so");
	gives(count, 1, "nobody was told");
}

static void functions_by_name(void)
{
	char program[MAX_PATH], path[MAX_PATH];
	void *handle;

	GetModuleFileNameA(NULL, path, sizeof(path));
	strcpy(program, basename(path));
	GetModuleFileNameA(NULL, path, sizeof(path));
	SetLastError(4242);
	check(DetourFindFunction("libc.so.6", "getpid") == dlsym(RTLD_DEFAULT, "getpid"), "a function of a library");
	check(DetourFindFunction("libc.so.6", "strlen") == dlsym(RTLD_DEFAULT, "strlen"), "one of which there are several");
	check(DetourFindFunction(program, "exported_one") == F(exported_one), "one of the program");
	check(DetourFindFunction(path, "exported_one") == F(exported_one), "by its path");
	check(DetourFindFunction(program, "hidden_one") == F(hidden_one), "one that is hidden");
	check(DetourFindFunction(program, "static_one") == F(static_one), "one that is static");
	gives(GetLastError(), 4242, "which leaves the last error alone");
	check(!GetModuleHandleA("libresolv.so.2"), "a library that is not loaded");
	check(DetourFindFunction("libresolv.so.2", "ns_sprintrr") != NULL, "is loaded for it");
	handle = dlopen("libresolv.so.2", RTLD_LAZY | RTLD_NOLOAD);
	check(handle && DetourFindFunction("libresolv.so.2", "ns_sprintrr") == dlsym(handle, "ns_sprintrr"), "and stays");
	check(!DetourFindFunction(NULL, "getpid"), "no module");
	leaves(ERROR_INVALID_PARAMETER, "said so");
	check(!DetourFindFunction("libc.so.6", NULL), "no function");
	leaves(ERROR_INVALID_PARAMETER, "said so");
	check(!DetourFindFunction("libnobodyhas.so.1", "getpid"), "a module that is not there");
	leaves(ERROR_MOD_NOT_FOUND, "said so");
	check(!DetourFindFunction("libc.so.6", "nobody_has_this"), "a function that is not there");
	leaves(ERROR_PROC_NOT_FOUND, "said so");
	check(!DetourFindFunction(program, "getpid"), "a function of another module");
	leaves(ERROR_PROC_NOT_FOUND, "said so");
	check(!DetourFindFunction("", "getpid") && !DetourFindFunction("libc.so.6", ""), "empty names");
}

int main(void)
{
	check(exported_one(1) + hidden_one(1) + static_one(1) + exported_thread == 16, "they are used");
	of_the_program();
	of_the_c_library();
	every_module();
	what_stops_it();
	functions_by_name();
	return failed;
}
