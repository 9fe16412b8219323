/* What detours.h promises of transactions. Lines `ok` and `FAIL`. */
#include "check.h"
#include <pthread.h>
#include <unistd.h>
#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#define pipe(ends_) _pipe(ends_, 16, _O_BINARY)
#else
#include <sys/wait.h>
#endif

#define TARGET(name_, body_)								\
	__attribute__((noinline, noclone)) static int name_(int number)		\
	{										\
		__asm__ volatile("");							\
		body_									\
	}

TARGET(threefold, return number * 3 + (number > 100 ? printf("large\n") : 0);)
TARGET(squared, return number * number + (number > 100 ? printf("large\n") : 0);)
static int (*volatile call_threefold)(int) = threefold;
static int (*volatile call_squared)(int) = squared;

static int (*TrueThreefold)(int) = threefold;
static int (*TrueSquared)(int) = squared;
static int (*Second)(int);

static int MyThreefold(int number)
{
	return TrueThreefold(number) + 1;
}

static int MySecond(int number)
{
	return Second(number) * 10;
}

static int MySquared(int number)
{
	return TrueSquared(number) + 5;
}

static void as_every_sample_does(void)
{
	gives(DetourTransactionBegin(), NO_ERROR, "begin");
	gives(DetourUpdateThread(GetCurrentThread()), NO_ERROR, "this thread");
	gives(DetourAttach(P(TrueThreefold), F(MyThreefold)), NO_ERROR, "attach");
	check(TrueThreefold == threefold && call_threefold(2) == 6, "nothing has happened yet");
	gives(DetourTransactionCommit(), NO_ERROR, "commit");
	check(call_threefold(2) == 7 && TrueThreefold(2) == 6 && TrueThreefold != threefold, "detoured");
	gives(DetourTransactionBegin(), NO_ERROR, "begin");
	gives(DetourDetach(P(TrueThreefold), F(MyThreefold)), NO_ERROR, "detach");
	check(call_threefold(2) == 7, "nothing has happened yet");
	gives(DetourTransactionCommit(), NO_ERROR, "commit");
	check(call_threefold(2) == 6 && TrueThreefold == threefold, "as it was");
}

static void two_of_one_target(void)
{
	Second = threefold;
	DetourTransactionBegin();
	gives(DetourAttach(P(TrueThreefold), F(MyThreefold)), NO_ERROR, "the first");
	gives(DetourAttach(P(Second), F(MySecond)), NO_ERROR, "the second");
	gives(DetourTransactionCommit(), NO_ERROR, "both at once");
	check(call_threefold(2) == 70, "the last one is called first");
	DetourTransactionBegin();
	gives(DetourDetach(P(TrueThreefold), F(MyThreefold)), NO_ERROR, "the first leaves first");
	gives(DetourTransactionCommit(), NO_ERROR, "commit");
	check(call_threefold(2) == 60, "the second alone");
	DetourTransactionBegin();
	gives(DetourDetach(P(Second), F(MySecond)), NO_ERROR, "the second leaves");
	gives(DetourAttach(P(TrueThreefold), F(MyThreefold)), NO_ERROR, "and the first comes, in one transaction");
	gives(DetourTransactionCommit(), NO_ERROR, "commit");
	check(call_threefold(2) == 7, "the first alone");
	DetourTransactionBegin();
	DetourDetach(P(TrueThreefold), F(MyThreefold));
	gives(DetourTransactionCommit(), NO_ERROR, "commit");
	check(call_threefold(2) == 6, "as it was");
}

static void the_same_twice(void)
{
	PVOID *failed_pointer = NULL;
	PVOID other = F(threefold);

	DetourTransactionBegin();
	gives(DetourAttach(P(TrueThreefold), F(MyThreefold)), NO_ERROR, "attach");
	gives(DetourAttach(&other, F(MyThreefold)), ERROR_ALREADY_EXISTS, "the same twice");
	gives(DetourTransactionCommitEx(&failed_pointer), ERROR_ALREADY_EXISTS, "commit");
	check(failed_pointer == &other && TrueThreefold == threefold && call_threefold(2) == 6, "nothing has happened");
	DetourTransactionBegin();
	DetourAttach(P(TrueThreefold), F(MyThreefold));
	gives(DetourTransactionCommit(), NO_ERROR, "once");
	DetourTransactionBegin();
	gives(DetourAttach(&other, F(MyThreefold)), ERROR_ALREADY_EXISTS, "once more, later");
	DetourTransactionAbort();
	DetourTransactionBegin();
	gives(DetourDetach(P(TrueThreefold), F(MyThreefold)), NO_ERROR, "it leaves");
	gives(DetourAttach(&other, F(MyThreefold)), NO_ERROR, "and comes by another pointer");
	gives(DetourTransactionCommit(), NO_ERROR, "in one transaction");
	check(TrueThreefold == threefold && other != F(threefold), "each pointer is told");
	DetourTransactionBegin();
	DetourDetach(&other, F(MyThreefold));
	gives(DetourTransactionCommit(), NO_ERROR, "the end");
	check(other == F(threefold) && call_threefold(2) == 6, "as it was");
}

