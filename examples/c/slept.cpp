// How long a program sleeps: a library for `kdetour run`, written as hooks for Microsoft Detours are. C++.
// c++ -shared -fPIC -o slept.so slept.cpp $(pkg-config --cflags --libs kdetour-detours); kdetour run --with ./slept.so -- sleep 0.1
#include <windows.h>
#include <detours.h>
#include <stdio.h>
#include <time.h>

static LONG dwCalls = 0;
static LONGLONG llSlept = 0;
// Programs such as sleep close theirs before they end.
static int nOut = -1;
static int(WINAPI *TrueNanosleep)(const struct timespec *pRequest, struct timespec *pRemaining) = nanosleep;

static LONGLONG Now()
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * LONGLONG(1000000) + now.tv_nsec / 1000;
}

static int WINAPI TimedNanosleep(const struct timespec *pRequest, struct timespec *pRemaining)
{
	LONGLONG llBegin = Now();
	int nResult = TrueNanosleep(pRequest, pRemaining);

	InterlockedIncrement(&dwCalls);
	InterlockedExchangeAdd(&llSlept, Now() - llBegin);
	return nResult;
}

// Says of which file the program has it.
static BOOL CALLBACK OnFile(PVOID pContext, HMODULE, LPCSTR pszFile)
{
	*static_cast<LPCSTR *>(pContext) = pszFile;
	return TRUE;
}

static BOOL CALLBACK OnFunction(PVOID pContext, DWORD, LPCSTR pszFunction, PVOID pvFunction)
{
	if (pszFunction && pvFunction == (PVOID)TrueNanosleep)
		dprintf(nOut, "slept: the program imports %s of %s\n", pszFunction, *static_cast<LPCSTR *>(pContext));
	return TRUE;
}

BOOL WINAPI DllMain(HINSTANCE, DWORD dwReason, LPVOID)
{
	LONG error;

	if (dwReason == DLL_PROCESS_ATTACH) {
		LPCSTR pszFile = NULL;

		nOut = dup(STDERR_FILENO);
		DetourEnumerateImports(NULL, &pszFile, OnFile, OnFunction);
		DetourTransactionBegin();
		DetourUpdateThread(GetCurrentThread());
		DetourAttach(&(PVOID &)TrueNanosleep, TimedNanosleep);
		error = DetourTransactionCommit();
		dprintf(nOut, "slept: attached (%d)\n", error);
	} else if (dwReason == DLL_PROCESS_DETACH) {
		DetourTransactionBegin();
		DetourUpdateThread(GetCurrentThread());
		DetourDetach(&(PVOID &)TrueNanosleep, TimedNanosleep);
		error = DetourTransactionCommit();
		dprintf(nOut, "slept: detached (%d), %d calls slept %ld microseconds\n", error, dwCalls, long(llSlept));
	}
	return TRUE;
}

// What is new here: nobody calls DllMain.
__attribute__((constructor)) static void Attached()
{
	DllMain(DetourGetContainingModule(Attached), DLL_PROCESS_ATTACH, NULL);
}

__attribute__((destructor)) static void Detached()
{
	DllMain(DetourGetContainingModule(Detached), DLL_PROCESS_DETACH, NULL);
}
