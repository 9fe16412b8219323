/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * detours.h - the calls of Microsoft Detours 4 for hooking, by the same names and with the same meaning, for programs on Linux.
 *
 * A program's hooking code ports by being compiled again:
 *
 *	cc hooks.c $(pkg-config --cflags --libs kdetour-detours)
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
#else
#error "detours.h is for x86-64, so far"
#endif
#define DETOURS_STRINGIFY_(x) #x
#define DETOURS_STRINGIFY(x) DETOURS_STRINGIFY_(x)
#define VER_DETOURS_BITS DETOURS_STRINGIFY(DETOURS_BITS)

#ifdef __cplusplus
extern "C" {
#endif

typedef struct _DETOUR_TRAMPOLINE DETOUR_TRAMPOLINE, *PDETOUR_TRAMPOLINE;

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
PVOID WINAPI DetourCodeFromPointer(PVOID pPointer, PVOID *ppGlobals);

#ifdef __cplusplus
}

/* Functions and pointers to them, which C++ does not take for PVOID by itself. */
template<typename Function> LONG DetourAttach(PVOID *ppPointer, Function *pDetour)
{
	return DetourAttach(ppPointer, reinterpret_cast<PVOID>(pDetour));
}

template<typename Function> LONG DetourDetach(PVOID *ppPointer, Function *pDetour)
{
	return DetourDetach(ppPointer, reinterpret_cast<PVOID>(pDetour));
}

template<typename Function> LONG DetourAttach(Function **ppPointer, Function *pDetour)
{
	return DetourAttach(reinterpret_cast<PVOID *>(ppPointer), reinterpret_cast<PVOID>(pDetour));
}

template<typename Function> LONG DetourDetach(Function **ppPointer, Function *pDetour)
{
	return DetourDetach(reinterpret_cast<PVOID *>(ppPointer), reinterpret_cast<PVOID>(pDetour));
}
#endif

#endif
