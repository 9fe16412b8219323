/*
 * ELF images that lie: truncated, misaligned, with counts and offsets that lead anywhere. Each call answers with an error or with something
 * that is there; none crashes. Lines `ok` and `FAIL`.
 */
#include "check.h"
#include <elf.h>
#include <link.h>
#include <stddef.h>
#include <sys/mman.h>
#include "image.h"

#define PAGE 4096

/* An image of two pages, as a linker would make it: a header, its tables, a function, data, and a slot. */
struct image {
	ElfW(Ehdr) header;
	ElfW(Phdr) loaded[2], dynamic;
	ElfW(Sym) symbols[4];
	ElfW(Word) hash[2 + 1 + 4];
	ElfW(Half) versions[4];
	char strings[64];
	struct {
		ElfW(Verdef) first, second;
		ElfW(Verdaux) first_name, second_name;
	} defined;
	unsigned char code[16];
	/* The second page. */
	ElfW(Dyn) table[16] __attribute__((aligned(PAGE)));
	Relocation slots[1];
	unsigned long slot, data;
};

#define OFFSET(field_) offsetof(struct image, field_)

static struct image *image;

static void name(int symbol, const char *text, char **at)
{
	image->symbols[symbol].st_name = (ElfW(Word))(*at - image->strings);
	strcpy(*at, text);
	*at += strlen(text) + 1;
}

static void entry(int number, long tag, unsigned long value)
{
	image->table[number].d_tag = tag;
	image->table[number].d_un.d_val = value;
}

static void build(void)
{
	char *at = image->strings + 1;
	int i;

	memset(image, 0, sizeof(*image));
	memcpy(image->header.e_ident, ELFMAG, SELFMAG);
	image->header.e_ident[EI_CLASS] = THIS_CLASS;
	image->header.e_ident[EI_DATA] = ELFDATA2LSB;
	image->header.e_ident[EI_VERSION] = EV_CURRENT;
	image->header.e_type = ET_DYN;
	image->header.e_machine = MACHINE;
	image->header.e_version = EV_CURRENT;
	image->header.e_entry = OFFSET(code);
	image->header.e_phoff = OFFSET(loaded);
	image->header.e_phentsize = sizeof(ElfW(Phdr));
	image->header.e_phnum = 3;
	image->loaded[0].p_type = PT_LOAD;
	image->loaded[0].p_flags = PF_R | PF_X;
	image->loaded[0].p_filesz = image->loaded[0].p_memsz = OFFSET(table);
	image->loaded[1].p_type = PT_LOAD;
	image->loaded[1].p_flags = PF_R | PF_W;
	image->loaded[1].p_offset = image->loaded[1].p_vaddr = OFFSET(table);
	image->loaded[1].p_filesz = image->loaded[1].p_memsz = sizeof(*image) - OFFSET(table);
	image->dynamic.p_type = PT_DYNAMIC;
	image->dynamic.p_vaddr = OFFSET(table);
	image->dynamic.p_memsz = sizeof(image->table);
	name(1, "getppid", &at);
	name(2, "code", &at);
	name(3, "data", &at);
	for (i = 1; i < 4; i++)
		image->symbols[i].st_info = ELF64_ST_INFO(STB_GLOBAL, i == 3 ? STT_OBJECT : STT_FUNC);
	image->symbols[2].st_shndx = image->symbols[3].st_shndx = 1;
	image->symbols[2].st_value = OFFSET(code);
	image->symbols[3].st_value = OFFSET(data);
	image->hash[0] = 1;
	image->hash[1] = 4;
	for (i = 1; i < 4; i++)
		image->versions[i] = 2;
	image->defined.first.vd_version = image->defined.second.vd_version = VER_DEF_CURRENT;
	image->defined.first.vd_ndx = 1;
	image->defined.second.vd_ndx = 2;
	image->defined.first.vd_cnt = image->defined.second.vd_cnt = 1;
	image->defined.first.vd_next = sizeof(ElfW(Verdef));
	image->defined.first.vd_aux = 2 * sizeof(ElfW(Verdef));
	image->defined.second.vd_aux = sizeof(ElfW(Verdef)) + sizeof(ElfW(Verdaux));
	image->defined.second_name.vda_name = image->symbols[2].st_name;
	image->slots[0].r_offset = OFFSET(slot);
	image->slots[0].r_info = INFO(1, JUMP_SLOT);
	entry(0, DT_STRTAB, OFFSET(strings));
	entry(1, DT_STRSZ, sizeof(image->strings));
	entry(2, DT_SYMTAB, OFFSET(symbols));
	entry(3, DT_SYMENT, sizeof(ElfW(Sym)));
	entry(4, DT_HASH, OFFSET(hash));
	entry(5, DT_JMPREL, OFFSET(slots));
	entry(6, DT_PLTRELSZ, sizeof(image->slots));
	entry(7, DT_PLTREL, DT_RELOCATIONS);
	entry(8, DT_VERSYM, OFFSET(versions));
	entry(9, DT_VERDEF, OFFSET(defined));
	entry(10, DT_VERDEFNUM, 2);
	entry(11, DT_SONAME, image->symbols[3].st_name);
}

