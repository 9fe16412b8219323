/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * windows.h - the few types and calls of Windows that hooking code for Detours uses, for programs on Linux.
 *
 * Found by #include <windows.h> with the flags of `pkg-config kdetour-detours`. LONG, ULONG, DWORD and BOOL have 32 bits, as there.
 * WINAPI and CALLBACK say nothing: functions on Linux are called as C calls them, in 32-bit code too.
 * Wide characters, structured exceptions and what lies below CreateProcess are not here.
 */
#ifndef KDETOUR_WINDOWS_H
#define KDETOUR_WINDOWS_H

#include <dlfcn.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <unistd.h>

#define VOID void
#define CONST const
#define WINAPI
#define CALLBACK
#define APIENTRY
#define NTAPI
#define TRUE 1
#define FALSE 0

typedef void *PVOID, *LPVOID, *HANDLE, *HMODULE, *HINSTANCE;
typedef const void *LPCVOID;
typedef int BOOL, INT, LONG, *PLONG;
typedef unsigned int UINT, ULONG, *PULONG, DWORD, *PDWORD, *LPDWORD;
typedef short SHORT;
typedef unsigned short USHORT, WORD;
typedef unsigned char BYTE, *PBYTE, *LPBYTE, BOOLEAN;
typedef char CHAR, *PCHAR, *PSTR, *LPSTR;
typedef const char *PCSTR, *LPCSTR;
typedef int64_t LONGLONG;
typedef uint64_t ULONGLONG, DWORD64;
typedef size_t SIZE_T;
typedef intptr_t INT_PTR, LONG_PTR;
typedef uintptr_t UINT_PTR, ULONG_PTR, DWORD_PTR;
typedef INT_PTR(WINAPI *FARPROC)(VOID);

#ifndef ARRAYSIZE
#define ARRAYSIZE(array) (sizeof(array) / sizeof((array)[0]))
#endif
#define UNREFERENCED_PARAMETER(parameter) ((void)(parameter))
#define MAX_PATH 260
#define INFINITE 0xffffffffu
#define MEM_RELEASE 0x8000

#define DLL_PROCESS_DETACH 0
#define DLL_PROCESS_ATTACH 1
#define DLL_THREAD_ATTACH 2
#define DLL_THREAD_DETACH 3

#define NO_ERROR 0
#define ERROR_SUCCESS 0
#define ERROR_ACCESS_DENIED 5
#define ERROR_INVALID_HANDLE 6
#define ERROR_NOT_ENOUGH_MEMORY 8
#define ERROR_INVALID_BLOCK 9
#define ERROR_INVALID_DATA 13
#define ERROR_GEN_FAILURE 31
#define ERROR_NOT_SUPPORTED 50
#define ERROR_INVALID_PARAMETER 87
#define ERROR_INSUFFICIENT_BUFFER 122
#define ERROR_MOD_NOT_FOUND 126
#define ERROR_PROC_NOT_FOUND 127
#define ERROR_BUSY 170
#define ERROR_ALREADY_EXISTS 183
#define ERROR_INVALID_EXE_SIGNATURE 191
#define ERROR_EXE_MARKED_INVALID 192
#define ERROR_BAD_EXE_FORMAT 193
#define ERROR_INVALID_ADDRESS 487
#define ERROR_POSSIBLE_DEADLOCK 1131
#define ERROR_TIMEOUT 1460
#define ERROR_INVALID_OPERATION 4317

#ifdef __cplusplus
extern "C" {
#endif

unsigned int kdetour_get_last_error(void);
void kdetour_set_last_error(unsigned int number);
unsigned int kdetour_thread(void);
HMODULE kdetour_module_called(LPCSTR name);
HMODULE kdetour_load_module(LPCSTR name);
BOOL kdetour_free_module(HMODULE module);
FARPROC kdetour_procedure(HMODULE module, LPCSTR name);
DWORD kdetour_module_path(HMODULE module, LPSTR path, DWORD size);
BOOL kdetour_virtual_free(LPVOID address, SIZE_T size, DWORD kind);

/* Functions, so that they can be detoured like any other of the program's. */
static __inline__ VOID WINAPI Sleep(DWORD milliseconds)
{
	/* INFINITE, and what is more than 24 days, is negative there, and means for ever. */
	poll(NULL, 0, (int)milliseconds);
}

static __inline__ BOOL WINAPI FlushInstructionCache(HANDLE process, LPCVOID start, SIZE_T size)
{
	/* This processor sees to it by itself. */
	(void)process, (void)start, (void)size;
	return TRUE;
}

#ifdef __cplusplus
}
#endif

#define GetLastError() kdetour_get_last_error()
#define SetLastError(number) kdetour_set_last_error(number)
#define GetCurrentThread() ((HANDLE)(LONG_PTR)-2)
#define GetCurrentThreadId() ((DWORD)kdetour_thread())
#define GetCurrentProcess() ((HANDLE)(LONG_PTR)-1)
#define GetCurrentProcessId() ((DWORD)getpid())

/* A module is the address of its ELF header, and no handle of dlopen's. */
#define GetModuleHandleA kdetour_module_called
#define GetModuleHandle kdetour_module_called
#define LoadLibraryA kdetour_load_module
#define LoadLibrary kdetour_load_module
#define FreeLibrary kdetour_free_module
#define GetProcAddress kdetour_procedure
#define GetModuleFileNameA kdetour_module_path
#define GetModuleFileName kdetour_module_path
/* Of what DetourAllocateRegionWithinJumpBounds has given. */
#define VirtualFree kdetour_virtual_free

#define InterlockedIncrement(place) __atomic_add_fetch(place, 1, __ATOMIC_SEQ_CST)
#define InterlockedDecrement(place) __atomic_sub_fetch(place, 1, __ATOMIC_SEQ_CST)
#define InterlockedExchange(place, value) __atomic_exchange_n(place, value, __ATOMIC_SEQ_CST)
#define InterlockedExchangeAdd(place, value) __atomic_fetch_add(place, value, __ATOMIC_SEQ_CST)
#define InterlockedCompareExchange(place, value, expected) __sync_val_compare_and_swap(place, expected, value)
#define ZeroMemory(place, size) ((void)__builtin_memset(place, 0, size))
#define CopyMemory(to, from, size) ((void)__builtin_memcpy(to, from, size))

#endif
