// What a program writes, traced by itself: as programs for Detours are written in C++. Lines `ok` and `FAIL`.
#include <windows.h>
#include <detours.h>
#include <cstdio>
#include <cstring>
#include <cwchar>

static HANDLE(WINAPI *TrueCreateFileW)(LPCWSTR, DWORD, DWORD, LPSECURITY_ATTRIBUTES, DWORD, DWORD, HANDLE) = CreateFileW;
static BOOL(WINAPI *TrueWriteFile)(HANDLE, LPCVOID, DWORD, LPDWORD, LPOVERLAPPED) = WriteFile;

static int nFailed, nOpened;
static WCHAR wzLast[MAX_PATH];
static DWORD cbWritten;
static HANDLE hTraced;

static void Check(bool bHolds, const char *pszWhat)
{
	std::printf("%s %s\n", bHolds ? "ok" : "FAIL", pszWhat);
	nFailed |= !bHolds;
}

HANDLE WINAPI TracedCreateFileW(LPCWSTR lpFileName, DWORD dwAccess, DWORD dwShare, LPSECURITY_ATTRIBUTES lpSecurity, DWORD dwHow,
				DWORD dwFlags, HANDLE hTemplate)
{
	HANDLE hFile = TrueCreateFileW(lpFileName, dwAccess, dwShare, lpSecurity, dwHow, dwFlags, hTemplate);
	DWORD dwError = GetLastError();

	std::wcsncpy(wzLast, lpFileName, MAX_PATH - 1);
	nOpened++;
	hTraced = hFile;
	SetLastError(dwError);
	return hFile;
}

BOOL WINAPI TracedWriteFile(HANDLE hFile, LPCVOID lpBuffer, DWORD cb, LPDWORD lpWritten, LPOVERLAPPED lpOverlapped)
{
	if (hFile == hTraced)
		cbWritten += cb;
	return TrueWriteFile(hFile, lpBuffer, cb, lpWritten, lpOverlapped);
}

static LONG Attach()
{
	DetourTransactionBegin();
	DetourUpdateThread(GetCurrentThread());
	DetourAttach(&(PVOID &)TrueCreateFileW, TracedCreateFileW);
	DetourAttach(&(PVOID &)TrueWriteFile, TracedWriteFile);
	return DetourTransactionCommit();
}

static LONG Detach()
{
	DetourTransactionBegin();
	DetourUpdateThread(GetCurrentThread());
	DetourDetach(&(PVOID &)TrueCreateFileW, TracedCreateFileW);
	DetourDetach(&(PVOID &)TrueWriteFile, TracedWriteFile);
	return DetourTransactionCommit();
}

// Writes a line by whatever C++ has for that.
static void Write(const char *pszPath, const char *pszLine)
{
	HANDLE hFile = CreateFileA(pszPath, GENERIC_WRITE, 0, NULL, CREATE_ALWAYS, FILE_ATTRIBUTE_NORMAL, NULL);
	DWORD cb = 0;

	Check(hFile != INVALID_HANDLE_VALUE && WriteFile(hFile, pszLine, DWORD(std::strlen(pszLine)), &cb, NULL), "written");
	CloseHandle(hFile);
}

int main()
{
	std::setvbuf(stdout, NULL, _IONBF, 0);
	HANDLE(WINAPI *pfnBefore)(LPCWSTR, DWORD, DWORD, LPSECURITY_ATTRIBUTES, DWORD, DWORD, HANDLE) = TrueCreateFileW;

	for (int i = 1; i <= 3; i++) {
		Check(Attach() == NO_ERROR, "attached");
		Check(CreateFileW(L"traced.tmp", GENERIC_WRITE, 0, NULL, CREATE_ALWAYS, FILE_FLAG_DELETE_ON_CLOSE, NULL) == hTraced &&
			      std::wcscmp(wzLast, L"traced.tmp") == 0,
		      "its own call is seen");
		DWORD cb = 0, cbBefore = cbWritten;
		Check(WriteFile(hTraced, "12345", 5, &cb, NULL) && cb == 5 && cbWritten == cbBefore + 5, "and what it writes");
		CloseHandle(hTraced);
		SetLastError(0);
		Check(CreateFileW(L"no/such/place", GENERIC_READ, 0, NULL, OPEN_EXISTING, 0, NULL) == INVALID_HANDLE_VALUE &&
			      (GetLastError() == ERROR_PATH_NOT_FOUND || GetLastError() == ERROR_FILE_NOT_FOUND),
		      "what fails fails as before");
		Check(nOpened == 2 * i, "two calls");
		Check(Detach() == NO_ERROR, "detached");
		cbBefore = cbWritten;
		Write("traced.tmp", "123");
		DeleteFileA("traced.tmp");
		Check(nOpened == 2 * i && cbWritten == cbBefore, "nothing is seen any more");
	}
	Check(DetourCodeFromPointer((PVOID)pfnBefore, NULL) == (PVOID)TrueCreateFileW, "the pointer leads to the function itself");
	return nFailed;
}
