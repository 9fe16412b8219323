// As programs for Detours are written in C++, with their idioms. Exits with 0 if it holds.
#include <windows.h>
#include <detours.h>
#include <cstdio>
#include <cstdlib>

static int(*TrueAtoi)(const char *) = atoi;

int TimedAtoi(const char *text)
{
	return TrueAtoi(text) + 1;
}

static int(*volatile Call)(const char *) = atoi;

int main()
{
	DetourTransactionBegin();
	DetourUpdateThread(GetCurrentThread());
	DetourAttach(&(PVOID &)TrueAtoi, TimedAtoi);
	LONG error = DetourTransactionCommit();
	std::printf("attached: %d, atoi(\"41\") is %d\n", int(error), Call("41"));
	bool detoured = error == NO_ERROR && Call("41") == 42;

	DetourTransactionBegin();
	DetourUpdateThread(GetCurrentThread());
	DetourDetach(&(PVOID &)TrueAtoi, TimedAtoi);
	error = DetourTransactionCommit();
	std::printf("detached: %d, atoi(\"41\") is %d\n", int(error), Call("41"));
	return detoured && error == NO_ERROR && Call("41") == 41 ? 0 : 1;
}
