/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * kdetour_nt.h - detours of functions of a running Windows kernel, and of a driver's own, for drivers in C. For the WDK's compiler and
 * for gcc (mingw); include ntddk.h or wdm.h first. Link libkdetour_nt.a into the driver: docs/windows-drivers.md.
 *
 *	KDETOUR(KeQueryTimeIncrement, ULONG, NTAPI, (VOID), ())
 *	{
 *		... your code ...
 *		return KeQueryTimeIncrement_original();
 *	}
 *
 *	DriverEntry:	KeQueryTimeIncrement_detour.symbol = "KeQueryTimeIncrement";
 *			status = kdetour_attach(&KeQueryTimeIncrement_detour);
 *	DriverUnload:	kdetour_stop(KDETOUR_IPI, KDETOUR_FOR_EVER, NULL);
 *
 * Every call returns an NTSTATUS, and is made at PASSIVE_LEVEL: at a higher IRQL it returns STATUS_INVALID_LEVEL and does nothing else.
 * Calls are made from any thread, one at a time; others wait. No spin lock, and no lock that the target or the detour could need, may be
 * held. From inside a detour everything may be called (at PASSIVE_LEVEL) but what would wait for that very call: its own detach with
 * waiting, and kdetour_stop.
 *
 * Attaching and detaching take up to 8 KB of a kernel thread's stack on i386, which has 12, and 10 on x64: call them where little is on it.
 *
 * Nothing here gets round what protects the kernel: code under PatchGuard's care, and all code where the hypervisor protects it (HVCI), is
 * refused, by name.
 */
#ifndef KDETOUR_NT_H
#define KDETOUR_NT_H

#ifdef KDETOUR_H
#error "kdetour.h is for Linux and for programs: a driver includes kdetour_nt.h alone"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* How a set of detours is written: all of it at one moment. */
enum kdetour_protocol {
	/* All processors are interrupted and parked at IPI_LEVEL, by KeIpiGenericCall. */
	KDETOUR_IPI = 0,
	/* All other processors are parked at DISPATCH_LEVEL, by one targeted DPC of high importance each; interrupts are off on each. */
	KDETOUR_DPC = 1,
	/* Nobody is parked; interrupts are off at HIGH_LEVEL. Refused (KDETOUR_NOT_ALONE) where more than one processor is active. */
	KDETOUR_LOCAL = 2
};

/*
 * What you accept. Parking processors tells nothing about threads that were preempted inside the first instructions of a target, and NT
 * has nothing that would wait for them. So a jump over several instructions is refused (KDETOUR_NO_GRACE_PERIOD), unless you accept that a
 * thread may stand there, or know that none does.
 */
#define KDETOUR_NO_RISK 0u
#define KDETOUR_ACCEPT_PREEMPTED 1u

/* Why something failed; nothing has been written then, but see KDETOUR_BUSY. The numbers are those of kdetour.h. */
enum kdetour_code {
	KDETOUR_OK = 0,
	KDETOUR_NULL = 1,		/* STATUS_INVALID_PARAMETER: no target, no detour, no set */
	KDETOUR_UNKNOWN_SYMBOL = 2,	/* STATUS_PROCEDURE_NOT_FOUND: nothing of this name is exported */
	KDETOUR_UNREADABLE = 3,		/* STATUS_ACCESS_VIOLATION: no image is loaded there */
	KDETOUR_NOT_CODE = 4,		/* STATUS_INVALID_ADDRESS: not in a section with code */
	KDETOUR_NOT_FUNCTION = 5,	/* STATUS_INVALID_ADDRESS: not the entry of a function */
	KDETOUR_FORBIDDEN = 6,		/* STATUS_ACCESS_DENIED: the target is in the driver's own room for slots */
	KDETOUR_REFUSED = 7,		/* STATUS_NOT_SUPPORTED: the survey refuses; the text says why */
	KDETOUR_ALREADY_DETOURED = 8,	/* STATUS_ADDRESS_ALREADY_EXISTS: this struct is attached; windows meet */
	KDETOUR_CHANGED = 9,		/* STATUS_REVISION_MISMATCH: somebody else changed the bytes */
	KDETOUR_NO_SLOT = 10,		/* STATUS_INSUFFICIENT_RESOURCES: no room for a trampoline */
	KDETOUR_NOT_ATTACHED = 11,	/* STATUS_NOT_FOUND: nothing to detach */
	KDETOUR_BUSY = 13,		/* STATUS_DEVICE_BUSY: detached, but calls are still inside the detour */
	KDETOUR_OUT_OF_MEMORY = 15,	/* STATUS_INSUFFICIENT_RESOURCES */
	KDETOUR_HOST = 16,		/* what NT has answered */
	KDETOUR_INSIDE = 20,		/* STATUS_POSSIBLE_DEADLOCK: called from inside a call of kdetour's own */
	KDETOUR_ARGUMENT = 21,		/* STATUS_INVALID_PARAMETER: no such protocol; a struct twice in a set; a place is misaligned */
	KDETOUR_ATOMIC = 19,		/* STATUS_INVALID_LEVEL: called above PASSIVE_LEVEL */
	KDETOUR_TEXT_BUSY = 14,		/* STATUS_RETRY: another commit is on its way; a processor has come meanwhile */
	KDETOUR_NOT_ALONE = 23,		/* STATUS_NOT_SUPPORTED: local only; another processor is active */
	KDETOUR_SHADOW_STACK = 28,	/* STATUS_NOT_SUPPORTED: kernel threads have shadow stacks */
	KDETOUR_PROCESSOR_NOT_REACHED = 34,	/* STATUS_IO_TIMEOUT: a processor did not park in time; try again */
	KDETOUR_PATCH_GUARD = 35,	/* STATUS_ACCESS_DENIED: the kernel guards the target's code */
	KDETOUR_CODE_INTEGRITY = 36,	/* STATUS_ACCESS_DENIED: the hypervisor protects all kernel code */
	KDETOUR_SESSION_SPACE = 37,	/* STATUS_INVALID_ADDRESS: not the same code in every process */
	KDETOUR_DISCARDABLE = 38,	/* STATUS_INVALID_ADDRESS: thrown away when its driver has been initialized */
	KDETOUR_PAGEABLE = 39,		/* STATUS_INVALID_ADDRESS: a patch would be lost with its page */
	KDETOUR_NO_GRACE_PERIOD = 40	/* STATUS_NOT_SUPPORTED: a jump over several instructions; see above */
};