static int told;
static size_t longest;

static BOOL CALLBACK on_export(PVOID context, ULONG ordinal, LPCSTR text, PVOID code)
{
	(void)context, (void)ordinal, (void)code;
	longest += strlen(text);
	return ++told < 1000;
}

static BOOL CALLBACK on_file(PVOID context, HMODULE module, LPCSTR text)
{
	(void)context, (void)module;
	longest += text ? strlen(text) : 0;
	return TRUE;
}

static BOOL CALLBACK on_function(PVOID context, DWORD ordinal, LPCSTR text, PVOID function)
{
	(void)context, (void)ordinal, (void)function;
	longest += text ? strlen(text) : 0;
	told += text != NULL;
	return told < 1000;
}

/* What each of the four calls that read an image leaves: the size, the entry, exports, imports. */
static void leave(DWORD errors[4])
{
	HMODULE module = image;

	told = 0;
	SetLastError(4242);
	DetourGetModuleSize(module);
	errors[0] = GetLastError();
	SetLastError(4242);
	DetourGetEntryPoint(module);
	errors[1] = GetLastError();
	SetLastError(4242);
	DetourEnumerateExports(module, NULL, on_export);
	errors[2] = GetLastError();
	SetLastError(4242);
	DetourEnumerateImports(module, NULL, on_file, on_function);
	errors[3] = GetLastError();
}

static void leaves_each(DWORD size, DWORD entry_, DWORD exports, DWORD imports, const char *what)
{
	DWORD wanted[4], errors[4];
	int i;

	wanted[0] = size, wanted[1] = entry_, wanted[2] = exports, wanted[3] = imports;
	leave(errors);
	for (i = 0; i < 4; i++)
		if (errors[i] != wanted[i])
			printf("call %d leaves %u in place of %u\n", i, errors[i], wanted[i]);
	check(!memcmp(errors, wanted, sizeof(errors)), what);
	build();
}

static void an_honest_one(void)
{
	build();
	gives((LONG)DetourGetModuleSize(image), 2 * PAGE, "its size");
	check(DetourGetEntryPoint(image) == (PVOID)image->code, "its entry");
	told = 0;
	check(DetourEnumerateExports(image, NULL, on_export) && told == 2, "its exports");
	told = 0;
	check(DetourEnumerateImports(image, NULL, on_file, on_function) && told == 1, "its import");
	check(F(GetProcAddress(image, "code")) == (PVOID)image->code, "its function");
	check(!GetProcAddress(image, "getppid"), "and not that of somebody else");
	check(!DetourGetContainingModule(image), "but the loader does not have it");
	check(!DetourIsFunctionImported(AT(image->code), AT(&image->slot)), "nor its slot");
	leaves_each(0, 0, 0, 0, "nothing is wrong");
	image->header.e_entry = 0;
	SetLastError(4242);
	check(!DetourGetEntryPoint(image) && !GetLastError(), "no entry, which is no error");
	build();
}

#define BAD ERROR_BAD_EXE_FORMAT
#define SIGNATURE ERROR_INVALID_EXE_SIGNATURE
#define INVALID ERROR_EXE_MARKED_INVALID
#define ALL(error_, what_) leaves_each(error_, error_, error_, error_, what_)

