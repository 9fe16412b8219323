/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * detours.h - the calls of Microsoft Detours 4 for hooking, by the same names and with the same meaning, for programs on Windows and on
 * Linux.
 *
 * A program's hooking code ports by being compiled again:
 *
 *	cc hooks.c $(pkg-config --cflags --libs kdetour-detours)
 *
 * On Windows <windows.h> is the compiler's own; on Linux there is a small one beside this file.
 *
 * Behind them is kdetour: no thread has to be named, none is stopped, and none is ever resumed in the middle of a jump. docs/detours.md
 * tells what differs, function by function, and what is not offered.
 */
#ifndef _DETOURS_H_
#define _DETOURS_H_

#include <windows.h>

#define DETOURS_VERSION 0x4c0c1

#if defined(__x86_64__)
#define DETOURS_X64
#define DETOURS_64BIT 1
#define DETOURS_BITS 64
#define DETOURS_OPTION_BITS 32
#elif defined(__i386__)
#define DETOURS_X86
#define DETOURS_32BIT 1
#define DETOURS_BITS 32
#define DETOURS_OPTION_BITS 64
#else
#error "detours.h is for x86-64 and x86-32"
#endif
#define DETOURS_STRINGIFY_(x) #x
#define DETOURS_STRINGIFY(x) DETOURS_STRINGIFY_(x)
#define VER_DETOURS_BITS DETOURS_STRINGIFY(DETOURS_BITS)

#ifdef __cplusplus
extern "C" {
#endif

typedef struct _DETOUR_TRAMPOLINE DETOUR_TRAMPOLINE, *PDETOUR_TRAMPOLINE;

/* What DetourCopyInstruction says of where an instruction leads: nowhere else; that is not known before it is executed. */
#define DETOUR_INSTRUCTION_TARGET_NONE ((PVOID)0)
#define DETOUR_INSTRUCTION_TARGET_DYNAMIC ((PVOID)(LONG_PTR)-1)

/* They answer TRUE to go on, FALSE to stop. */
typedef BOOL(CALLBACK *PF_DETOUR_ENUMERATE_EXPORT_CALLBACK)(PVOID pContext, ULONG nOrdinal, LPCSTR pszName, PVOID pCode);
typedef BOOL(CALLBACK *PF_DETOUR_IMPORT_FILE_CALLBACK)(PVOID pContext, HMODULE hModule, LPCSTR pszFile);
typedef BOOL(CALLBACK *PF_DETOUR_IMPORT_FUNC_CALLBACK)(PVOID pContext, DWORD nOrdinal, LPCSTR pszFunc, PVOID pvFunc);
typedef BOOL(CALLBACK *PF_DETOUR_IMPORT_FUNC_CALLBACK_EX)(PVOID pContext, DWORD nOrdinal, LPCSTR pszFunc, PVOID *ppvFunc);

/* What mingw has only if it is asked for, and programs for Detours expect of this header. */
#ifndef ARRAYSIZE
#define ARRAYSIZE(array) (sizeof(array) / sizeof((array)[0]))
#endif

/* Transactions. Their results are error numbers; they leave GetLastError() alone. */

LONG WINAPI DetourTransactionBegin(VOID);
LONG WINAPI DetourTransactionAbort(VOID);
LONG WINAPI DetourTransactionCommit(VOID);
LONG WINAPI DetourTransactionCommitEx(PVOID **pppFailedPointer);
LONG WINAPI DetourUpdateThread(HANDLE hThread);
LONG WINAPI DetourAttach(PVOID *ppPointer, PVOID pDetour);
LONG WINAPI DetourAttachEx(PVOID *ppPointer, PVOID pDetour, PDETOUR_TRAMPOLINE *ppRealTrampoline, PVOID *ppRealTarget,
			   PVOID *ppRealDetour);
LONG WINAPI DetourDetach(PVOID *ppPointer, PVOID pDetour);
BOOL WINAPI DetourSetIgnoreTooSmall(BOOL fIgnore);
BOOL WINAPI DetourSetRetainRegions(BOOL fRetain);
PVOID WINAPI DetourSetSystemRegionLowerBound(PVOID pSystemRegionLowerBound);
PVOID WINAPI DetourSetSystemRegionUpperBound(PVOID pSystemRegionUpperBound);

#ifdef _WIN32
/* What a DLL asks first. No process is created by DetourCreateProcessWithDll here: both answer FALSE, the second with ERROR_MOD_NOT_FOUND. */
BOOL WINAPI DetourIsHelperProcess(VOID);
BOOL WINAPI DetourRestoreAfterWith(VOID);
#endif

/* Code. */
PVOID WINAPI DetourFindFunction(LPCSTR pszModule, LPCSTR pszFunction);
PVOID WINAPI DetourCodeFromPointer(PVOID pPointer, PVOID *ppGlobals);
PVOID WINAPI DetourCopyInstruction(PVOID pDst, PVOID *ppDstPool, PVOID pSrc, PVOID *ppTarget, LONG *plExtra);
PVOID WINAPI DetourAllocateRegionWithinJumpBounds(LPCVOID pbTarget, PDWORD pcbAllocatedSize);
BOOL WINAPI DetourIsFunctionImported(PBYTE pbCode, PBYTE pbAddress);

/* Modules: an HMODULE is the address of an image's header. NULL is the program. What goes wrong GetLastError() tells. */
HMODULE WINAPI DetourGetContainingModule(PVOID pvAddr);
HMODULE WINAPI DetourEnumerateModules(HMODULE hModuleLast);
PVOID WINAPI DetourGetEntryPoint(HMODULE hModule);
ULONG WINAPI DetourGetModuleSize(HMODULE hModule);
BOOL WINAPI DetourEnumerateExports(HMODULE hModule, PVOID pContext, PF_DETOUR_ENUMERATE_EXPORT_CALLBACK pfExport);
BOOL WINAPI DetourEnumerateImports(HMODULE hModule, PVOID pContext, PF_DETOUR_IMPORT_FILE_CALLBACK pfImportFile,
				   PF_DETOUR_IMPORT_FUNC_CALLBACK pfImportFunc);
BOOL WINAPI DetourEnumerateImportsEx(HMODULE hModule, PVOID pContext, PF_DETOUR_IMPORT_FILE_CALLBACK pfImportFile,
				     PF_DETOUR_IMPORT_FUNC_CALLBACK_EX pfImportFuncEx);

#ifdef __cplusplus
}

