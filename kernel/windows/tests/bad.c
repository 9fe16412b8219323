/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * bad: what a driver in C gets for what it does wrong, as NTSTATUS, code and text. Prints "KD: ok NAME" or "KD: FAIL NAME: why", and at last
 * how many of each: the suite windows-drivers reads it.
 */
#include <ntddk.h>
#include "kdetour_nt.h"

#define NOINLINE __attribute__((noinline, noclone))

/* Of ntstatus.h. */
#define INVALID_PARAMETER ((NTSTATUS)0xc000000d)
#define PROCEDURE_NOT_FOUND ((NTSTATUS)0xc000007a)
#define INVALID_ADDRESS ((NTSTATUS)0xc0000141)
#define ADDRESS_ALREADY_EXISTS ((NTSTATUS)0xc000020a)
#define NOT_FOUND ((NTSTATUS)0xc0000225)
#define DEVICE_BUSY ((NTSTATUS)0x80000011)
#define INVALID_LEVEL ((NTSTATUS)0xc0000148)

/* Of ntifs.h. */
NTSYSAPI NTSTATUS NTAPI ZwWaitForSingleObject(HANDLE handle, BOOLEAN alertable, PLARGE_INTEGER timeout);

/* wdm.h for x64 writes the processor's register itself, which means nothing to who runs drivers in an ordinary process. */
#ifdef _WIN64
extern KIRQL NTAPI raise_irql(KIRQL to) __asm__("KfRaiseIrql");
extern VOID NTAPI lower_irql(KIRQL to) __asm__("KeLowerIrql");
#else
#define raise_irql KfRaiseIrql
#define lower_irql KfLowerIrql
#endif

static int good, failed;
static struct kdetour_error error;

static NOINLINE ULONG NTAPI target(ULONG of)
{
	volatile ULONG times = 3;

	return of * times;
}

KDETOUR(target, ULONG, NTAPI, (ULONG of), (of))
{
	return target_original(of) + 1;
}

static ULONG (NTAPI *volatile call_target)(ULONG) = target;

/* Sleeps inside its detour until it is told to go on. */
static volatile LONG inside, go_on;

static void nap(void)
{
	LARGE_INTEGER interval;

	interval.QuadPart = -10 * 1000; /* a millisecond */
	KeDelayExecutionThread(KernelMode, FALSE, &interval);
}

static NOINLINE ULONG NTAPI sleeper(ULONG of)
{
	volatile ULONG times = 5;

	return of * times;
}

KDETOUR(sleeper, ULONG, NTAPI, (ULONG of), (of))
{
	InterlockedIncrement(&inside);
	while (!go_on)
		nap();
	return sleeper_original(of);
}

static ULONG (NTAPI *volatile call_sleeper)(ULONG) = sleeper;
static volatile ULONG slept;

static VOID NTAPI sleep_inside(PVOID context)
{
	UNREFERENCED_PARAMETER(context);
	slept = call_sleeper(4);
	PsTerminateSystemThread(STATUS_SUCCESS);
}

static UCHAR before[32];
static ULONG data[16] = { 1 };

static int is_as_before(void)
{
	const UCHAR *now = (const UCHAR *)target;
	unsigned int i;

	for (i = 0; i < sizeof(before); i++)
		if (now[i] != before[i])
			return 0;
	return 1;
}

static int contains(const char *text, const char *part)
{
	const char *a, *b;

	for (;; text++) {
		for (a = text, b = part; *b && *a == *b; a++, b++)
			;
		if (!*b)
			return 1;
		if (!*text)
			return 0;
	}
}

static void check(const char *name, int is_so, NTSTATUS status)
{
	if (is_so) {
		good++;
		DbgPrint("KD: ok %s\n", name);
	} else {
		failed++;
		DbgPrint("KD: FAIL %s: status %08x, code %d: %s\n", name, (unsigned int)status, error.code, error.text);
	}
}

/* What an attach of one detour ends with; nothing has been written. */
static NOINLINE void attach_fails(const char *name, struct kdetour *one, unsigned int risk, NTSTATUS wanted, int code, const char *text)
{
	NTSTATUS status;

	error.code = 0;
	error.text[0] = 0;
	status = kdetour_attach_all(&one, 1, KDETOUR_IPI, risk, &error);
	check(name, status == wanted && error.code == code && contains(error.text, text) && is_as_before(), status);
}

