/* Modules: what detours.h says of them, against what the loader, the kernel and the files say. Lines `ok` and `FAIL`. */
#include "check.h"
#include <elf.h>
#include <link.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#define PAGE 4096ul
#define DOWN(address_) ((address_) & ~(PAGE - 1))

/* A module, as the loader has it. */
struct truth {
	ElfW(Addr) base, end, bias;
	const ElfW(Phdr) *headers;
	int count;
};

static struct truth truths[256];
static int count;

static int look(struct dl_phdr_info *info, size_t size, void *data)
{
	struct truth *truth = &truths[count];
	ElfW(Addr) first = ~0ul, last = 0;
	int i;

	(void)size, (void)data;
	for (i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *header = &info->dlpi_phdr[i];

		if (header->p_type != PT_LOAD)
			continue;
		if (header->p_vaddr < first)
			first = header->p_vaddr;
		if (header->p_vaddr + header->p_memsz > last)
			last = header->p_vaddr + header->p_memsz;
	}
	truth->bias = info->dlpi_addr;
	truth->base = DOWN(info->dlpi_addr + first);
	truth->end = DOWN(info->dlpi_addr + last + PAGE - 1);
	truth->headers = info->dlpi_phdr;
	truth->count = info->dlpi_phnum;
	/* What the kernel brings is no module of the program's. */
	if (truth->base != getauxval(AT_SYSINFO_EHDR))
		count++;
	return 0;
}

static int by_address(const void *one, const void *other)
{
	ElfW(Addr) a = ((const struct truth *)one)->base, b = ((const struct truth *)other)->base;

	return a < b ? -1 : a > b;
}

static void all_are_enumerated(void)
{
	HMODULE module = NULL;
	int i;

	dl_iterate_phdr(look, NULL);
	qsort(truths, count, sizeof(truths[0]), by_address);
	for (i = 0; i < count; i++) {
		SetLastError(4242);
		module = DetourEnumerateModules(module);
		each(module == (HMODULE)truths[i].base && !GetLastError(), "in the order of their addresses", "a module");
	}
	SetLastError(4242);
	check(count > 2 && !DetourEnumerateModules(module), "these are all");
	leaves(4242, "which is no error");
	check(DetourEnumerateModules((HMODULE)(truths[0].base + 1)) == (HMODULE)truths[1].base,
	      "from any address on, inside of a module");
	check(DetourEnumerateModules((HMODULE)(truths[0].base - 1)) == (HMODULE)truths[0].base, "just below one");
	check(!DetourEnumerateModules((HMODULE)~0ul), "above all");
}

static void each_is_what_the_loader_has(void)
{
	int i, j;

	for (i = 0; i < count; i++) {
		const struct truth *truth = &truths[i];
		HMODULE module = (HMODULE)truth->base;
		const ElfW(Ehdr) *header = (const ElfW(Ehdr) *)truth->base;
		ElfW(Addr) entry = header->e_entry ? truth->bias + header->e_entry : 0;

		each(!memcmp(module, ELFMAG, SELFMAG), "it begins with its header", "a module");
		for (j = 0; j < truth->count; j++) {
			ElfW(Addr) first = truth->bias + truth->headers[j].p_vaddr;

			if (truth->headers[j].p_type != PT_LOAD)
				continue;
			SetLastError(4242);
			each(DetourGetContainingModule((PVOID)first) == module && !GetLastError(), "first byte", "a segment");
			each(DetourGetContainingModule((PVOID)(first + truth->headers[j].p_memsz - 1)) == module, "last byte",
			     "a segment");
		}
		SetLastError(4242);
		each(DetourGetModuleSize(module) == truth->end - truth->base && !GetLastError(), "size", "a module");
		SetLastError(4242);
		each(DetourGetEntryPoint(module) == (PVOID)entry && !GetLastError(), "entry", "a module");
	}
}

static void the_program_is_null(void)
{
	HMODULE program = DetourGetContainingModule(F(the_program_is_null));
	Dl_info about;

	check(dladdr(F(the_program_is_null), &about) && about.dli_fbase == program, "the program");
	check(DetourGetEntryPoint(NULL) == (PVOID)getauxval(AT_ENTRY), "is entered where the kernel enters it");
	check(DetourGetModuleSize(NULL) == DetourGetModuleSize(program), "and has its size");
	check(DetourGetContainingModule(&failed) == program, "data is in it, too");
	check(dladdr(dlsym(RTLD_DEFAULT, "getpid"), &about) &&
	      about.dli_fbase == DetourGetContainingModule(dlsym(RTLD_DEFAULT, "getpid")), "the C library");
	check(DetourGetContainingModule((PVOID)getauxval(AT_SYSINFO_EHDR)) == (HMODULE)getauxval(AT_SYSINFO_EHDR),
	      "what the kernel brings is one, if asked for");
}