/*
 * Functions and pointers to them, which C++ does not take for PVOID by itself. A detour of another type than its target is an error of
 * the compiler's where both are given as what they are.
 */
template<typename Function> LONG DetourAttach(PVOID *ppPointer, Function *pDetour)
{
	return DetourAttach(ppPointer, __extension__ reinterpret_cast<PVOID>(pDetour));
}

template<typename Function> LONG DetourDetach(PVOID *ppPointer, Function *pDetour)
{
	return DetourDetach(ppPointer, __extension__ reinterpret_cast<PVOID>(pDetour));
}

template<typename Function> LONG DetourAttach(Function **ppPointer, Function *pDetour)
{
	return DetourAttach(reinterpret_cast<PVOID *>(ppPointer), __extension__ reinterpret_cast<PVOID>(pDetour));
}

template<typename Function> LONG DetourDetach(Function **ppPointer, Function *pDetour)
{
	return DetourDetach(reinterpret_cast<PVOID *>(ppPointer), __extension__ reinterpret_cast<PVOID>(pDetour));
}

template<typename Function> LONG DetourAttachEx(Function **ppPointer, Function *pDetour, PDETOUR_TRAMPOLINE *ppRealTrampoline,
						Function **ppRealTarget, Function **ppRealDetour)
{
	return DetourAttachEx(reinterpret_cast<PVOID *>(ppPointer), __extension__ reinterpret_cast<PVOID>(pDetour),
			      ppRealTrampoline, reinterpret_cast<PVOID *>(ppRealTarget), reinterpret_cast<PVOID *>(ppRealDetour));
}

template<typename Function> HMODULE DetourGetContainingModule(Function *pFunction)
{
	return DetourGetContainingModule(__extension__ reinterpret_cast<PVOID>(pFunction));
}

template<typename Function> PVOID DetourCodeFromPointer(Function *pFunction, PVOID *ppGlobals)
{
	return DetourCodeFromPointer(__extension__ reinterpret_cast<PVOID>(pFunction), ppGlobals);
}
#endif

#endif