static NOINLINE void bad_arguments(void)
{
	struct kdetour *twice[2], *one = &target_detour, none;
	NTSTATUS status;

	RtlZeroMemory(&none, sizeof(none));
	attach_fails("null target", &none, KDETOUR_NO_RISK, INVALID_PARAMETER, KDETOUR_NULL, "null");
	none.target = (void *)target;
	attach_fails("null detour", &none, KDETOUR_NO_RISK, INVALID_PARAMETER, KDETOUR_NULL, "null");
	attach_fails("null struct", NULL, KDETOUR_NO_RISK, INVALID_PARAMETER, KDETOUR_NULL, "null");
	status = kdetour_attach_all(NULL, 1, KDETOUR_IPI, KDETOUR_NO_RISK, &error);
	check("null set", status == INVALID_PARAMETER && error.code == KDETOUR_NULL, status);
	status = kdetour_attach_all(NULL, 0, KDETOUR_IPI, KDETOUR_NO_RISK, NULL);
	check("empty set", status == STATUS_SUCCESS, status);
	status = kdetour_attach_all(&one, 1, (enum kdetour_protocol)7, KDETOUR_NO_RISK, &error);
	check("no such protocol", status == INVALID_PARAMETER && error.code == KDETOUR_ARGUMENT, status);
	status = kdetour_attach_all(&one, 1, KDETOUR_IPI, 7, &error);
	check("no such risk", status == INVALID_PARAMETER && error.code == KDETOUR_ARGUMENT, status);
	twice[0] = twice[1] = &target_detour;
	status = kdetour_attach_all(twice, 2, KDETOUR_IPI, KDETOUR_ACCEPT_PREEMPTED, &error);
	check("twice in a set", status == INVALID_PARAMETER && error.code == KDETOUR_ARGUMENT && error.index == 1, status);

	none.detour = target_detour.detour;
	none.target = (void *)16;
	attach_fails("nothing there", &none, KDETOUR_NO_RISK, INVALID_ADDRESS, KDETOUR_NOT_CODE, "0x10");
	none.target = data;
	attach_fails("data", &none, KDETOUR_NO_RISK, INVALID_ADDRESS, KDETOUR_NOT_CODE, "code");
	none.target = (void *)target;
	none.detour = data;
	attach_fails("a detour that is data", &none, KDETOUR_ACCEPT_PREEMPTED, INVALID_ADDRESS, KDETOUR_NOT_CODE, "code");
	none.detour = target_detour.detour;
	none.symbol = "NoSuchFunctionOfNt";
	attach_fails("unknown name", &none, KDETOUR_NO_RISK, PROCEDURE_NOT_FOUND, KDETOUR_UNKNOWN_SYMBOL, "");
	check("find", kdetour_find("NoSuchFunctionOfNt") == NULL && kdetour_find(NULL) == NULL && kdetour_find("DbgPrint") != NULL, 0);
	status = kdetour_detach_all(&one, 1, KDETOUR_IPI, KDETOUR_FOR_EVER, &error);
	check("detach what is not attached", status == NOT_FOUND && error.code == KDETOUR_NOT_ATTACHED, status);
}

static NOINLINE void wrong_level(void)
{
	struct kdetour *one = &target_detour;
	NTSTATUS status;
	KIRQL irql;

	irql = raise_irql(DISPATCH_LEVEL);
	status = kdetour_attach_all(&one, 1, KDETOUR_IPI, KDETOUR_ACCEPT_PREEMPTED, &error);
	lower_irql(irql);
	check("attach at DISPATCH_LEVEL", status == INVALID_LEVEL && contains(error.text, "IRQL 2") && is_as_before(), status);
	irql = raise_irql(APC_LEVEL);
	status = kdetour_attach_all(&one, 1, KDETOUR_IPI, KDETOUR_ACCEPT_PREEMPTED, &error);
	lower_irql(irql);
	check("attach at APC_LEVEL", status == INVALID_LEVEL && contains(error.text, "IRQL 1"), status);
	irql = raise_irql(DISPATCH_LEVEL);
	status = kdetour_detach_all(&one, 1, KDETOUR_IPI, KDETOUR_FOR_EVER, NULL);
	lower_irql(irql);
	check("detach at DISPATCH_LEVEL", status == INVALID_LEVEL, status);
	irql = raise_irql(DISPATCH_LEVEL);
	status = kdetour_stop(KDETOUR_IPI, KDETOUR_FOR_EVER, NULL);
	lower_irql(irql);
	check("stop at DISPATCH_LEVEL", status == INVALID_LEVEL, status);
	check("the target was not touched", call_target(7) == 21 && is_as_before(), 0);
}

