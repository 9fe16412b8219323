/*
 * How long a program sleeps: a DLL as hooks for Microsoft Detours are written, in C. It attaches when it is loaded and detaches when it is
 * unloaded.
 */
#include <windows.h>
#include <detours.h>

static LONG dwSlept = 0, dwCalls = 0;
static VOID (WINAPI *TrueSleep)(DWORD dwMilliseconds);
static DWORD (WINAPI *TrueSleepEx)(DWORD dwMilliseconds, BOOL bAlertable);

/* In milliseconds, whatever the system's clock tick is. */
static LONGLONG Now(VOID)
{
	LARGE_INTEGER now, second;

	QueryPerformanceCounter(&now);
	QueryPerformanceFrequency(&second);
	return now.QuadPart * 1000 / second.QuadPart;
}

static VOID Count(LONGLONG llBegin)
{
	InterlockedExchangeAdd(&dwSlept, (LONG)(Now() - llBegin));
	InterlockedIncrement(&dwCalls);
}

VOID WINAPI TimedSleep(DWORD dwMilliseconds)
{
	LONGLONG llBegin = Now();

	TrueSleep(dwMilliseconds);
	Count(llBegin);
}

DWORD WINAPI TimedSleepEx(DWORD dwMilliseconds, BOOL bAlertable)
{
	LONGLONG llBegin = Now();
	DWORD dwResult = TrueSleepEx(dwMilliseconds, bAlertable);

	Count(llBegin);
	return dwResult;
}

__declspec(dllexport) LONG WINAPI GetSlept(LONG *pdwCalls)
{
	*pdwCalls = dwCalls;
	return dwSlept;
}

/* What the attach gave, and the detach. */
__declspec(dllexport) LONG dwAttached = -1;
__declspec(dllexport) LONG *pdwDetached = NULL;

BOOL WINAPI DllMain(HINSTANCE hInstance, DWORD dwReason, LPVOID lpReserved)
{
	LONG error;

	(void)hInstance;
	(void)lpReserved;
	if (DetourIsHelperProcess())
		return TRUE;
	if (dwReason == DLL_PROCESS_ATTACH) {
		DetourRestoreAfterWith();
		TrueSleep = Sleep;
		TrueSleepEx = SleepEx;
		DetourTransactionBegin();
		DetourUpdateThread(GetCurrentThread());
		DetourAttach((PVOID *)&TrueSleep, (PVOID)TimedSleep);
		DetourAttach((PVOID *)&TrueSleepEx, (PVOID)TimedSleepEx);
		dwAttached = DetourTransactionCommit();
	} else if (dwReason == DLL_PROCESS_DETACH) {
		DetourTransactionBegin();
		DetourUpdateThread(GetCurrentThread());
		DetourDetach((PVOID *)&TrueSleep, (PVOID)TimedSleep);
		DetourDetach((PVOID *)&TrueSleepEx, (PVOID)TimedSleepEx);
		error = DetourTransactionCommit();
		if (pdwDetached)
			*pdwDetached = error;
	}
	return TRUE;
}
