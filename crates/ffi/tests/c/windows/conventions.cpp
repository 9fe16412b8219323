// How functions of Windows are called: a detour has its target's convention, and the stack is the caller's again. In 64-bit programs all of them
// are one. Lines `ok` and `FAIL`.
#include <windows.h>
#include <detours.h>
#include <kdetour.h>
#include <cstdio>
#include <cstring>

static int nFailed;

static void Check(bool bHolds, const char *pszWhat)
{
	std::printf("%s %s\n", bHolds ? "ok" : "FAIL", pszWhat);
	nFailed |= !bHolds;
}

// Each target gives its arguments back as one number; each detour changes the first and the last one, and marks the result.
#define TARGET(name, convention)                                                                                       \
	__attribute__((noinline, noclone)) static int convention Target##name(int a, int b, int c, int d)              \
	{                                                                                                              \
		__asm__ volatile("");                                                                                  \
		return a * 1000 + b * 100 + c * 10 + d;                                                                \
	}                                                                                                              \
	KDETOUR(Target##name, int convention, (int a, int b, int c, int d), (a, b, c, d))                              \
	{                                                                                                              \
		return Target##name##_original(a + 1, b, c, d + 1) + 10000;                                            \
	}                                                                                                              \
	static int(convention *True##name)(int, int, int, int) = Target##name;                                         \
	static int(convention *volatile Call##name)(int, int, int, int) = Target##name;                                \
	static int convention My##name(int a, int b, int c, int d)                                                     \
	{                                                                                                              \
		return True##name(a + 1, b, c, d + 1) + 10000;                                                         \
	}

TARGET(Cdecl, __cdecl)
TARGET(Stdcall, __stdcall)
TARGET(Fastcall, __fastcall)
#if defined(__i386__)
TARGET(Thiscall, __thiscall)
#endif

#if defined(__i386__)
// Calls with 1, 2, 3, 4 on the stack, and 7 and 8 in ECX and EDX. By how many bytes the stack is shorter then.
static LONG Popped(PVOID pCode, int *pResult)
{
	LONG cb, nResult;

	__asm__ volatile("mov %%esp, %%edi\n\t"
			 "push $4\n\t"
			 "push $3\n\t"
			 "push $2\n\t"
			 "push $1\n\t"
			 "mov %%esp, %%esi\n\t"
			 "mov $7, %%ecx\n\t"
			 "mov $8, %%edx\n\t"
			 "call *%%ebx\n\t"
			 "mov %%esp, %%edx\n\t"
			 "sub %%esi, %%edx\n\t"
			 "mov %%edi, %%esp\n\t"
			 : "=a"(nResult), "=d"(cb)
			 : "b"(pCode)
			 : "ecx", "esi", "edi", "memory", "cc");
	*pResult = nResult;
	return cb;
}

static void Pops(PVOID pCode, LONG cb, int nWanted, const char *pszWhat)
{
	int nResult = 0;
	LONG cbPopped = Popped(pCode, &nResult);

	if (cbPopped != cb || nResult != nWanted)
		std::printf("%d bytes, and %d, in place of %d, and %d\n", int(cbPopped), nResult, int(cb), nWanted);
	Check(cbPopped == cb && nResult == nWanted, pszWhat);
}
#define POPS(name, cb, nResult, what) Pops((PVOID)Target##name, cb, nResult, what)
#else
#define POPS(name, cb, nResult, what)
#endif

// By kdetour.h, then by detours.h; the numbers are those of a plain call, and of one with 1, 2, 3, 4 on the stack, and 7 and 8 in registers.
#define EACH(name, cb, nPlain, nDetoured)                                                                              \
	do {                                                                                                           \
		std::printf("%s\n", #name);                                                                            \
		POPS(name, cb, nPlain, "the target");                                                                  \
		Target##name##_detour.symbol = NULL;                                                                   \
		Target##name##_detour.target = (void *)Target##name;                                                   \
		Check(kdetour_attach(&Target##name##_detour) == 0, "attached");                                        \
		Check(Call##name(1, 2, 3, 4) == 12235, "called, and the original");                                    \
		POPS(name, cb, nDetoured, "with the same stack");                                                      \
		Check(kdetour_detach(&Target##name##_detour) == 0, "detached");                                        \
		Check(Call##name(1, 2, 3, 4) == 1234, "as it was");                                                    \
		POPS(name, cb, nPlain, "the stack, too");                                                              \
		DetourTransactionBegin();                                                                              \
		DetourAttach(&True##name, My##name);                                                                   \
		Check(DetourTransactionCommit() == NO_ERROR, "attached by Detours' calls");                            \
		Check(Call##name(1, 2, 3, 4) == 12235, "called, and the original");                                    \
		POPS(name, cb, nDetoured, "with the same stack");                                                      \
		DetourTransactionBegin();                                                                              \
		DetourDetach(&True##name, My##name);                                                                   \
		Check(DetourTransactionCommit() == NO_ERROR, "detached");                                              \
		Check(Call##name(1, 2, 3, 4) == 1234, "as it was");                                                    \
	} while (0)

// A method is called as the compiler for Windows calls it: `thiscall` in 32-bit code, whose first argument is the object.
struct Counter {
	int nCount;
	int Add(int n);
};

__attribute__((noinline, noclone)) int Counter::Add(int n)
{
	__asm__ volatile("");
	return nCount += n;
}

#if defined(__i386__)
#define METHOD __thiscall
#else
#define METHOD
#endif
static int(METHOD *TrueAdd)(Counter *, int);

static int METHOD TwiceAdd(Counter *pCounter, int n)
{
	return TrueAdd(pCounter, 2 * n);
}

static void Methods()
{
	Counter counter = {1};
	int (Counter::*volatile pfnAdd)(int) = &Counter::Add;
	int (Counter::*pfn)(int) = pfnAdd;

	// What such a pointer begins with is where the code is.
	static_assert(sizeof(pfn) >= sizeof(TrueAdd), "a pointer to a method");
	std::memcpy(&TrueAdd, &pfn, sizeof(TrueAdd));
	DetourTransactionBegin();
	DetourAttach(&TrueAdd, TwiceAdd);
	Check(DetourTransactionCommit() == NO_ERROR, "a method");
	Check((counter.*pfnAdd)(3) == 7 && counter.nCount == 7, "is called twofold");
	DetourTransactionBegin();
	DetourDetach(&TrueAdd, TwiceAdd);
	Check(DetourTransactionCommit() == NO_ERROR, "detached");
	Check((counter.*pfnAdd)(3) == 10 && counter.nCount == 10, "as it was");
}

// Functions of the system, as kdetour.h says that they are to be declared.
KDETOUR(GetTickCount, DWORD WINAPI, (void), ())
{
	return GetTickCount_original() | 1;
}
static DWORD cbSlept;
KDETOUR(Sleep, void WINAPI, (DWORD dwMilliseconds), (dwMilliseconds))
{
	cbSlept += dwMilliseconds;
	Sleep_original(dwMilliseconds);
}

static void OfTheSystem()
{
	struct kdetour *both[] = {&GetTickCount_detour, &Sleep_detour};

	Check(kdetour_attach_all(both, 2, KDETOUR_EXCHANGE, NULL) == 0, "two functions of the system");
	bool bOdd = true;
	for (int i = 0; i < 1000; i++) {
		Sleep(0);
		bOdd &= GetTickCount() & 1;
	}
	Check(bOdd, "odd numbers only");
	Sleep(3);
	Check(cbSlept == 3, "what was slept");
	Check(kdetour_detach_all(both, 2, KDETOUR_EXCHANGE, KDETOUR_FOR_EVER, NULL) == 0, "detached");
	Sleep(3);
	Check(cbSlept == 3, "as it was");
}

int main()
{
	std::setvbuf(stdout, NULL, _IONBF, 0);
	EACH(Cdecl, 0, 1234, 12235);
	EACH(Stdcall, 16, 1234, 12235);
	EACH(Fastcall, 8, 7812, 18813);
#if defined(__i386__)
	EACH(Thiscall, 12, 7123, 18124);
#endif
	Methods();
	OfTheSystem();
	return nFailed;
}