static void what_goes_wrong(void)
{
	PVOID *failed_pointer = NULL, nothing = NULL, wrong = (PVOID)16;

	gives(DetourTransactionCommit(), ERROR_INVALID_OPERATION, "commit of nothing");
	gives(DetourTransactionAbort(), ERROR_INVALID_OPERATION, "abort of nothing");
	gives(DetourAttach(P(TrueThreefold), F(MyThreefold)), ERROR_INVALID_OPERATION, "attach outside");
	gives(DetourDetach(P(TrueThreefold), F(MyThreefold)), ERROR_INVALID_OPERATION, "detach outside");
	gives(DetourAttach(P(TrueThreefold), NULL), ERROR_INVALID_PARAMETER, "no detour");
	gives(DetourTransactionBegin(), NO_ERROR, "begin");
	gives(DetourTransactionBegin(), ERROR_INVALID_OPERATION, "begin twice");
	gives(DetourAttach(NULL, F(MyThreefold)), ERROR_INVALID_HANDLE, "no pointer");
	gives(DetourDetach(P(TrueThreefold), NULL), ERROR_INVALID_PARAMETER, "no detour to detach");
	gives(DetourAttach(P(TrueThreefold), F(MyThreefold)), NO_ERROR, "which does not spoil the transaction");
	gives(DetourAttach(&nothing, F(MyThreefold)), ERROR_INVALID_HANDLE, "a null pointer");
	gives(DetourAttach(P(TrueSquared), F(MySquared)), ERROR_INVALID_HANDLE, "which does");
	gives(DetourTransactionCommitEx(&failed_pointer), ERROR_INVALID_HANDLE, "commit says it again");
	check(failed_pointer == &nothing, "and which it was");
	check(call_threefold(2) == 6 && TrueThreefold == threefold, "nothing has happened");

	DetourTransactionBegin();
	gives(DetourAttach(P(TrueThreefold), F(MyThreefold)), NO_ERROR, "attach");
	gives(DetourTransactionAbort(), NO_ERROR, "abort");
	check(call_threefold(2) == 6 && TrueThreefold == threefold, "nothing has happened");

	DetourTransactionBegin();
	gives(DetourAttach(&wrong, F(MyThreefold)), ERROR_INVALID_ADDRESS, "a pointer to nowhere");
	gives(DetourTransactionCommit(), ERROR_INVALID_ADDRESS, "commit");
	DetourTransactionBegin();
	gives(DetourDetach(P(TrueThreefold), F(MyThreefold)), ERROR_INVALID_BLOCK, "detach of what is not attached");
	gives(DetourTransactionCommitEx(&failed_pointer), ERROR_INVALID_BLOCK, "commit");
	check(failed_pointer == P(TrueThreefold), "and which it was");
	gives(DetourTransactionCommitEx(&failed_pointer), ERROR_INVALID_OPERATION, "asked again afterwards");
	check(failed_pointer == P(TrueThreefold), "it is still known");

	check(DetourSetIgnoreTooSmall(TRUE) == FALSE, "ignore them");
	DetourTransactionBegin();
	gives(DetourDetach(P(TrueThreefold), F(MyThreefold)), ERROR_INVALID_BLOCK, "the same");
	gives(DetourAttach(P(TrueSquared), F(MySquared)), NO_ERROR, "does not spoil it");
	gives(DetourTransactionCommit(), NO_ERROR, "commit");
	check(DetourSetIgnoreTooSmall(FALSE) == TRUE, "no longer");
	check(call_squared(3) == 14, "detoured");
	DetourTransactionBegin();
	gives(DetourDetach(P(TrueSquared), F(MyThreefold)), ERROR_INVALID_BLOCK, "another detour than it has");
	DetourTransactionAbort();
	DetourTransactionBegin();
	gives(DetourUpdateThread((HANDLE)(LONG_PTR)0x7fffffff), ERROR_INVALID_HANDLE, "no such thread");
	gives(DetourTransactionCommit(), ERROR_INVALID_HANDLE, "commit");
	DetourTransactionBegin();
	DetourDetach(P(TrueSquared), F(MySquared));
	gives(DetourTransactionCommit(), NO_ERROR, "the end");
	check(call_squared(3) == 9, "as it was");
}

