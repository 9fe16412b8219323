/* Modules on Windows: what detours.h says of them, against what the loader says. Lines `ok` and `FAIL`. */
#include "../detours/check.h"
#include <psapi.h>

static HMODULE loaded[256];
static DWORD count;

static int by_address(const void *one, const void *other)
{
	PBYTE a = *(PBYTE *)one, b = *(PBYTE *)other;

	return a < b ? -1 : a > b;
}

static IMAGE_NT_HEADERS *headers(HMODULE module)
{
	return (IMAGE_NT_HEADERS *)((PBYTE)module + ((IMAGE_DOS_HEADER *)module)->e_lfanew);
}

/* The memory manager may know of images that the loader does not. */
static void all_are_enumerated(void)
{
	HMODULE module = NULL, before = NULL;
	DWORD found = 0, i, seen = 0;

	check(K32EnumProcessModules(GetCurrentProcess(), loaded, sizeof(loaded), &count), "the loader's list");
	count /= sizeof(loaded[0]);
	qsort(loaded, count, sizeof(loaded[0]), by_address);
	SetLastError(4242);
	while ((module = DetourEnumerateModules(module)) != NULL) {
		each(module > before && !GetLastError(), "in the order of their addresses", "a module");
		each(((IMAGE_DOS_HEADER *)module)->e_magic == IMAGE_DOS_SIGNATURE, "it begins with its header", "a module");
		while (seen < count && loaded[seen] < module)
			seen++;
		if (seen < count && loaded[seen] == module)
			found++;
		before = module;
		SetLastError(4242);
	}
	leaves(4242, "the end is no error");
	check(count > 3 && found == count, "these are all");
	check(!DetourEnumerateModules((HMODULE)~(ULONG_PTR)0), "above all");
	for (i = 0; i < count; i++) {
		IMAGE_OPTIONAL_HEADER *about = &headers(loaded[i])->OptionalHeader;
		PBYTE entry = about->AddressOfEntryPoint ? (PBYTE)loaded[i] + about->AddressOfEntryPoint : NULL;

		SetLastError(4242);
		each(DetourGetModuleSize(loaded[i]) == about->SizeOfImage && !GetLastError(), "size", "a module");
		SetLastError(4242);
		each(DetourGetEntryPoint(loaded[i]) == (PVOID)entry && !GetLastError(), "entry", "a module");
		SetLastError(4242);
		each(DetourGetContainingModule((PBYTE)loaded[i] + 0x1000) == loaded[i] && !GetLastError(), "inside", "a module");
	}
}

static void the_program_is_null(void)
{
	HMODULE program = GetModuleHandleA(NULL);

	check(DetourGetContainingModule(F(the_program_is_null)) == program, "code of the program");
	check(DetourGetContainingModule(&failed) == program, "its data, too");
	check(DetourGetModuleSize(NULL) == DetourGetModuleSize(program), "null is the program");
	check(DetourGetEntryPoint(NULL) == DetourGetEntryPoint(program), "and is entered where it is");
	check(DetourGetContainingModule(F(GetProcAddress(GetModuleHandleA("kernel32.dll"), "Sleep"))) ==
	      GetModuleHandleA("kernel32.dll"), "a library");
}