/* The whole story of a failure. */
struct kdetour_error {
	int code;		/* enum kdetour_code */
	unsigned int index;	/* which detour of the set */
	ULONGLONG address;	/* what it is about, 0 if nothing in particular */
	char text[176];		/* in plain words */
};

/*
 * One detour, in nonpaged memory; made by KDETOUR. Zero what you do not set. Once attached it stays where it is, and unchanged, until it has
 * been detached with waiting: when neighbours come and go its original is written. From then on nothing of it is read or written any more.
 */
struct kdetour {
	const char *symbol;	/* an export of ntoskrnl.exe or hal.dll; NULL to give the target's address instead */
	void *target;		/* the target's entry; found out if symbol is given */
	void *detour;		/* your function, of the target's signature and calling convention */
	void **original;	/* receives the original, before the first call arrives and when it changes */
	volatile LONG *in_flight;	/* calls inside the detour; kept by KDETOUR. Without it detaching waits for no call that sleeps */
	void *reserved;
	ULONGLONG handle;	/* kdetour's own; 0 at first */
};

/*
 * Attaches a set of detours, all or none. `risk` is KDETOUR_NO_RISK or KDETOUR_ACCEPT_PREEMPTED; `error` may be NULL. Where it fails a call may
 * have come to a detour of the set, which then has to stay, with its `original` and `in_flight`, until kdetour_stop has succeeded.
 *
 * IRQL: PASSIVE_LEVEL. Nothing waits for the paging file or the registry: it may be called in the DriverEntry of a boot driver.
 */
NTSTATUS NTAPI kdetour_attach_all(struct kdetour *const *detours, unsigned int count, enum kdetour_protocol protocol,
				  unsigned int risk, struct kdetour_error *error);

/* For timeout_ms: */
#define KDETOUR_FOR_EVER 0u
#define KDETOUR_NO_WAIT 0xffffffffu

/*
 * Detaches a set of detours, all or none, then waits until no call is inside any of them. With a time-out: STATUS_DEVICE_BUSY if calls are
 * still inside when it has passed; the targets are as they were, but the driver must stay. Call again to go on waiting. The time is looked
 * at between visits of the processors: one on which no thread of the lowest priority runs makes it late.
 *
 * Targets of a driver that has been unloaded are let go, whatever becomes of the others.
 *
 * IRQL: PASSIVE_LEVEL.
 */
NTSTATUS NTAPI kdetour_detach_all(struct kdetour *const *detours, unsigned int count, enum kdetour_protocol protocol,
				  unsigned int timeout_ms, struct kdetour_error *error);

/*
 * For DriverUnload, and for a DriverEntry that fails: detaches what is still attached, waits until no call is inside any detour or
 * trampoline, and gives back all memory. What a call that is inside attaches while this waits is detached and waited for, too. If it fails,
 * which is so when the time is up, when somebody else has changed a patched target, or for want of memory, the driver must stay loaded. After
 * it has succeeded nothing of kdetour may be called.
 *
 * IRQL: PASSIVE_LEVEL.
 */
