/*
 * A program that loads the DLL slept.dll (its argument), sleeps, and unloads it, again and again, while other threads sleep through the same
 * functions. Lines `ok` and `FAIL`.
 */
#include <windows.h>
#include <stdio.h>

static int failed;
static volatile LONG stop, rounds, sleepers;

static void check(int holds, const char *what)
{
	printf("%s %s\n", holds ? "ok" : "FAIL", what);
	failed |= !holds;
}

static DWORD WINAPI sleeps(LPVOID nothing)
{
	while (!stop) {
		if (nothing)
			SleepEx(1, FALSE);
		else
			Sleep(1);
		InterlockedIncrement(&rounds);
	}
	return 0;
}

/* The symbols of a DLL that are of another type than a function's. */
static FARPROC of(HMODULE dll, const char *name)
{
	FARPROC found = GetProcAddress(dll, name);

	check(found != NULL, name);
	return found;
}

static void once(const char *path)
{
	LONG (WINAPI *slept)(LONG *);
	LONG calls = 0, before, detached = -1, time;
	HMODULE dll = LoadLibraryA(path);

	check(dll != NULL, "loaded");
	if (!dll)
		return;
	check(*(LONG *)(void *)of(dll, "dwAttached") == NO_ERROR, "attached from DllMain");
	*(LONG **)(void *)of(dll, "pdwDetached") = &detached;
	slept = (LONG (WINAPI *)(LONG *))(void *)of(dll, "GetSlept");
	slept(&before);
	Sleep(30);
	SleepEx(30, FALSE);
	time = slept(&calls);
	check(calls >= before + 2 && time >= 50, "what was slept is counted");
	check(FreeLibrary(dll) && detached == NO_ERROR, "detached from DllMain");
	check(GetModuleHandleA("slept.dll") == NULL, "unloaded");
	before = rounds;
	Sleep(30);
	check(rounds > before || !sleepers, "everybody sleeps as before");
}

int main(int count, char **arguments)
{
	HANDLE threads[4];
	int i;

	setvbuf(stdout, NULL, _IONBF, 0);
	if (count < 2)
		return 2;
	once(arguments[1]);
	sleepers = 4;
	for (i = 0; i < 4; i++)
		threads[i] = CreateThread(NULL, 0, sleeps, i % 2 ? (LPVOID)threads : NULL, 0, NULL);
	for (i = 0; i < 5; i++)
		once(arguments[1]);
	stop = 1;
	check(WaitForMultipleObjects(4, threads, TRUE, 5000) < 4, "all threads end");
	return failed;
}