static void what_is_no_module(void)
{
	char on_stack = 0, *on_heap = (char *)malloc(1);
	char *none = (char *)VirtualAlloc(NULL, 0x20000, MEM_RESERVE, PAGE_NOACCESS);
	HMODULE library = GetModuleHandleA("kernel32.dll");
	/* Of whose tables nothing is mapped. */
	char *made = (char *)VirtualAlloc(NULL, DetourGetModuleSize(library), MEM_RESERVE, PAGE_NOACCESS);
	PVOID nowhere[6];
	int i;

	VirtualAlloc(made, 0x1000, MEM_COMMIT, PAGE_READWRITE);
	nowhere[0] = NULL;
	nowhere[1] = &on_stack;
	nowhere[2] = on_heap;
	nowhere[3] = none;
	nowhere[4] = made;
	nowhere[5] = (PVOID)~(ULONG_PTR)0;
	for (i = 0; i < 6; i++) {
		SetLastError(4242);
		check(!DetourGetContainingModule(nowhere[i]), "in no module");
		leaves(ERROR_BAD_EXE_FORMAT, "said so");
		if (!nowhere[i])
			continue;
		check(!DetourGetModuleSize((HMODULE)nowhere[i]), "no size");
		leaves(ERROR_BAD_EXE_FORMAT, "of what is no module");
		check(!DetourEnumerateExports((HMODULE)nowhere[i], NULL, (PF_DETOUR_ENUMERATE_EXPORT_CALLBACK)(PVOID)check), "no exports");
		leaves(ERROR_BAD_EXE_FORMAT, "of what is no module");
	}
	check(!DetourGetModuleSize((HMODULE)((PBYTE)library + 0x1000)), "not where it begins");
	leaves(ERROR_BAD_EXE_FORMAT, "said so");

	/* Headers that lie. */
	memcpy(made, library, 0x1000);
	check(DetourGetModuleSize((HMODULE)made) == headers(library)->OptionalHeader.SizeOfImage, "a copy of the headers");
	check(!DetourEnumerateExports((HMODULE)made, NULL, (PF_DETOUR_ENUMERATE_EXPORT_CALLBACK)(PVOID)check), "whose tables are not there");
	leaves(ERROR_EXE_MARKED_INVALID, "said so");
	headers((HMODULE)made)->OptionalHeader.DataDirectory[IMAGE_DIRECTORY_ENTRY_EXPORT].VirtualAddress = 0xfffffff0;
	check(!DetourEnumerateExports((HMODULE)made, NULL, (PF_DETOUR_ENUMERATE_EXPORT_CALLBACK)(PVOID)check), "or lead out of it");
	leaves(ERROR_EXE_MARKED_INVALID, "said so");
	headers((HMODULE)made)->OptionalHeader.AddressOfEntryPoint = 0xfffffff0;
	check(!DetourGetEntryPoint((HMODULE)made), "as its entry does");
	leaves(ERROR_EXE_MARKED_INVALID, "said so");
	headers((HMODULE)made)->OptionalHeader.Magic = 0;
	check(!DetourGetModuleSize((HMODULE)made), "of no class");
	leaves(ERROR_EXE_MARKED_INVALID, "said so");
	headers((HMODULE)made)->FileHeader.Machine = IMAGE_FILE_MACHINE_ARM64;
	check(!DetourGetModuleSize((HMODULE)made), "for another machine");
	leaves(ERROR_INVALID_EXE_SIGNATURE, "said so");
	headers((HMODULE)made)->Signature = 0;
	check(!DetourGetModuleSize((HMODULE)made), "of no kind");
	leaves(ERROR_INVALID_EXE_SIGNATURE, "said so");
	((IMAGE_DOS_HEADER *)made)->e_lfanew = -4;
	check(!DetourGetModuleSize((HMODULE)made), "somewhere else");
	leaves(ERROR_INVALID_EXE_SIGNATURE, "said so");
	VirtualFree(made, 0, MEM_RELEASE);
	VirtualFree(none, 0, MEM_RELEASE);
	free(on_heap);
}

static DWORD exported, forwarded;

static BOOL CALLBACK on_export(PVOID context, ULONG ordinal, LPCSTR name, PVOID code)
{
	HMODULE module = *(HMODULE *)context;
	FARPROC by_number = GetProcAddress(module, (LPCSTR)(ULONG_PTR)ordinal);

	exported++;
	if (!code) {
		forwarded++;
		return TRUE;
	}
	each(F(by_number) == code, "its number", name ? name : "(no name)");
	if (name)
		each(F(GetProcAddress(module, name)) == code, "its name", name);
	return TRUE;
}

static BOOL CALLBACK stops(PVOID context, ULONG ordinal, LPCSTR name, PVOID code)
{
	(void)ordinal, (void)name, (void)code;
	return ++*(int *)context < 3;
}

static void exports(void)
{
	HMODULE module = GetModuleHandleA("kernel32.dll");
	int told = 0;

	SetLastError(4242);
	check(DetourEnumerateExports(module, &module, on_export) && exported > 500 && forwarded > 0, "what kernel32.dll exports");
	leaves(NO_ERROR, "is no error");
	check(DetourEnumerateExports(module, &told, stops) && told == 3, "until it is enough");
	check(!DetourEnumerateExports(module, NULL, NULL), "nobody to be told");
	leaves(ERROR_INVALID_PARAMETER, "said so");
}

