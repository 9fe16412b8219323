/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * hello: a driver that detours a function of its own and an exported function of the kernel, counts their calls, and lets them be as they
 * were. What it does it tells by DbgPrint, each line behind "KD: ". examples/rust does the same in Rust.
 *
 *	sc create kdhello binPath= C:\path\hello-c.sys type= kernel start= demand
 *	sc start kdhello
 *	sc stop kdhello
 *
 * It may as well be a boot or a system driver (start= boot, start= system): its DriverEntry needs neither the registry nor the paging file.
 */
#include <ntddk.h>
#include "kdetour_nt.h"

/* Three times a number; a function of one's own. */
#ifdef __GNUC__
__attribute__((noinline, noclone))
#else
__declspec(noinline)
#endif
static ULONG NTAPI price(ULONG of)
{
	/* Volatile: who calls price has to call it. */
	volatile ULONG times = 3;

	return of * times;
}

static volatile LONG calls;

/* Twice as much. */
KDETOUR(price, ULONG, NTAPI, (ULONG of), (of))
{
	InterlockedIncrement(&calls);
	return 2 * price_original(of);
}

/* An exported function of the kernel: how many units of 100 ns the clock's interrupt adds. */
KDETOUR(KeQueryTimeIncrement, ULONG, NTAPI, (VOID), ())
{
	InterlockedIncrement(&calls);
	return KeQueryTimeIncrement_original();
}

/* By a pointer, so that it is not worked out when this is compiled. */
static ULONG (NTAPI *volatile call_price)(ULONG) = price;

/* What price(7) is now, and then how many calls have come by. */
static void tell_price(void)
{
	ULONG now = call_price(7);

	DbgPrint("KD: price(7) is %u, %d calls came by\n", now, (int)calls);
}

static void tell(const char *what, NTSTATUS status, const struct kdetour_error *error)
{
	if (NT_SUCCESS(status))
		DbgPrint("KD: %s: ok\n", what);
	else
		DbgPrint("KD: %s: status %08x, code %d: %s\n", what, (unsigned int)status, error->code, error->text);
}

static VOID NTAPI unload(PDRIVER_OBJECT driver)
{
	struct kdetour_error error;
	NTSTATUS status;

	LARGE_INTEGER interval;

	UNREFERENCED_PARAMETER(driver);
	interval.QuadPart = -10 * 1000 * 100; /* 100 ms, in units of 100 ns from now on */
	/*
	 * Nobody may be left in code that is about to go: without a time-out this waits for them. And a driver cannot refuse to go: what fails,
	 * since somebody else has written over a detour, say, is tried again until it does not.
	 */
	while (status = kdetour_stop(KDETOUR_IPI, KDETOUR_FOR_EVER, &error), !NT_SUCCESS(status)) {
		tell("unload", status, &error);
		KeDelayExecutionThread(KernelMode, FALSE, &interval);
	}
	tell("unload", status, &error);
	tell_price();
}

NTSTATUS NTAPI DriverEntry(PDRIVER_OBJECT driver, PUNICODE_STRING path);

NTSTATUS NTAPI DriverEntry(PDRIVER_OBJECT driver, PUNICODE_STRING path)
{
	struct kdetour *own[] = { &price_detour };
	struct kdetour *kernel[] = { &KeQueryTimeIncrement_detour };
	struct kdetour_error error;
	ULONG increment;
	NTSTATUS status;

	UNREFERENCED_PARAMETER(path);
	driver->DriverUnload = unload;
	tell_price();

	/*
	 * The risk is none: nobody but this function calls price. A compiler may begin it with several short instructions, and then a thread
	 * that was preempted between them would have to be feared.
	 */
	price_detour.target = (void *)price;
	status = kdetour_attach_all(own, 1, KDETOUR_DPC, KDETOUR_ACCEPT_PREEMPTED, &error);
	tell("attach price", status, &error);
	if (!NT_SUCCESS(status)) {
		/* A driver that does not start is not unloaded: it takes its memory along itself. */
		kdetour_stop(KDETOUR_DPC, KDETOUR_FOR_EVER, NULL);
		return status;
	}
	tell_price();

	/*
	 * On x64 a kernel that guards itself (PatchGuard) has this refused, by name, and the driver goes on with its own function.
	 */
	increment = KeQueryTimeIncrement();
	KeQueryTimeIncrement_detour.symbol = "KeQueryTimeIncrement";
	status = kdetour_attach_all(kernel, 1, KDETOUR_IPI, KDETOUR_NO_RISK, &error);
	tell("attach KeQueryTimeIncrement", status, &error);
	DbgPrint("KD: the clock is as it was: %s\n", KeQueryTimeIncrement() == increment ? "yes" : "no");

	/* Detached it is as it was; attached again it costs no new slot. */
	status = kdetour_detach_all(own, 1, KDETOUR_DPC, KDETOUR_FOR_EVER, &error);
	tell("detach price", status, &error);
	tell_price();
	status = kdetour_attach_all(own, 1, KDETOUR_IPI, KDETOUR_ACCEPT_PREEMPTED, &error);
	tell("attach price again", status, &error);
	tell_price();
	return STATUS_SUCCESS;
}