static int at_door[2], go_on[2];

/* Leaves a transaction open, and ends. */
static void *somebody_else(void *nothing)
{
	PVOID square = F(squared);
	char byte = 0;

	gives(DetourTransactionBegin(), NO_ERROR, "somebody else begins");
	gives(DetourAttach(&square, F(MySquared)), NO_ERROR, "and attaches");
	check(write(at_door[1], &byte, 1) == 1 && read(go_on[0], &byte, 1) == 1, "and waits");
	return nothing;
}

static void one_at_a_time(void)
{
	pthread_t other;
	char byte = 0;
#ifndef _WIN32
	int status = -1;
	pid_t child;
#endif

	check(!pipe(at_door) && !pipe(go_on) && !pthread_create(&other, NULL, somebody_else, NULL), "another thread");
	check(read(at_door[0], &byte, 1) == 1, "has begun");
	gives(DetourTransactionBegin(), ERROR_INVALID_OPERATION, "nobody else begins");
	gives(DetourAttach(P(TrueThreefold), F(MyThreefold)), ERROR_INVALID_OPERATION, "or attaches");
	gives(DetourDetach(P(TrueThreefold), F(MyThreefold)), ERROR_INVALID_OPERATION, "or detaches");
	gives(DetourUpdateThread(GetCurrentThread()), ERROR_INVALID_OPERATION, "or names a thread");
	gives(DetourTransactionCommit(), ERROR_INVALID_OPERATION, "or commits");
	gives(DetourTransactionAbort(), ERROR_INVALID_OPERATION, "or aborts");
#ifndef _WIN32
	/* That thread is not in a child. */
	fflush(stdout);
	child = fork();
	if (!child)
		_exit(DetourTransactionBegin() != NO_ERROR || DetourTransactionAbort() != NO_ERROR);
	check(waitpid(child, &status, 0) == child && !status, "but in a child");
#endif
	check(write(go_on[1], &byte, 1) == 1 && !pthread_join(other, NULL), "it ends");
	gives(DetourTransactionBegin(), NO_ERROR, "its transaction, too");
#ifndef _WIN32
	fflush(stdout);
	child = fork();
	if (!child)
		_exit(DetourTransactionBegin() != ERROR_INVALID_OPERATION || DetourTransactionAbort() != NO_ERROR);
	check(waitpid(child, &status, 0) == child && !status, "one's own is in a child as well");
#endif
	gives(DetourTransactionCommit(), NO_ERROR, "nothing is left of it");
	check(call_squared(3) == 9, "as it was");
}

static void words_of_windows(void)
{
	LONG number = 4;
	char text[8] = "abcdefg";

	check(InterlockedIncrement(&number) == 5 && InterlockedDecrement(&number) == 4, "up and down");
	check(InterlockedExchange(&number, 7) == 4 && InterlockedExchangeAdd(&number, 2) == 7, "what was there before");
	check(InterlockedCompareExchange(&number, 1, 8) == 9 && number == 9, "another one is left");
	check(InterlockedCompareExchange(&number, 1, 9) == 9 && number == 1, "that one is exchanged");
	CopyMemory(text, "xy", 2);
	ZeroMemory(text + 3, 5);
	check(!strcmp(text, "xyc"), "memory");
}

static void what_is_told(void)
{
	PDETOUR_TRAMPOLINE trampoline = NULL;
	PVOID target = NULL, detour = NULL, globals = &target;

	DetourTransactionBegin();
	gives(DetourAttachEx(P(TrueThreefold), F(MyThreefold), &trampoline, &target, &detour), NO_ERROR, "attach");
	check(target == F(threefold) && detour == F(MyThreefold) && trampoline, "the addresses");
	gives(DetourTransactionCommit(), NO_ERROR, "commit");
	check(F(TrueThreefold) == F(trampoline), "the trampoline is the one");
	DetourTransactionBegin();
	DetourDetach(P(TrueThreefold), F(MyThreefold));
	DetourTransactionCommit();
	check(!DetourCodeFromPointer(NULL, NULL), "no pointer, no code");
	check(DetourCodeFromPointer(F(threefold), &globals) == F(threefold) && !globals, "code is code");
	SetLastError(7);
	check(GetLastError() == 7, "the last error");
}

int main(void)
{
	as_every_sample_does();
	two_of_one_target();
	the_same_twice();
	what_goes_wrong();
	one_at_a_time();
	words_of_windows();
	what_is_told();
	return failed;
}