static NOINLINE void attached(enum kdetour_protocol protocol, const char *name)
{
	struct kdetour *one = &target_detour;
	NTSTATUS status;

	target_detour.target = (void *)target;
	status = kdetour_attach_all(&one, 1, protocol, KDETOUR_ACCEPT_PREEMPTED, &error);
	check(name, status == STATUS_SUCCESS && call_target(7) == 22 && !is_as_before(), status);
	status = kdetour_attach_all(&one, 1, protocol, KDETOUR_ACCEPT_PREEMPTED, &error);
	check("attach twice", status == ADDRESS_ALREADY_EXISTS && error.code == KDETOUR_ALREADY_DETOURED && call_target(7) == 22, status);
	status = kdetour_detach_all(&one, 1, protocol, KDETOUR_FOR_EVER, &error);
	check("detached", status == STATUS_SUCCESS && call_target(7) == 21 && is_as_before(), status);
}

/* A call that sleeps inside its detour is waited for. */
static NOINLINE void waits(void)
{
	struct kdetour *one = &sleeper_detour;
	unsigned int tries;
	NTSTATUS status;
	HANDLE thread;

	sleeper_detour.target = (void *)sleeper;
	status = kdetour_attach_all(&one, 1, KDETOUR_IPI, KDETOUR_ACCEPT_PREEMPTED, &error);
	check("attach the sleeper", status == STATUS_SUCCESS, status);
	if (!NT_SUCCESS(status))
		return;
	status = PsCreateSystemThread(&thread, THREAD_ALL_ACCESS, NULL, NULL, NULL, sleep_inside, NULL);
	if (!NT_SUCCESS(status)) {
		check("start a thread", 0, status);
		return;
	}
	for (tries = 0; !inside && tries < 10000; tries++)
		nap();
	status = kdetour_detach_all(&one, 1, KDETOUR_IPI, 20, &error);
	check("a call is inside", status == DEVICE_BUSY && error.code == KDETOUR_BUSY && contains(error.text, "1"), status);
	status = kdetour_stop(KDETOUR_IPI, 20, &error);
	check("stop while a call is inside", status == DEVICE_BUSY && error.code == KDETOUR_BUSY && !slept, status);
	InterlockedExchange(&go_on, 1);
	status = kdetour_detach_all(&one, 1, KDETOUR_IPI, KDETOUR_FOR_EVER, &error);
	/* It has left the detour; what it came back with is stored a moment later. */
	for (tries = 0; !slept && tries < 10000; tries++)
		nap();
	check("the call was waited for", status == STATUS_SUCCESS && slept == 20, status);
	ZwWaitForSingleObject(thread, FALSE, NULL);
	ZwClose(thread);
}

static VOID NTAPI unload(PDRIVER_OBJECT driver)
{
	NTSTATUS status;

	UNREFERENCED_PARAMETER(driver);
	status = kdetour_stop(KDETOUR_DPC, KDETOUR_FOR_EVER, &error);
	check("stop", status == STATUS_SUCCESS, status);
	DbgPrint("KD: %d good, %d failed\n", good, failed);
}

NTSTATUS NTAPI DriverEntry(PDRIVER_OBJECT driver, PUNICODE_STRING path);

NTSTATUS NTAPI DriverEntry(PDRIVER_OBJECT driver, PUNICODE_STRING path)
{
	unsigned int i;

	UNREFERENCED_PARAMETER(path);
	driver->DriverUnload = unload;
	for (i = 0; i < sizeof(before); i++)
		before[i] = ((const UCHAR *)target)[i];
	bad_arguments();
	wrong_level();
	attached(KDETOUR_IPI, "attached by IPI");
	attached(KDETOUR_DPC, "attached by DPC");
	waits();
	return STATUS_SUCCESS;
}
