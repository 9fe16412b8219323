/* One instruction, measured and copied: its copy does what it does. Lines `ok` and `FAIL`. */
#include "check.h"

#define PAGE 4096

/* Memory for data, at an address if there is one; what is executed and not written; a page that is gone. */
#ifdef _WIN32
static unsigned char *pages_at(PVOID address, int count)
{
	return (unsigned char *)VirtualAlloc(address, count * PAGE, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}

static int executable(PVOID code, DWORD size)
{
	return VirtualProtect(code, size, PAGE_EXECUTE_READ, &size);
}

static void without(PVOID page)
{
	VirtualFree(page, PAGE, MEM_DECOMMIT);
}
#else
#include <sys/mman.h>

static unsigned char *pages_at(PVOID address, int count)
{
	return mmap(address, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static int executable(PVOID code, DWORD size)
{
	return !mprotect(code, size, PROT_READ | PROT_EXEC);
}

static void without(PVOID page)
{
	munmap(page, PAGE);
}
#endif

static PVOID elsewhere = F(check);

/* What is measured: the bytes, their length, where they lead from `code` on, and how many bytes the copy has more. */
struct measured {
	const char *what;
	unsigned char code[16];
	int length;
	LONG_PTR leads;
	LONG extra;
};
#define NONE -1000
#define DYNAMIC -2000
#define SLOT -3000

/* The code below is the same on both systems, so its calls are. */
#if defined(__x86_64__)
#define CALLED __attribute__((sysv_abi))
#else
#define CALLED
#endif

/* How often somebody was called: the helper once, the other one a hundred times. */
__attribute__((used)) static int calls;
__attribute__((used, noinline)) CALLED static int helper(int) __asm__("helper");
CALLED static int helper(int value)
{
	calls++;
	return value * 2;
}
__attribute__((used, noinline)) CALLED static void counts(void)
{
	calls += 100;
}

#if defined(__x86_64__)
#include "instruction_x86_64.h"
#else
#include "instruction_x86.h"
#endif
extern const unsigned char subject[] __asm__("subject"), subject_end[] __asm__("subject_end");

static void measured(void)
{
	size_t i;

	for (i = 0; i < ARRAYSIZE(cases); i++) {
		/* Near the code, which is data here. */
		static unsigned char copy[40];
		unsigned char *code = cases[i].code;
		PVOID target = &i, wanted = code + cases[i].leads;
		LONG extra = 4242;

		if (cases[i].leads == NONE)
			wanted = DETOUR_INSTRUCTION_TARGET_NONE;
		if (cases[i].leads == DYNAMIC)
			wanted = DETOUR_INSTRUCTION_TARGET_DYNAMIC;
		if (cases[i].leads == SLOT) {
			memcpy(code + 8, &elsewhere, sizeof(elsewhere));
			names_slot(code, code + 8);
			wanted = elsewhere;
		}
		SetLastError(4242);
		check(DetourCopyInstruction(NULL, NULL, code, &target, &extra) == code + cases[i].length, cases[i].what);
		check(target == wanted, "where it leads");
		gives(extra, cases[i].extra, "how much longer its copy is");
		check(DetourCopyInstruction(NULL, NULL, code, NULL, NULL) == code + cases[i].length, "nobody asks");
		memset(copy, 0x5a, sizeof(copy));
		check(DetourCopyInstruction(copy + 1, NULL, code, &target, &extra) == code + cases[i].length && target == wanted,
		      "is copied");
		check(copy[0] == 0x5a && copy[1 + cases[i].length + cases[i].extra] == 0x5a, "no more than that is written");
		gives(GetLastError(), 4242, "which leaves the last error alone");
	}
}

static void executed(void)
{
	DWORD size = 0;
	unsigned char *copy = DetourAllocateRegionWithinJumpBounds(subject, &size), *to = copy;
	PBYTE from = (PBYTE)subject;
	int lines = 0, of_original, called;

	check(copy != NULL, "memory near it");
	while (from && from < subject_end) {
		LONG extra = 0;
		PBYTE next = DetourCopyInstruction(to, NULL, from, NULL, &extra);

		if (!next)
			break;
		to += next - from + extra;
		from = next;
		lines++;
	}
	check(from == subject_end && lines == LINES, "instruction by instruction");
	check(executable(copy, size), "which is executed and not written now");
	of_original = call(subject, 5);
	called = calls;
	calls = 0;
	check(call(copy, 5) == of_original && of_original == 31 && calls == called && called == 101, "the copy does the same");
	check(call(copy, 0) == 0 && call(subject, 0) == 0, "on every way");
	number = 8;
	check(call(copy, 5) == 0 && call(subject, 5) == 0, "with the same data");
	check(VirtualFree(copy, 0, MEM_RELEASE), "it goes");
}

static void what_goes_wrong(void)
{
	static unsigned char wrong[] = {0x0f, 0x04, 0x90};
	unsigned char copy[16];
	unsigned char *pages = pages_at(NULL, 2);
	PVOID target = &copy;
	LONG extra = 4242;

	check(!DetourCopyInstruction(NULL, NULL, NULL, &target, &extra), "nothing");
	leaves(ERROR_INVALID_DATA, "said so");
	check(target == DETOUR_INSTRUCTION_TARGET_NONE && !extra, "leads nowhere");
	check(!DetourCopyInstruction(NULL, NULL, (PVOID)16, NULL, NULL), "where nothing is mapped");
	leaves(ERROR_INVALID_ADDRESS, "said so");
	check(DetourCopyInstruction(copy, NULL, wrong, NULL, NULL) == wrong + 1 && copy[0] == 0x0f, "no instruction: one byte");
	leaves(ERROR_INVALID_DATA, "said so");

	without(pages + PAGE);
	pages[PAGE - 1] = 0xc3;
	check(DetourCopyInstruction(NULL, NULL, pages + PAGE - 1, NULL, NULL) == pages + PAGE, "the last byte that is mapped");
	pages[PAGE - 1] = 0xe9;
	check(DetourCopyInstruction(NULL, NULL, pages + PAGE - 1, NULL, NULL) == pages + PAGE, "half an instruction: one byte");
	leaves(ERROR_INVALID_DATA, "said so");

	without(pages);
}

#if defined(__x86_64__)
/* In 32-bit code a jump reaches everything. */
static void what_is_too_far(void)
{
	static unsigned char jump[] = {0xe9, 0, 0, 0, 0};
	PVOID target = NULL;
	LONG extra = 4242;
	unsigned char *far_away = pages_at((PVOID)(ULONG_PTR)0x200000000u, 1);

	check(!DetourCopyInstruction(far_away, NULL, jump, &target, &extra), "too far for a jump");
	leaves(ERROR_INVALID_DATA, "said so");
	check(target == jump + 5 && !extra && !far_away[0], "nothing is written, and it is known where it leads");
	jump[0] = 0x55;
	check(DetourCopyInstruction(far_away, NULL, jump, NULL, NULL) == jump + 1 && far_away[0] == 0x55,
	      "what does not depend on its address goes anywhere");
	without(far_away);
}
#endif

int main(void)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	measured();
	executed();
	what_goes_wrong();
#if defined(__x86_64__)
	what_is_too_far();
#endif
	return failed;
}