static void headers_that_lie(void)
{
	image->header.e_ident[0] = 'M';
	ALL(BAD, "another magic");
	image->header.e_ident[EI_CLASS] = OTHER_CLASS;
	ALL(SIGNATURE, "of the other class");
	image->header.e_ident[EI_DATA] = ELFDATA2MSB;
	ALL(SIGNATURE, "the other order of bytes");
	image->header.e_ident[EI_VERSION] = 9;
	ALL(SIGNATURE, "another version");
	image->header.e_machine = EM_AARCH64;
	ALL(SIGNATURE, "another machine");
	image->header.e_type = ET_CORE;
	ALL(SIGNATURE, "no program, no library");
	image->header.e_type = ET_EXEC;
	ALL(INVALID, "where its file does not put it");
	image->header.e_phnum = 0;
	ALL(INVALID, "no segments");
	image->header.e_phnum = 0xffff;
	ALL(INVALID, "too many");
	image->header.e_phnum = 0xfffe;
	ALL(INVALID, "nearly too many");
	image->header.e_phentsize = 1;
	ALL(INVALID, "of another size");
	image->header.e_phoff = FAR;
	ALL(INVALID, "far away");
	image->header.e_phoff = ~0ul - 8;
	ALL(INVALID, "in front of it");
	image->header.e_phoff = OFFSET(table);
	ALL(INVALID, "where something else is");
	image->header.e_phoff++;
	ALL(INVALID, "misaligned");
	image->header.e_entry = FAR;
	leaves_each(0, INVALID, 0, 0, "entered far away");
	image->header.e_entry = OFFSET(data);
	leaves_each(0, INVALID, 0, 0, "entered where there is no code");
}

static void segments_that_lie(void)
{
	image->loaded[0].p_type = image->loaded[1].p_type = PT_NOTE;
	ALL(INVALID, "nothing is loaded");
	image->loaded[0].p_memsz = image->loaded[0].p_filesz = FAR;
	ALL(INVALID, "a segment that is not mapped");
	image->loaded[1].p_memsz = ~0ul;
	ALL(INVALID, "one that wraps");
	image->loaded[1].p_vaddr = 0;
	ALL(INVALID, "two of one address");
	image->loaded[1].p_vaddr = -(ElfW(Addr))PAGE;
	ALL(INVALID, "one in front of the header");
	image->loaded[0].p_offset = PAGE;
	ALL(INVALID, "without the headers");
	image->loaded[0].p_filesz = 8;
	ALL(INVALID, "with a part of them");
	image->loaded[1].p_memsz = 3 * PAGE;
	ALL(INVALID, "longer than what is mapped");
	image->loaded[1].p_memsz = 0;
	leaves_each(0, 0, INVALID, INVALID, "an empty one");
	image->dynamic.p_type = PT_NOTE;
	leaves_each(0, 0, INVALID, INVALID, "no table");
	image->dynamic.p_vaddr = FAR;
	leaves_each(0, 0, INVALID, INVALID, "a table far away");
	image->dynamic.p_memsz = FAR;
	leaves_each(0, 0, INVALID, INVALID, "a table without an end");
	image->dynamic.p_memsz = 1;
	leaves_each(0, 0, INVALID, INVALID, "a table without an entry");
}

static void tables_that_lie(void)
{
	int i;

	for (i = 0; i < 6; i++) {
		image->table[i].d_un.d_val = FAR;
		/* DT_HASH is asked how many symbols there are for others; who imports does not need to know. */
		leaves_each(0, 0, i == 5 ? 0 : INVALID, i == 4 ? 0 : INVALID, "something far away, or too large");
		image->table[i].d_tag = 0x6000000f;
		leaves_each(0, 0, i == 5 ? 0 : INVALID, i == 4 || i == 5 ? 0 : INVALID, "something is missing");
	}
	entry(6, DT_PLTRELSZ, ~0ul);
	leaves_each(0, 0, 0, INVALID, "slots without an end");
	entry(1, DT_STRSZ, 0);
	leaves_each(0, 0, INVALID, INVALID, "no names");
	entry(1, DT_STRSZ, image->symbols[3].st_name + 2);
	leaves_each(0, 0, INVALID, 0, "a name without an end");
	image->symbols[2].st_name = 0xffffffff;
	leaves_each(0, 0, INVALID, 0, "a name far away");
	image->hash[1] = 0xffffffff;
	leaves_each(0, 0, INVALID, 0, "too many symbols");
	image->hash[0] = 0xffffffff;
	leaves_each(0, 0, INVALID, 0, "too many buckets");
	image->hash[1] = PAGE / sizeof(ElfW(Sym)) + 1;
	leaves_each(0, 0, INVALID, 0, "more symbols than there is room for");
	image->slots[0].r_offset = FAR;
	leaves_each(0, 0, 0, INVALID, "a slot far away");
	image->slots[0].r_offset = sizeof(*image) - sizeof(image->slot) / 2;
	leaves_each(0, 0, 0, INVALID, "a slot with one half outside");
	image->slots[0].r_info = INFO(LAST_SYMBOL, JUMP_SLOT);
	leaves_each(0, 0, 0, INVALID, "a slot for no symbol");
	image->versions[2] = 0x7fff;
	leaves_each(0, 0, 0, 0, "a version that nobody has");
	entry(8, DT_VERSYM, FAR);
	leaves_each(0, 0, INVALID, INVALID, "versions far away");
	image->defined.first.vd_next = 1;
	leaves_each(0, 0, 0, 0, "versions that overlap");
	image->defined.first.vd_aux = 0xfffffff0;
	leaves_each(0, 0, INVALID, INVALID, "a version's name far away");
	/* Where a symbol is outside the image, nothing is said to be there. */
	image->symbols[2].st_value = FAR;
	check(!GetProcAddress(image, "code") && GetLastError() == ERROR_PROC_NOT_FOUND, "a function far away");
	build();
}

