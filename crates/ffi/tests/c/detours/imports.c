/*
 * Imports, against the program's own file and the loader. Compiled in every way in which a program is bound: at the first call (-DLAZY), before
 * it begins and then read-only (-DNOW), without stubs, and not position-independent (-DFIXED). Lines `ok` and `FAIL`.
 *
 * With the argument `interposed` it was started with interpose.c in front of all libraries.
 */
#include "check.h"
#include <elf.h>
#include <fcntl.h>
#include <libgen.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include "image.h"

static int is_interposed;

#define MOST 20000
static struct import {
	const char *file, *name;
	HMODULE module;
	PVOID function;
	PVOID *slot;
} imports[MOST];
static int count, files;
static struct import file;
/* F a file, f a function, e the end of a file, E the end of all. */
static char sequence[MOST];
static int length, stop_file, stop_function;

static void add(char letter)
{
	if (length < MOST - 1)
		sequence[length++] = letter;
	sequence[length] = 0;
}

static BOOL CALLBACK on_file(PVOID context, HMODULE module, LPCSTR name)
{
	each(context == &count, "what the caller gave", name ? name : "the end");
	add(name ? 'F' : 'E');
	each(name || !module, "the end has no module", "the end");
	file.file = name;
	file.module = module;
	files += name != NULL;
	return name ? !stop_file : FALSE;
}

static BOOL CALLBACK on_function(PVOID context, DWORD ordinal, LPCSTR name, PVOID function)
{
	each(context == &count && !ordinal && count < MOST, "what the caller gave", name ? name : "an end");
	add(name ? 'f' : 'e');
	if (!name)
		return TRUE;
	file.name = name;
	file.function = function;
	imports[count++] = file;
	return !stop_function;
}

static BOOL CALLBACK on_slot(PVOID context, DWORD ordinal, LPCSTR name, PVOID *slot)
{
	each(context == &count && !ordinal, "what the caller gave", name ? name : "an end");
	add(name ? 's' : 'e');
	if (!name)
		return TRUE;
	if (count < MOST && imports[count].name == name)
		imports[count].slot = slot;
	count++;
	return TRUE;
}

static BOOL CALLBACK on_slot_alone(PVOID context, DWORD ordinal, LPCSTR name, PVOID *slot)
{
	(void)context, (void)ordinal, (void)name, (void)slot;
	add('s');
	return TRUE;
}

/* All imports of a module; how many, or -1. */
static int all_of(HMODULE module)
{
	count = files = length = 0;
	stop_file = stop_function = 0;
	if (!DetourEnumerateImports(module, &count, on_file, on_function))
		return -1;
	length = count = 0;
	if (!DetourEnumerateImportsEx(module, &count, on_file, on_slot))
		return -1;
	return count;
}

static const struct import *named(const char *name)
{
	int i;

	for (i = 0; i < count; i++)
		if (!strcmp(imports[i].name, name))
			return &imports[i];
	return NULL;
}

static const struct import *at(const void *slot)
{
	int i;

	for (i = 0; i < count; i++)
		if (imports[i].slot == slot)
			return &imports[i];
	return NULL;
}

extern int nobody_has_this(void) __attribute__((weak));

/* Called in this program, and nowhere before it was looked at. */
static void one_that_was_not_called_yet(void)
{
	void *libc = dlopen("libc.so.6", RTLD_LAZY);
	HMODULE whose = DetourGetContainingModule(dlsym(is_interposed ? RTLD_DEFAULT : libc, "getppid"));
	PVOID real = dlsym(is_interposed ? RTLD_DEFAULT : libc, "getppid");
	const struct import *import;

	SetLastError(4242);
	check(all_of(NULL) > 5, "imports of the program");
	leaves(NO_ERROR, "are no error");
	import = named("getppid");
	if (!import) {
		check(0, "getppid is one of them");
		return;
	}
	check(import->function == real, "its address, though nobody has called it");
	check(import->module == whose, "whose it is");
	check(!strcmp(import->file, is_interposed ? "interpose.so" : "libc.so.6"), "under that file's name");
	check(DetourGetContainingModule(import->slot) == DetourGetContainingModule(F(all_of)), "its slot is in the program");
	check(DetourIsFunctionImported(AT(F(all_of)), AT(import->slot)), "which is known");
#ifdef LAZY
	check(*import->slot != real, "the loader has not put it there yet");
#else
	check(*import->slot == real, "the loader has put it there already");
#endif
	check((getppid() == 4711) == is_interposed, "it is called");
	check(*import->slot == real, "then it is there");
#ifdef LAZY
	check(!strcmp(mapped(import->slot), "rw-p"), "to be written, as the loader did");
#else
	check(!strcmp(mapped(import->slot), "r--p"), "read-only, since it was bound before the program began");
#endif
	all_of(NULL);
	import = named("getppid");
	check(import && import->function == real, "and the same is said again");
}

