/* Memory near code, on Windows: where trampolines may not be, and regions for code of one's own. Lines `ok` and `FAIL`. */
#include "../detours/check.h"

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

#define LOWER ((PVOID)(ULONG_PTR)0x70000000)
#define UPPER ((PVOID)(ULONG_PTR)0x80000000)

static LONG attach(PVOID detour)
{
	DetourTransactionBegin();
	DetourAttach(P(TrueThreefold), detour);
	return DetourTransactionCommit();
}

static LONG detach(PVOID detour)
{
	DetourTransactionBegin();
	DetourDetach(P(TrueThreefold), detour);
	return DetourTransactionCommit();
}

/* Attaches, looks where the trampoline is, and detaches. */
static PBYTE trampoline(void)
{
	PBYTE place;

	gives(attach(F(MyThreefold)), NO_ERROR, "attach");
	check(call_threefold(2) == 7, "detoured");
	place = AT(TrueThreefold);
	gives(detach(F(MyThreefold)), NO_ERROR, "detach");
	check(call_threefold(2) == 6, "as it was");
	return place;
}

static DWORD protection(PVOID place)
{
	MEMORY_BASIC_INFORMATION found;

	return VirtualQuery(place, &found, sizeof(found)) && found.State == MEM_COMMIT ? found.Protect : 0;
}

static void trampolines_keep_out(void)
{
	PBYTE first, second;

	check(DetourSetSystemRegionLowerBound(LOWER) == LOWER, "where Windows has its libraries");
	check(DetourSetSystemRegionUpperBound(UPPER) == UPPER, "up to there");
	first = trampoline();
	check(first < AT(LOWER) || first > AT(UPPER), "none is there");
	check(trampoline() == first, "the same bounds, the same place");
	DetourSetSystemRegionLowerBound(first - 0x10000000);
	DetourSetSystemRegionUpperBound(first + 0x10000000);
	second = trampoline();
	check(second < first - 0x10000000 || second > first + 0x10000000, "another one");
	DetourSetSystemRegionLowerBound(NULL);
	DetourSetSystemRegionUpperBound((PVOID)~(ULONG_PTR)0);
	gives(attach(F(MyThreefold)), ERROR_NOT_ENOUGH_MEMORY, "no room at all");
	check(call_threefold(2) == 6 && TrueThreefold == threefold, "nothing has happened");
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
	DWORD size = 4242, old;
	PBYTE region = (PBYTE)DetourAllocateRegionWithinJumpBounds(F(threefold), &size);
	LONG_PTR distance = region - AT(F(threefold));

	check(region && size == 0x10000, "64 KiB");
	check(distance < 0x7ff80000 && distance > -0x7ff80000, "a jump reaches them");
	check(protection(region) == PAGE_READWRITE, "to be written, not to be executed");
	write_code(region + 16, 42);
	gives(attach(region + 16), NO_ERROR, "attach");
	check(protection(region) == PAGE_EXECUTE_READ && protection(region + size - 1) == PAGE_EXECUTE_READ, "the other way round");
	check(call_threefold(2) == 42 && TrueThreefold(2) == 6, "its code is called");
	gives(detach(region + 16), NO_ERROR, "detach");
	check(call_threefold(2) == 6, "as it was");
	check(VirtualProtect(region, size, PAGE_READWRITE, &old), "opened again");
	write_code(region + 16, 43);
	gives(attach(region + 16), NO_ERROR, "attach");
	check(call_threefold(2) == 43, "what is there now");
	gives(detach(region + 16), NO_ERROR, "detach");
	check(VirtualFree(region, 0, MEM_RELEASE), "it goes");
	gives(attach(region + 16), ERROR_INVALID_ADDRESS, "and is no detour any more");
	check(call_threefold(2) == 6, "as it was");
	check(!DetourAllocateRegionWithinJumpBounds(F(threefold), NULL), "nobody to be told the size");
	size = 4242;
	check(!DetourAllocateRegionWithinJumpBounds(NULL, &size) && !size, "near nothing");
	leaves(ERROR_INVALID_PARAMETER, "said so");
}

int main(void)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	trampolines_keep_out();
	code_of_ones_own();
	return failed;
}
