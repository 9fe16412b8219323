/* Memory near code: where trampolines may not be, and regions for code of one's own. Lines `ok` and `FAIL`. */
#include "check.h"
#include <sys/mman.h>

__attribute__((noinline, noclone)) static int threefold(int number)
{
	__asm__ volatile("");
	return number * 3 + (number > 100 ? printf("large\n") : 0);
}
static int (*volatile call_threefold)(int) = threefold;
static int (*TrueThreefold)(int) = threefold;

static int MyThreefold(int number)
{
	return TrueThreefold(number) + 1;
}

#define LOWER ((PVOID)0x70000000ul)
#define UPPER ((PVOID)0x80000000ul)

/* Attaches, looks where the trampoline is, and detaches. */
static PVOID trampoline(void)
{
	PVOID place;

	DetourTransactionBegin();
	DetourAttach(P(TrueThreefold), F(MyThreefold));
	gives(DetourTransactionCommit(), NO_ERROR, "attach");
	check(call_threefold(2) == 7, "detoured");
	place = F(TrueThreefold);
	DetourTransactionBegin();
	DetourDetach(P(TrueThreefold), F(MyThreefold));
	gives(DetourTransactionCommit(), NO_ERROR, "detach");
	check(call_threefold(2) == 6, "as it was");
	return place;
}

static void trampolines_keep_out(void)
{
	PBYTE first, second, third;

	check(DetourSetSystemRegionLowerBound(LOWER) == LOWER, "where Windows has its libraries");
	check(DetourSetSystemRegionUpperBound(UPPER) == UPPER, "up to there");
	first = trampoline();
	check(first < AT(LOWER) || first > AT(UPPER), "none is there");
	check(trampoline() == first, "the same bounds, the same place");
	DetourSetSystemRegionLowerBound(first - 0x10000000);
	check(DetourSetSystemRegionUpperBound(first + 0x10000000) == UPPER, "around that place");
	second = trampoline();
	check(second < first - 0x10000000 || second > first + 0x10000000, "another one");
	check(trampoline() == second, "the same bounds, the same place");
	/* Both ends belong to it. */
	DetourSetSystemRegionLowerBound(second);
	DetourSetSystemRegionUpperBound(second);
	third = trampoline();
	check(third != second, "one address");
	check(DetourSetSystemRegionLowerBound(LOWER) == second && DetourSetSystemRegionUpperBound(UPPER) == second, "put back");
	/* The wrong way round: everywhere. */
	DetourSetSystemRegionLowerBound(UPPER);
	DetourSetSystemRegionUpperBound(LOWER);
	check(trampoline() != NULL, "none is kept out of");
	DetourSetSystemRegionLowerBound(LOWER);
	DetourSetSystemRegionUpperBound(UPPER);
}

static void nowhere(void)
{
	PVOID *failed_pointer = NULL;

	/* No room in reach at all. */
	DetourSetSystemRegionLowerBound(NULL);
	DetourSetSystemRegionUpperBound((PVOID)~0ul);
	DetourTransactionBegin();
	gives(DetourAttach(P(TrueThreefold), F(MyThreefold)), ERROR_NOT_ENOUGH_MEMORY, "no room for a trampoline");
	gives(DetourTransactionCommitEx(&failed_pointer), ERROR_NOT_ENOUGH_MEMORY, "commit");
	check(failed_pointer == P(TrueThreefold) && call_threefold(2) == 6, "nothing has happened");
	DetourSetSystemRegionLowerBound(LOWER);
	DetourSetSystemRegionUpperBound(UPPER);
}

/* mov eax, imm32; ret */
static void write_code(PBYTE place, int value)
{
	place[0] = 0xb8;
	memcpy(place + 1, &value, sizeof(value));
	place[5] = 0xc3;
}