struct seen {
	int files, ends, ordinals, last;
	LPCSTR file;
	HMODULE module;
	PVOID sleep, *slot;
	LPCSTR of;
};

static BOOL CALLBACK on_file(PVOID context, HMODULE module, LPCSTR file)
{
	struct seen *seen = (struct seen *)context;

	seen->last += !file;
	seen->files += !!file;
	seen->file = file;
	seen->module = module;
	return TRUE;
}

static BOOL CALLBACK on_function(PVOID context, DWORD ordinal, LPCSTR name, PVOID function)
{
	struct seen *seen = (struct seen *)context;

	seen->ends += !name && !ordinal && !function;
	if (name && !strcmp(name, "Sleep")) {
		seen->sleep = function;
		seen->of = seen->file;
	}
	if (name)
		each(function == F(GetProcAddress(GetModuleHandleA(seen->file), name)), "bound to", name);
	return TRUE;
}

static BOOL CALLBACK on_slot(PVOID context, DWORD ordinal, LPCSTR name, PVOID *slot)
{
	struct seen *seen = (struct seen *)context;

	(void)ordinal;
	if (name && !strcmp(name, "Sleep"))
		seen->slot = slot;
	return TRUE;
}

static void imports(void)
{
	struct seen seen;
	PVOID sleep = F(GetProcAddress(GetModuleHandleA("kernel32.dll"), "Sleep"));

	Sleep(0);
	memset(&seen, 0, sizeof(seen));
	SetLastError(4242);
	check(DetourEnumerateImports(NULL, &seen, on_file, on_function), "what the program imports");
	leaves(NO_ERROR, "is no error");
	check(seen.files > 1 && seen.ends == seen.files && seen.last == 1, "each file has its end, and all have one");
	check(seen.sleep == sleep && !_stricmp(seen.of, "kernel32.dll"), "among it Sleep");
	check(DetourEnumerateImportsEx(NULL, &seen, NULL, on_slot) && seen.slot && *seen.slot == sleep, "where it is kept");
	check(DetourIsFunctionImported((PBYTE)F(imports), (PBYTE)seen.slot), "which is one of the program's");
	check(!DetourIsFunctionImported((PBYTE)F(imports), (PBYTE)(seen.slot) + 1), "but not beside it");
	check(!DetourIsFunctionImported((PBYTE)sleep, (PBYTE)seen.slot), "nor one of the library's");
	check(!DetourIsFunctionImported(NULL, NULL), "nothing is none");
	check(!DetourEnumerateImports(NULL, &seen, on_file, NULL), "nobody to be told");
	leaves(ERROR_INVALID_PARAMETER, "said so");
}

static void by_name(void)
{
	PVOID sleep = F(GetProcAddress(GetModuleHandleA("kernel32.dll"), "Sleep"));

	SetLastError(4242);
	check(DetourFindFunction("kernel32.dll", "Sleep") == sleep && GetLastError() == 4242, "a function of a library");
	check(GetModuleHandleA("winmm.dll") == NULL, "a library that is not loaded");
	check(DetourFindFunction("winmm.dll", "timeGetTime") && GetModuleHandleA("winmm.dll"), "is");
	check(!DetourFindFunction("nobodyhas.dll", "Sleep"), "no library");
	leaves(ERROR_MOD_NOT_FOUND, "said so");
	check(!DetourFindFunction("kernel32.dll", "NobodyHasThis"), "no function");
	leaves(ERROR_PROC_NOT_FOUND, "said so");
	check(!DetourFindFunction(NULL, "Sleep"), "no name");
	leaves(ERROR_INVALID_PARAMETER, "said so");
	check(!DetourFindFunction("kernel32.dll", NULL), "nor this");
	leaves(ERROR_INVALID_PARAMETER, "said so");
}

static void how_it_came_here(void)
{
	check(!DetourIsHelperProcess(), "nobody's helper");
	SetLastError(4242);
	check(!DetourRestoreAfterWith(), "and nothing to restore");
	leaves(ERROR_MOD_NOT_FOUND, "said so");
}

int main(void)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	all_are_enumerated();
	the_program_is_null();
	what_is_no_module();
	exports();
	imports();
	by_name();
	how_it_came_here();
	return failed;
}