/* In a program that is not position-independent this is the address of a stub, for everybody. */
static __attribute__((noinline)) PVOID address_of_getpid(void)
{
	return F(getpid);
}

/* A jump through a variable of the program's own: no import, whatever the variable has. */
#if defined(__x86_64__)
#define BY_VARIABLE "jmp *variable(%rip)"
#elif defined(FIXED)
#define BY_VARIABLE "jmp *variable"
#else
#define BY_VARIABLE "jmp *variable@GOTOFF(%ebx)"
#endif
__asm__(".text\n.balign 16\nby_variable:\n\t" BY_VARIABLE "\n\t.balign 16, 0xcc\n"
	".data\n.balign 8\nvariable:\n\t.skip 8\n.text\n");
extern char by_variable[] __attribute__((visibility("hidden")));
extern PVOID variable __attribute__((visibility("hidden")));

static pid_t (*TrueGetpgrp)(void);

static pid_t MyGetpgrp(void)
{
	return -TrueGetpgrp();
}

/* A jump to the stub by which code of the program calls a function; nobody has called it yet. */
__asm__(".text\nto_stub:\n\tjmp getsid@PLT\n\tint3\n\tint3\n\tint3\n");
extern const unsigned char to_stub[] __attribute__((visibility("hidden")));

static void one_by_its_stub(void)
{
	PVOID stub, real = dlsym(dlopen("libc.so.6", RTLD_LAZY), "getsid");
	int by;

	memcpy(&by, to_stub + 1, sizeof(by));
	stub = (PVOID)(to_stub + 5 + by);
	check(to_stub[0] == 0xe9 && stub != real && DetourGetContainingModule(stub) == GetModuleHandleA(NULL), "a stub of the program");
	check(DetourCodeFromPointer(stub, NULL) == real, "leads to the function");
}

/* Where a program is not position-independent its pointer is that of a stub, which leads to the loader until it has been called. */
static void one_that_is_detoured_before_it_is_called(void)
{
	PVOID libc = dlopen("libc.so.6", RTLD_LAZY), real = dlsym(libc, "getpgrp"), globals = &real, target = NULL;
	pid_t (*theirs)(void);

	memcpy(&theirs, &real, sizeof(real));
	TrueGetpgrp = getpgrp;
#ifdef FIXED
	check(F(TrueGetpgrp) != real, "a stub");
#endif
	check(DetourCodeFromPointer(F(TrueGetpgrp), &globals) == real && !globals, "it leads to the function");
	variable = real;
	check(DetourCodeFromPointer(by_variable, NULL) == by_variable, "a variable leads nowhere");
	DetourTransactionBegin();
	gives(DetourAttachEx(P(TrueGetpgrp), F(MyGetpgrp), NULL, &target, NULL), NO_ERROR, "attach");
	check(target == real, "to the function");
	gives(DetourTransactionCommit(), NO_ERROR, "commit");
	check(getpgrp() < 0 && theirs() < 0 && TrueGetpgrp() > 0, "it is detoured for everybody");
	DetourTransactionBegin();
	DetourDetach(P(TrueGetpgrp), F(MyGetpgrp));
	gives(DetourTransactionCommit(), NO_ERROR, "detach");
	check(getpgrp() > 0 && F(TrueGetpgrp) == real, "as it was");
}

static void one_whose_address_is_taken(void)
{
	PVOID real = dlsym(dlopen("libc.so.6", RTLD_LAZY), "getpid");
	HMODULE module = NULL;
	int i, slots = 0;

#ifdef FIXED
	check(DetourGetContainingModule(address_of_getpid()) == GetModuleHandleA(NULL), "a stub");
#else
	check(address_of_getpid() == real, "the function itself");
#endif
	while ((module = DetourEnumerateModules(module)))
		for (i = 0, all_of(module); i < count; i++)
			if (!strcmp(imports[i].name, "getpid")) {
				each(imports[i].function == real, "is the function for every module", imports[i].file);
				slots++;
			}
	check(slots > 0, "also where the slot has the stub");
	all_of(NULL);
}