NTSTATUS NTAPI kdetour_stop(enum kdetour_protocol protocol, unsigned int timeout_ms, struct kdetour_error *error);

/* An export of ntoskrnl.exe or hal.dll; NULL if there is none of that name. IRQL: PASSIVE_LEVEL; NULL above. */
void *NTAPI kdetour_find(const char *name);

/* One detour, by KeIpiGenericCall, without a risk. IRQL: PASSIVE_LEVEL. */
static __inline NTSTATUS kdetour_attach(struct kdetour *detour)
{
	struct kdetour *set[1];

	set[0] = detour;
	return kdetour_attach_all(set, 1, KDETOUR_IPI, KDETOUR_NO_RISK, NULL);
}

/* The same; waits until no call is inside it. IRQL: PASSIVE_LEVEL. */
static __inline NTSTATUS kdetour_detach(struct kdetour *detour)
{
	struct kdetour *set[1];

	set[0] = detour;
	return kdetour_detach_all(set, 1, KDETOUR_IPI, KDETOUR_FOR_EVER, NULL);
}

/*
 * KDETOUR(target, return type, calling convention, (parameters), (arguments)) { body }
 *
 * Defines the detour function with your body, the function `target_original` through which the body calls the original, and the struct
 * `target_detour`: set its `symbol` or its `target`, and attach it. KDETOUR_VOID is for functions that return nothing. A function without
 * parameters has (VOID) and (). The calling convention is the target's: NTAPI for what NT exports, FASTCALL for few of these; it matters
 * on x86 alone.
 *
 * Calls are counted while they are inside, so that detaching can wait for them, however long the original sleeps. A call that an exception
 * ends is counted out, too, by __try and __finally, where the compiler has them: the WDK's, and clang for Windows' own targets. gcc has
 * not. What it compiles leaves such a call counted, and no detaching with waiting ends after that: do not detour functions there that raise
 * for their callers to handle, or do not unload.
 *
 * IRQL of the body: that of each call of the target.
 */
#define KDETOUR(target_, type_, call_, parameters_, arguments_)						\
	KDETOUR_PARTS_(target_, type_, call_, parameters_)						\
	static type_ call_ target_##_entered_ parameters_						\
	{												\
		type_ result_;										\
		InterlockedIncrement(&target_##_in_flight_);						\
		KDETOUR_TRY_ result_ = target_##_body_ arguments_;					\
		KDETOUR_FINALLY_ InterlockedDecrement(&target_##_in_flight_);				\
		KDETOUR_END_										\
		return result_;										\
	}												\
	KDETOUR_ORIGINAL_(target_, type_, parameters_)							\
	{												\
		return (*(target_##_function_ *volatile *)&target_##_original_) arguments_;		\
	}												\
	static type_ target_##_body_ parameters_

#define KDETOUR_VOID(target_, call_, parameters_, arguments_)						\
	KDETOUR_PARTS_(target_, void, call_, parameters_)						\
	static void call_ target_##_entered_ parameters_						\
	{												\
		InterlockedIncrement(&target_##_in_flight_);						\
		KDETOUR_TRY_ target_##_body_ arguments_;						\
		KDETOUR_FINALLY_ InterlockedDecrement(&target_##_in_flight_);				\
		KDETOUR_END_										\
	}												\
	KDETOUR_ORIGINAL_(target_, void, parameters_)							\
	{												\
		(*(target_##_function_ *volatile *)&target_##_original_) arguments_;			\
	}												\
	static void target_##_body_ parameters_

#ifdef _MSC_VER
#define KDETOUR_TRY_ __try {
#define KDETOUR_FINALLY_ } __finally {
#define KDETOUR_END_ }
#else
#define KDETOUR_TRY_
#define KDETOUR_FINALLY_
#define KDETOUR_END_
#endif

#define KDETOUR_PARTS_(target_, type_, call_, parameters_)						\
	typedef type_ call_ target_##_function_ parameters_;						\
	static void *target_##_original_;								\
	static volatile LONG target_##_in_flight_;							\
	static type_ target_##_body_ parameters_;							\
	static type_ call_ target_##_entered_ parameters_;						\
	static struct kdetour target_##_detour = {							\
		NULL, NULL, (void *)target_##_entered_, &target_##_original_, &target_##_in_flight_, NULL, 0	\
	};

/* Read anew for each call. */
#define KDETOUR_ORIGINAL_(target_, type_, parameters_)							\
	static __inline type_ target_##_original parameters_

#ifdef __cplusplus
}
#endif

#endif