static void what_is_no_module(void)
{
	char on_stack = 0, *on_heap = malloc(1);
	char *none = mmap(NULL, 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	HMODULE libc = DetourGetContainingModule(dlsym(RTLD_DEFAULT, "getpid"));
	PVOID nowhere[6];
	HMODULE wrong[8];
	int i;

	munmap(none + PAGE, PAGE);
	nowhere[0] = NULL;
	nowhere[1] = &on_stack;
	nowhere[2] = on_heap;
	nowhere[3] = none;
	nowhere[4] = none + PAGE;
	nowhere[5] = (PVOID)~0ul;
	for (i = 0; i < 6; i++) {
		SetLastError(4242);
		check(!DetourGetContainingModule(nowhere[i]), "in no module");
		leaves(ERROR_BAD_EXE_FORMAT, "said so");
	}
	wrong[0] = &on_stack;
	wrong[1] = on_heap;
	wrong[2] = none + PAGE;
	wrong[3] = (HMODULE)1;
	wrong[4] = (HMODULE)~0ul;
	/* Not where it begins: one byte further, one page further. A handle of dlopen's. */
	wrong[5] = (char *)libc + 1;
	wrong[6] = (char *)libc + PAGE;
	wrong[7] = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
	for (i = 0; i < 8; i++) {
		SetLastError(4242);
		check(!DetourGetModuleSize(wrong[i]), "no size");
		leaves(ERROR_BAD_EXE_FORMAT, "of what is no module");
		check(!DetourGetEntryPoint(wrong[i]), "no entry");
		leaves(ERROR_BAD_EXE_FORMAT, "of what is no module");
	}
	free(on_heap);
	munmap(none, PAGE);
}

static int never(void)
{
	return 1;
}

/* A function of C's does not stand for it: it is entered with the arguments on the stack, and no return address. */
static void the_entry_is_no_target(void)
{
	PVOID entry = DetourGetEntryPoint(NULL);

	DetourTransactionBegin();
	gives(DetourAttach(&entry, F(never)), ERROR_INVALID_BLOCK, "the program's entry is refused");
	DetourTransactionAbort();
}

static void by_name(void)
{
	HMODULE libc = GetModuleHandleA("libc.so.6"), loaded;
	char path[MAX_PATH], shorter[5] = "xxxx";
	Dl_info about;
	PVOID inside;

	check(libc && libc == DetourGetContainingModule(dlsym(RTLD_DEFAULT, "getpid")), "the C library by its name");
	check(GetModuleHandleA(NULL) == DetourGetContainingModule(F(by_name)), "the program by none");
	SetLastError(4242);
	check(!GetModuleHandleA("libnobodyhas.so.1"), "one that is not there");
	leaves(ERROR_MOD_NOT_FOUND, "said so");
	check(F(GetProcAddress(libc, "getpid")) == dlsym(RTLD_DEFAULT, "getpid"), "a function of it");
	leaves(NO_ERROR, "is no error");
	check(F(GetProcAddress(libc, "strlen")) == dlsym(RTLD_DEFAULT, "strlen"), "one of which there are several");
	check(!GetProcAddress(NULL, "getpid"), "the program has none of that name itself");
	leaves(ERROR_PROC_NOT_FOUND, "said so");
	check(!GetProcAddress(libc, NULL), "no name");
	leaves(ERROR_INVALID_PARAMETER, "said so");
	check(!GetProcAddress(&path, "getpid"), "no module");
	leaves(ERROR_BAD_EXE_FORMAT, "said so");
	dladdr(dlsym(RTLD_DEFAULT, "getpid"), &about);
	check(GetModuleFileNameA(libc, path, sizeof(path)) == strlen(path) && !strcmp(path, about.dli_fname), "its path");
	check(GetModuleHandleA(path) == libc, "and the module of that path");
	check(GetModuleFileNameA(libc, shorter, sizeof(shorter)) == sizeof(shorter), "cut where there is no room");
	leaves(ERROR_INSUFFICIENT_BUFFER, "said so");
	check(!memcmp(shorter, path, 4) && !shorter[4], "and closed");
	check(!GetModuleFileNameA(libc, NULL, 5) && !GetModuleFileNameA(libc, path, 0), "no room at all");

	check(!GetModuleHandleA("libanl.so.1"), "a library that is not loaded");
	loaded = LoadLibraryA("libanl.so.1");
	check(loaded && loaded == GetModuleHandleA("libanl.so.1"), "is");
	inside = (char *)loaded + 64;
	check(DetourGetContainingModule(inside) == loaded, "an address in it");
	check(FreeLibrary(loaded) && !DetourGetContainingModule(inside), "and is not any more");
	check(!FreeLibrary(loaded), "twice is once too often");
	leaves(ERROR_INVALID_HANDLE, "said so");
	check(!LoadLibraryA("libnobodyhas.so.1") && GetLastError() == ERROR_MOD_NOT_FOUND, "one that is not there");
}

int main(void)
{
	all_are_enumerated();
	each_is_what_the_loader_has();
	the_program_is_null();
	what_is_no_module();
	the_entry_is_no_target();
	by_name();
	return failed;
}