/* Every slot that the program's file has for a function of somebody else's. */
static void as_the_file_has_it(void)
{
	int fd = open("/proc/self/exe", O_RDONLY), slots = 0;
	ElfW(Addr) base = (ElfW(Addr))GetModuleHandleA(NULL);
	struct stat about;
	const char *text;
	const ElfW(Ehdr) *header;
	const ElfW(Shdr) *sections;
	size_t i, j;

	if (fd < 0 || fstat(fd, &about)) {
		check(0, "the program's file");
		return;
	}
	text = mmap(NULL, about.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	header = (const ElfW(Ehdr) *)text;
	sections = (const ElfW(Shdr) *)(text + header->e_shoff);
	if (header->e_type == ET_EXEC)
		base = 0;
	for (i = 0; i < header->e_shnum; i++) {
		const Relocation *entries = (const Relocation *)(text + sections[i].sh_offset);
		const ElfW(Shdr) *linked = &sections[sections[i].sh_link];
		const ElfW(Sym) *symbols = (const ElfW(Sym) *)(text + linked->sh_offset);
		const char *names = text + sections[linked->sh_link].sh_offset;

		if (sections[i].sh_type != SHT_RELOCATIONS || linked->sh_type != SHT_DYNSYM)
			continue;
		for (j = 0; j < sections[i].sh_size / sizeof(*entries); j++) {
			const ElfW(Sym) *symbol = &symbols[SYMBOL(entries[j].r_info)];
			const char *name = names + symbol->st_name;
			unsigned long type = TYPE(entries[j].r_info);
			const struct import *import = at((void *)(base + entries[j].r_offset));
			int kind = ELF64_ST_TYPE(symbol->st_info);

			if (type != JUMP_SLOT && (type != GLOB_DAT || kind != STT_FUNC))
				continue;
			/* What the program has itself it imports of nobody. */
			if (symbol->st_shndx != SHN_UNDEF) {
				each(!import, "not imported", name);
				continue;
			}
			each(import && !strcmp(import->name, name), "the file has a slot for it", name);
			slots++;
		}
	}
	munmap((void *)text, about.st_size);
	close(fd);
	check(slots > 5 && slots <= count, "every slot of the file");
}

/* What a file needs comes first, in the order in which it says so; the program's own name is that of what nobody has. */
static void in_the_order_of_the_files(void)
{
	const ElfW(Dyn) *entry;
	const char *needed[32], *strings = NULL;
	int wanted = 0, before = 0, i, in_order = 1;
	char path[MAX_PATH];

	for (entry = _DYNAMIC; entry->d_tag != DT_NULL; entry++)
		if (entry->d_tag == DT_STRTAB)
			strings = (const char *)entry->d_un.d_ptr;
	for (entry = _DYNAMIC; entry->d_tag != DT_NULL; entry++)
		if (entry->d_tag == DT_NEEDED && wanted < 32)
			needed[wanted++] = strings + entry->d_un.d_val;
	GetModuleFileNameA(NULL, path, sizeof(path));
	for (i = 0; i < count; i++) {
		int position = 0;

		while (position < wanted && strcmp(needed[position], imports[i].file))
			position++;
		if (position == wanted)
			each((is_interposed && !strcmp(imports[i].file, "interpose.so")) || !strcmp(imports[i].file, basename(path)),
			     "a file that is needed", imports[i].file);
		in_order &= position >= before;
		before = position;
	}
	check(wanted >= 2 && files >= wanted && in_order, "files in the order in which they are needed, then others");
	for (i = 0; i < count; i++) {
		int own = !strcmp(imports[i].file, basename(path));

		each(own == !imports[i].function, "what nobody has is the program's own", imports[i].name);
		each(imports[i].module == GetModuleHandleA(own ? NULL : imports[i].file), "the file's module", imports[i].name);
	}
#ifndef FIXED
	check(named("__gmon_start__") && !named("__gmon_start__")->function, "nobody has __gmon_start__");
#endif
	check(!nobody_has_this, "nor this");
}

static void what_a_slot_is(void)
{
	HMODULE libc = DetourGetContainingModule(dlsym(RTLD_DEFAULT, "strlen"));
	int i;

	for (i = 0; i < count; i++)
		each(DetourIsFunctionImported(AT(F(all_of)), AT(imports[i].slot)), "a slot", imports[i].name);
	check(DetourIsFunctionImported(AT(GetModuleHandleA(NULL)), AT(imports[0].slot)), "of the module by its handle");
	check(!DetourIsFunctionImported(AT(libc), AT(imports[0].slot)), "not one of another module");
	check(!DetourIsFunctionImported(AT(F(all_of)), AT(&count)), "not any variable");
	check(!DetourIsFunctionImported(AT(F(all_of)), AT(imports[0].slot) + 1), "not a part of one");
	check(!DetourIsFunctionImported(NULL, AT(imports[0].slot)) && !DetourIsFunctionImported(AT(F(all_of)), NULL), "nothing");
	check(!DetourIsFunctionImported(AT(&i), AT(imports[0].slot)), "of no module");
}

static void when_it_is_stopped(void)
{
	int all = all_of(NULL), its_files, i, runs = 0;

	/* For each file F, its s, and e; in the end E. */
	its_files = 0;
	for (i = 0; sequence[i]; i++)
		its_files += sequence[i] == 'F';
	check(sequence[0] == 'F' && sequence[length - 1] == 'E' && sequence[length - 2] == 'e', "in their order");
	for (i = 0; i + 1 < length; i++)
		runs += sequence[i] == 'F' && !strchr("se", sequence[i + 1]);
	check(!runs && length == 2 * its_files + all + 1, "each file with its end");

	length = count = 0, stop_file = 1;
	check(DetourEnumerateImports(NULL, &count, on_file, on_function) && !strcmp(sequence, "FE"), "no more files");
	length = count = 0, stop_file = 0, stop_function = 1;
	check(DetourEnumerateImports(NULL, &count, on_file, on_function), "no more functions");
	for (i = 0, runs = 0; sequence[i]; i++)
		runs += sequence[i] == 'F';
	check(runs == its_files && count <= its_files && !strstr(sequence, "ff") && sequence[length - 1] == 'E',
	      "of that file: the next one is told");
	stop_function = 0;

	length = 0;
	SetLastError(4242);
	check(DetourEnumerateImportsEx(NULL, NULL, NULL, on_slot_alone) && length == all + its_files, "functions alone");
	leaves(NO_ERROR, "is no error");
	check(DetourEnumerateImportsEx(NULL, NULL, NULL, NULL), "nobody to be told");
	leaves(NO_ERROR, "is none there");
	check(!DetourEnumerateImports(NULL, &count, NULL, on_function), "and here");
	leaves(ERROR_INVALID_PARAMETER, "is one");
	check(!DetourEnumerateImports(NULL, &count, on_file, NULL), "nor one half");
	leaves(ERROR_INVALID_PARAMETER, "of it");
	check(!DetourEnumerateImports(&all, &count, on_file, on_function), "no module");
	leaves(ERROR_BAD_EXE_FORMAT, "said so");
}

static void every_module(void)
{
	HMODULE module = NULL;
	int modules = 0, i;

	while ((module = DetourEnumerateModules(module))) {
		int known = all_of(module);

		each(known >= 0, "imports", "a module");
		for (i = 0; i < known; i++) {
			each(DetourGetContainingModule(imports[i].slot) == module, "its own slot", imports[i].name);
			if (!imports[i].function)
				continue;
			each(mapped(imports[i].function)[2] == 'x', "code", imports[i].name);
			each(DetourGetContainingModule(imports[i].function) != module, "of somebody else", imports[i].name);
		}
		modules++;
	}
	check(modules > 2, "all of them");
}

int main(int argc, char **argv)
{
	(void)argv;
	is_interposed = argc > 1;
	one_that_was_not_called_yet();
	one_that_is_detoured_before_it_is_called();
	one_by_its_stub();
	one_whose_address_is_taken();
	as_the_file_has_it();
	in_the_order_of_the_files();
	what_a_slot_is();
	when_it_is_stopped();
	every_module();
	return failed;
}