/* glibc writes addresses where the file has offsets. */
static void addresses_in_place_of_offsets(void)
{
	int i, pointers[] = {0, 2, 4, 5, 8, 9};

	for (i = 0; i < 6; i++)
		image->table[pointers[i]].d_un.d_val += (unsigned long)image;
	leaves_each(0, 0, 0, 0, "addresses that the loader has written");
}

/* An IFUNC of an image that the loader does not know would be the first call into it. */
static void nothing_of_it_is_called(void)
{
	memset(image->code, 0xcc, sizeof(image->code));
	image->symbols[2].st_info = ELF64_ST_INFO(STB_GLOBAL, STT_GNU_IFUNC);
	told = 0;
	check(DetourEnumerateExports(image, NULL, on_export) && told == 2, "its function that chooses");
	check(!GetProcAddress(image, "code"), "is not called");
	build();
}

static void misaligned(void)
{
	char *copy = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int i, by[] = {1, 8, 2048};

	for (i = 0; i < 3; i++) {
		memcpy(copy + by[i], image, sizeof(*image));
		SetLastError(4242);
		check(!DetourGetModuleSize(copy + by[i]), "an image that does not begin with a page");
		leaves(BAD, "is none");
	}
	munmap(copy, 4 * PAGE);
}

static void truncated(void)
{
	int i;

	munmap((char *)image + PAGE, PAGE);
	{
		DWORD errors[4];

		leave(errors);
		check(errors[0] == INVALID && errors[1] == INVALID && errors[2] == INVALID && errors[3] == INVALID,
		      "the second half is not there");
	}
	mprotect(image, PAGE, PROT_NONE);
	for (i = 0; i < 2; i++) {
		DWORD errors[4];

		leave(errors);
		check(errors[0] == BAD && errors[1] == BAD && errors[2] == BAD && errors[3] == BAD,
		      i ? "nothing is there" : "nothing that can be read is there");
		munmap(image, PAGE);
	}
}

/* Whatever is written where: an answer, and no signal. */
static void anything(void)
{
	unsigned long long random = 88172645463325252ull;
	int round, change, successes = 0;

	for (round = 0; round < 4000; round++) {
		DWORD errors[4];

		for (change = 0; change <= round % 4; change++) {
			size_t place;

			random ^= random << 13, random ^= random >> 7, random ^= random << 17;
			/* The tables, not what lies between them and the next page. */
			place = random % (sizeof(*image) - PAGE + OFFSET(code));
			if (place >= OFFSET(code))
				place += PAGE - OFFSET(code);
			((unsigned char *)image)[place] = random >> 32 & 1 ? 0xff : (unsigned char)(random >> 40);
		}
		leave(errors);
		successes += !errors[0] + !errors[1] + !errors[2] + !errors[3];
		build();
	}
	printf("%d of %d calls succeeded\n", successes, 4 * round);
	check(successes > 0 && successes < 4 * round, "thousands of images that are wrong somewhere");
}

int main(void)
{
	/* Behind it are pages of a file that has none: nothing can be read there, and nothing else comes there. */
	int empty = memfd_create("empty", 0);

	image = mmap(NULL, 16 * PAGE, PROT_READ, MAP_SHARED, empty, 0);
	mmap(image, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	an_honest_one();
	headers_that_lie();
	segments_that_lie();
	tables_that_lie();
	addresses_in_place_of_offsets();
	nothing_of_it_is_called();
	misaligned();
	anything();
	truncated();
	return failed;
}