static void code_of_ones_own(void)
{
	DWORD size = 4242;
	PBYTE region = DetourAllocateRegionWithinJumpBounds(F(threefold), &size), code;
	LONG_PTR distance = region - AT(F(threefold));
	PVOID passing, TruePassing, *failed_pointer = NULL;

	check(region && size == 0x10000, "64 KiB");
	check(distance < 0x7ff80000 && distance > -0x7ff80000, "a jump reaches them");
	check(!strcmp(mapped(region), "rw-p") && !strcmp(mapped(region + size - 1), "rw-p"), "to be written, not to be executed");
	check(region < AT(LOWER) || region > AT(UPPER), "not where Windows has its libraries");
	code = region + 16;
	write_code(code, 42);

	DetourTransactionBegin();
	gives(DetourAttach(P(TrueThreefold), code), NO_ERROR, "as a detour");
	gives(DetourTransactionAbort(), NO_ERROR, "no, not yet");
	check(!strcmp(mapped(region), "rw-p"), "still to be written");

	/* One that fails when it is carried out. */
	passing = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	write_code(passing, 1);
	mprotect(passing, 4096, PROT_READ | PROT_EXEC);
	TruePassing = passing;
	DetourTransactionBegin();
	gives(DetourAttach(P(TrueThreefold), code), NO_ERROR, "as a detour");
	gives(DetourAttach(P(TruePassing), F(MyThreefold)), NO_ERROR, "and a function");
	check(!munmap(passing, 4096), "that is unmapped");
	gives(DetourTransactionCommitEx(&failed_pointer), ERROR_INVALID_ADDRESS, "the commit fails");
	check(failed_pointer == &TruePassing && TruePassing == passing, "for that one");
	check(!strcmp(mapped(region), "rw-p") && call_threefold(2) == 6 && TrueThreefold == threefold, "all as it was");

	DetourTransactionBegin();
	DetourAttach(P(TrueThreefold), code);
	gives(DetourTransactionCommit(), NO_ERROR, "once");
	check(call_threefold(2) == 42 && TrueThreefold(2) == 6, "detoured");
	check(!strcmp(mapped(region), "r-xp"), "to be executed, not to be written");
	SetLastError(4242);
	check(!VirtualFree(region, 0, MEM_RELEASE), "not while it is attached");
	leaves(ERROR_BUSY, "said so");
	check(call_threefold(2) == 42, "it is still there");

	DetourTransactionBegin();
	DetourDetach(P(TrueThreefold), code);
	gives(DetourTransactionCommit(), NO_ERROR, "detach");
	check(!VirtualFree(region, size, MEM_RELEASE), "not a part of it");
	leaves(ERROR_INVALID_PARAMETER, "said so");
	check(!VirtualFree(code, 0, MEM_RELEASE), "not from its middle on");
	leaves(ERROR_INVALID_ADDRESS, "said so");
	check(VirtualFree(region, 0, MEM_RELEASE) && !strcmp(mapped(region), "none"), "gone");
	leaves(NO_ERROR, "is no error");
	check(!VirtualFree(region, 0, MEM_RELEASE), "twice is once too often");
	leaves(ERROR_INVALID_ADDRESS, "said so");
	check(call_threefold(2) == 6, "as it was");
}

static void again_after_it_was_opened(void)
{
	DWORD size = 0;
	PBYTE region = DetourAllocateRegionWithinJumpBounds(F(threefold), &size);

	write_code(region, 1);
	DetourTransactionBegin();
	DetourAttach(P(TrueThreefold), region);
	DetourTransactionCommit();
	check(call_threefold(2) == 1, "detoured");
	DetourTransactionBegin();
	DetourDetach(P(TrueThreefold), region);
	DetourTransactionCommit();
	check(!mprotect(region, size, PROT_READ | PROT_WRITE), "to be written again");
	write_code(region, 2);
	DetourTransactionBegin();
	DetourAttach(P(TrueThreefold), region);
	DetourTransactionCommit();
	check(call_threefold(2) == 2 && !strcmp(mapped(region), "r-xp"), "detoured by what is there now");
	DetourTransactionBegin();
	DetourDetach(P(TrueThreefold), region);
	DetourTransactionCommit();
	check(VirtualFree(region, 0, MEM_RELEASE), "gone");
}

static void what_goes_wrong(void)
{
	DWORD size = 4242;

	check(!DetourAllocateRegionWithinJumpBounds(NULL, &size) && !size, "near nothing");
	leaves(ERROR_INVALID_PARAMETER, "said so");
	check(!DetourAllocateRegionWithinJumpBounds(F(threefold), NULL), "nobody to be told how much");
	leaves(ERROR_INVALID_PARAMETER, "said so");
	size = 4242;
#if defined(__x86_64__)
	/* So high nothing may be mapped. In 32-bit code a jump reaches everything. */
	check(!DetourAllocateRegionWithinJumpBounds((PVOID)0xffff800000000000ul, &size) && !size, "out of reach");
	leaves(ERROR_NOT_ENOUGH_MEMORY, "said so");
#endif
	check(!VirtualFree(NULL, 0, MEM_RELEASE) && !VirtualFree(&size, 0, MEM_RELEASE), "no region");
}

int main(void)
{
	trampolines_keep_out();
	nowhere();
	code_of_ones_own();
	again_after_it_was_opened();
	what_goes_wrong();
	return failed;
}
