/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * raising: a program that calls detours of kdetour_nt.h, as they are compiled for Windows' own targets, whose body is left by an exception:
 * afterwards nobody is counted as inside. It has the little of ntddk.h that the header asks for, and links nothing of kdetour: a body
 * does not care by which way it was entered.
 */
#ifndef _MSC_VER
#error "for Windows' own targets: what is looked at is not there otherwise"
#endif

#define NTAPI __stdcall
#define VOID void
#define NULL ((void *)0)
#define InterlockedIncrement(of) __sync_add_and_fetch(of, 1)
#define InterlockedDecrement(of) __sync_sub_and_fetch(of, 1)
typedef long LONG, NTSTATUS;
typedef unsigned long ULONG;
typedef unsigned long long ULONGLONG;

#include "kdetour_nt.h"

void __stdcall RaiseException(ULONG code, ULONG flags, ULONG count, void *arguments);
int printf(const char *format, ...);

static LONG inside;

static ULONG NTAPI raises(ULONG code)
{
	if (code)
		RaiseException(code, 0, 0, NULL);
	return 7;
}

/* Noted from where the counter cannot be worked out. */
KDETOUR(raises, ULONG, NTAPI, (ULONG code), (code))
{
	inside = *raises_detour.in_flight;
	return 2 * raises_original(code);
}

static void NTAPI ends(ULONG code)
{
	raises(code);
}

KDETOUR_VOID(ends, NTAPI, (ULONG code), (code))
{
	inside = *ends_detour.in_flight;
	ends_original(code);
}

/* What a call gives, or 1 if it raises. */
static ULONG called(struct kdetour *detour, ULONG code)
{
	__try {
		return ((ULONG (NTAPI *)(ULONG))detour->detour)(code);
	} __except (1) {
		return 1;
	}
}

int main(void)
{
	struct kdetour *all[] = { &raises_detour, &ends_detour };
	ULONG (NTAPI *volatile first)(ULONG) = raises;
	void (NTAPI *volatile second)(ULONG) = ends;
	unsigned int i, failed = 0;

	*raises_detour.original = (void *)first;
	*ends_detour.original = (void *)second;
	for (i = 0; i < 2; i++) {
		ULONG back = called(all[i], 0), raised;
		LONG left = *all[i]->in_flight;

		failed |= (i == 0 && back != 14) || left || inside != 1;
		raised = called(all[i], 0xe0000001);
		failed |= raised != 1 || *all[i]->in_flight || inside != 1;
		printf("%s: %ld inside, after an exception %ld\n", i ? "KDETOUR_VOID" : "KDETOUR", left, *all[i]->in_flight);
	}
	printf(failed ? "failed\n" : "ok\n");
	return failed;
}
