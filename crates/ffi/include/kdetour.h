/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * kdetour.h - detours of functions of running code: of a live Linux kernel, for modules; of a process, for programs and
 * libraries. The same calls in both. C89, and C++.
 *
 * A module depends on kdetour.ko: load that first. A program links libkdetour (pkg-config kdetour). The least that works:
 *
 *	KDETOUR(vfs_read, ssize_t, (struct file *f, char __user *b, size_t n, loff_t *p), (f, b, n, p))
 *	{
 *		... your code ...
 *		return vfs_read_original(f, b, n, p);
 *	}
 *
 *	begin:	return kdetour_attach(&vfs_read_detour);
 *	end:	kdetour_detach(&vfs_read_detour);
 *
 * In a module, every call here but kdetour_patch_write may sleep: call it in process context, with no lock held that the target, the
 * detour or RCU could need. Where the kernel can tell that sleeping is forbidden the call is refused. In a program, call from
 * any thread, but from no signal handler, and from no child of vfork. From inside a detour everything may be called (in a module
 * where sleeping is allowed) but a detach of that detour that waits; it is refused.
 *
 * The manual, in the project's docs: kernel/ has a page for each call in a module, contexts, locks, errnos, examples; c.md is about
 * programs.
 *
 * Several clients may detour one target. The youngest detour is called first, its original is the next older one, and
 * that of the oldest the trampoline; they may be detached in any order, also under load. One that is attached again is the
 * youngest. So originals change while detours are attached: read yours anew for each
 * call, right in front of it. A pointer that leads to a detour (KDETOUR_POINTER) is read so, too, by whoever calls through it.
 */
#ifndef KDETOUR_H
#define KDETOUR_H

#ifdef __KERNEL__
#include <linux/build_bug.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/static_call.h>
#include <linux/types.h>
#else
#include <stddef.h>
#endif

#ifdef __cplusplus
extern "C" {
#define KDETOUR_INLINE static inline
#else
#define KDETOUR_INLINE static __inline__
#endif

/* C89 has none, nor has C++98. */
#if defined(__cplusplus) && __cplusplus < 201103L
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wlong-long"
#endif
__extension__ typedef unsigned long long kdetour_u64;
#if defined(__cplusplus) && __cplusplus < 201103L
#pragma GCC diagnostic pop
#endif

/* How a set of detours is written while everything runs. */
enum kdetour_protocol {
	/* Stops nobody: a breakpoint first, then the rest once nobody stands inside. */
	KDETOUR_LIVE = 0,
	/* Parks all other processors, or threads, for a moment: the whole set takes effect at once. */
	KDETOUR_RENDEZVOUS = 1,
	/* Parks nobody, since there is nobody: for a machine that runs on one processor, a process of one thread. */
	KDETOUR_LOCAL = 2,
	/* Processes: stops nobody and lets nobody trap. What kdetour_attach and kdetour_detach use there. */
	KDETOUR_EXCHANGE = 3
};

/* By what calls of the target reach the detour. methods.md, in the docs, says when which is right, and what each costs. */
enum kdetour_method {
	/* A jump over the target's first instructions: whoever calls the function, in whatever way. What is right nearly always. */
	KDETOUR_JUMP = 0,
	/*
	 * By one pointer, which is exchanged at one moment: whoever calls through it, and nobody else. `target` is the address of the
	 * pointer, the original is the function that it led to. It may lie in read-only data; docs/pointers.md.
	 */
	KDETOUR_POINTER = 1,
	/*
	 * One byte becomes an INT3, and each call traps. For functions that no jump fits into. By every protocol but KDETOUR_LOCAL.
	 * In a process no thread may block SIGTRAP (KDETOUR_TRAP_BLOCKED).
	 */
	KDETOUR_INT3 = 2,
	/*
	 * A debug register holds the target's address, and each call traps: no byte of the text changes. There are four, which
	 * debuggers and perf use too (KDETOUR_NO_DEBUG_REGISTER). In a module calls from NMIs, and from what handles a debug exception, are
	 * missed; in a process those of threads that block SIGTRAP later on. By every protocol but KDETOUR_LOCAL.
	 */
	KDETOUR_DEBUG_REGISTER = 3
};

/* Why something failed; nothing has been written then, but see KDETOUR_BUSY and KDETOUR_OUT_OF_MEMORY of a detach. What a caller gets is an errno, see kdetour_attach_all. */
enum kdetour_code {
	KDETOUR_OK = 0,
	KDETOUR_NULL = 1,		/* -EINVAL: no target or no detour; a pointer that is null */
	KDETOUR_UNKNOWN_SYMBOL = 2,	/* -ENOENT: no function has this name; no such image, or import */
	KDETOUR_UNREADABLE = 3,		/* -EFAULT: nothing is mapped there */
	KDETOUR_NOT_CODE = 4,		/* -EINVAL: not the text of the kernel or a module; not executable */
	KDETOUR_NOT_FUNCTION = 5,	/* -EINVAL: not the entry of a function; a pointer that is not bound yet; a forwarded export */
	KDETOUR_FORBIDDEN = 6,		/* -EPERM: kprobe blacklist, entry code, shared mappings, kdetour's own; no place for a pointer */
	KDETOUR_REFUSED = 7,		/* -EOPNOTSUPP: the survey refuses; the text says why */
	KDETOUR_ALREADY_DETOURED = 8,	/* -EEXIST: this struct is attached or planned, or this function to this target; or windows meet */
	KDETOUR_CHANGED = 9,		/* -ESTALE (Windows: -EILSEQ): somebody else changed the bytes, or the pointer */
	KDETOUR_NO_SLOT = 10,		/* -ENOSPC: no room for a trampoline */
	KDETOUR_NOT_ATTACHED = 11,	/* -EINVAL: nothing to detach */
	KDETOUR_THREAD_IN_WINDOW = 12,	/* -EAGAIN: rendezvous, local; try again, or use KDETOUR_LIVE */
	KDETOUR_BUSY = 13,		/* -EBUSY: detached, but calls are still inside the detour */
	KDETOUR_TEXT_BUSY = 14,		/* -EAGAIN: rendezvous, local; somebody else is patching */
	KDETOUR_OUT_OF_MEMORY = 15,	/* -ENOMEM */
	KDETOUR_HOST = 16,		/* -EIO: the kernel refused */
	KDETOUR_PREEMPTIBLE = 17,	/* -EOPNOTSUPP: rendezvous, local, with preempt=full or PREEMPT_RT; use KDETOUR_LIVE */
	KDETOUR_AMBIGUOUS_SYMBOL = 18,	/* -ENOTUNIQ: several functions have this name; give the target's address */
	KDETOUR_ATOMIC = 19,		/* -EPERM: called where sleeping is forbidden */
	KDETOUR_INSIDE = 20,		/* -EDEADLK: called from inside what it would wait for */
	KDETOUR_ARGUMENT = 21,		/* -EINVAL: no such protocol or method; the owner is no module; drains, and was something else; a place is misaligned; no PE image */
	KDETOUR_LOCKED_DOWN = 22,	/* -EPERM: lockdown forbids patching; what is attached can be detached */
	KDETOUR_NOT_ALONE = 23,		/* -EOPNOTSUPP: local only; another processor is online, another thread runs */
	KDETOUR_NO_DEBUG_REGISTER = 32,	/* -ENOSPC: all four debug registers are in use */
	KDETOUR_DEBUG_REGISTERS_MISSING = 33,	/* -EOPNOTSUPP: this machine or its kernel has none */
	/* Processes only: */
	KDETOUR_NOT_EXCHANGEABLE = 24,	/* -EOPNOTSUPP: exchange; the page cannot be exchanged: take another protocol */
	KDETOUR_TRAP_BLOCKED = 25,	/* -EBUSY: live; a thread, or a signal handler, blocks SIGTRAP */
	KDETOUR_TRAP_HANDLER = 26,	/* -EBUSY: live; somebody else has taken SIGTRAP's handler */
	KDETOUR_THREAD_NOT_REACHED = 27,	/* -EAGAIN: a thread blocks SIGURG, is stopped, or was not scheduled */
	KDETOUR_SHADOW_STACK = 28,	/* -EOPNOTSUPP: the thread has a shadow stack */
	KDETOUR_DEBUG_REGISTERS_FORBIDDEN = 31,	/* -EPERM: debug registers; perf_event_paranoid, or a sandbox */
	/* Windows drivers only: */
	KDETOUR_PROCESSOR_NOT_REACHED = 34,	/* -EAGAIN: a processor did not park in time */
	KDETOUR_PATCH_GUARD = 35,	/* -EOPNOTSUPP: kernel patch protection guards the target */
	KDETOUR_CODE_INTEGRITY = 36,	/* -EOPNOTSUPP: the hypervisor protects all kernel code */
	KDETOUR_SESSION_SPACE = 37,	/* -EOPNOTSUPP: the target is in session space */
	KDETOUR_DISCARDABLE = 38,	/* -EOPNOTSUPP: the target is in a section that is thrown away */
	KDETOUR_PAGEABLE = 39,		/* -EOPNOTSUPP: the target is in a section that is paged out */
	KDETOUR_NO_GRACE_PERIOD = 40	/* -EOPNOTSUPP: a jump over several instructions, where nothing waits for preempted threads */
};

/* The whole story of a failure. */
struct kdetour_error {
	int code;		/* enum kdetour_code */
	unsigned int index;	/* which detour of the set */
	kdetour_u64 address;	/* what it is about, 0 if nothing in particular */
	char text[176];		/* in plain words */
};

/*
 * One detour. Statically made by KDETOUR; zero what you do not set. Once attached it stays where it is, and unchanged, until
 * it has been detached with waiting: when neighbours come and go its original is written.
 */
struct kdetour {
	const char *symbol;			/* the target's name; NULL to give its address instead */
	void *target;				/* the target's entry, or where the pointer is; found out if symbol is given */
	void *detour;				/* your function, of the target's signature */
	void **original;			/* receives the original, before the first call arrives and when it changes */
#ifdef __KERNEL__
	struct static_call_key *call;		/* the same for a static call; kept by KDETOUR */
	void *call_trampoline;			/* and its STATIC_CALL_TRAMP_ADDR */
	/*
	 * Calls inside the detour; kept by KDETOUR. Without it (NULL) no call may sleep inside while the detour goes, and
	 * with PREEMPT_RT whoever takes a spinlock sleeps.
	 */
	unsigned long __percpu *in_flight;
	struct module *owner;			/* THIS_MODULE */
	struct kdetour_trampoline *trampoline;	/* in the client's own text: kernel_detours.h; else NULL */
#endif
	int method;				/* enum kdetour_method */
	kdetour_u64 handle;			/* kdetour's own; 0 at first */
};

/*
 * Attaches a set of detours, all or none. `error` may be NULL; in a module a failure is also logged.
 * Returns 0 or the errno named at the code above. Where it fails after a call has come to a detour of the set, it waits in a module for that
 * call to leave; in a process the detour drains, its library is kept, and what its `original` points to has to stay, too.
 *
 * Context of a module: process; may sleep (GFP_KERNEL, grace periods). Takes kdetour's mutex; then kprobe_mutex, cpus_read_lock and
 * text_mutex (live) or cpus_read_lock (rendezvous, local), and cpus_read_lock for a static call. None of them may be held.
 */
int kdetour_attach_all(struct kdetour *const *detours, unsigned int count, enum kdetour_protocol protocol,
		       struct kdetour_error *error);

/* For timeout_ms: */
#define KDETOUR_FOR_EVER 0u
#define KDETOUR_NO_WAIT 0xffffffffu

/*
 * Detaches a set of detours, all or none, then waits until no call is inside any of them, so that their module or library may
 * go.
 *
 * KDETOUR_FOR_EVER: in a module it returns only when it may, even if somebody else's probe stands on a jump and has to be removed
 * first; it tells the log what it waits for. What fails at once is a detour that is not attached, and what the caller
 * does wrong: KDETOUR_NULL, KDETOUR_NOT_ATTACHED, KDETOUR_ATOMIC, KDETOUR_INSIDE, KDETOUR_ARGUMENT. In a process it waits for ever
 * for calls that are inside, and for nothing else; and what fails while it waits, KDETOUR_INSIDE too, has been detached.
 *
 * A time-out: -EBUSY if calls are still inside when it has passed. The targets are as they were, but the module
 * must stay; call again to go on waiting. Any other failure is returned at once; all detours stay attached then, but for
 * KDETOUR_OUT_OF_MEMORY and for a KDETOUR_NOT_ATTACHED of a target whose module has gone, which keeps no other detour.
 *
 * KDETOUR_NO_WAIT: as a time-out, but 0 as soon as the targets are as they were. The detours may be attached again
 * at once, which is what this is for: the trampolines are kept, and nothing is planned anew. Detach once more, with
 * waiting, before the module goes.
 *
 * Context of a module: process; may sleep, for as long as a call is inside. Takes what kdetour_attach_all takes; kdetour's mutex
 * is not held while it waits. No lock may be held for which a call that is inside could wait, nor an RCU read lock.
 */
int kdetour_detach_all(struct kdetour *const *detours, unsigned int count, enum kdetour_protocol protocol,
		       unsigned int timeout_ms, struct kdetour_error *error);

#ifdef __KERNEL__
/*
 * The address of a function of the kernel or a module, 0 if there is none of that name. Any of several.
 *
 * Context: process; may sleep. Takes no lock of kdetour's.
 */
unsigned long kdetour_find(const char *symbol);
#else
/* The address of a function, as the dynamic loader finds it by its name; NULL if there is none. */
void *kdetour_find(const char *symbol);
#endif

/*
 * What a survey of `target` finds, as lines of text (docs/kernel/debugfs.md has them). Returns the text's length.
 *
 * Context of a module: process; may sleep. Takes kdetour's mutex and text_mutex.
 */
size_t kdetour_survey(void *target, char *text, size_t size);

#ifdef __KERNEL__
/* One detour of the list of all. */
struct kdetour_live {
	kdetour_u64 handle;			/* as in its struct kdetour, which tells whose it is */
	kdetour_u64 target;			/* the target's entry, or where the pointer is */
	kdetour_u64 detour;			/* where calls are sent: behind a landing pad */
	kdetour_u64 calls;			/* inside the detour now, as far as it counts them */
	int method;				/* enum kdetour_method */
	int attached;				/* else it drains, or is planned */
	char owner[56];				/* the name of the module whose detour it is */
};

/*
 * The first detour at *place of the list or behind it, whoever's it is; *place moves behind it, and begins at 0. False if there
 * is no more. Between two calls detours may come and go; one that is there all the time is told once.
 *
 * Context: process; may sleep. Takes kdetour's mutex.
 */
bool kdetour_next(size_t *place, struct kdetour_live *live);

/*
 * The length of the instruction whose bytes are at `bytes`, 0 if they are none, or cut. `address` is where it would run, and *leads_to
 * where it jumps to, calls, or has its operand relative to RIP; 0 if nowhere. `leads_to` may be NULL.
 *
 * Context: any, NMI included. Takes no lock, allocates nothing, reads nothing but `bytes`.
 */
size_t kdetour_length(const void *bytes, size_t size, kdetour_u64 address, kdetour_u64 *leads_to);

#define KDETOUR_USUAL_ KDETOUR_LIVE
#else
#define KDETOUR_USUAL_ KDETOUR_EXCHANGE
#endif

/* Attaches one detour, disturbing nobody. Context: as kdetour_attach_all. */
KDETOUR_INLINE int kdetour_attach(struct kdetour *detour)
{
	return kdetour_attach_all(&detour, 1, KDETOUR_USUAL_, NULL);
}

/* Detaches one detour, disturbing nobody, and waits until no call is inside it. Context: as kdetour_detach_all. */
KDETOUR_INLINE int kdetour_detach(struct kdetour *detour)
{
	return kdetour_detach_all(&detour, 1, KDETOUR_USUAL_, KDETOUR_FOR_EVER, NULL);
}

#ifndef __KERNEL__
/*
 * Where the pointer is through which an image calls a function that it imports, for KDETOUR_POINTER. `image` is the path or the file
 * name of a shared object; NULL is the program itself. Nearly always there is one, `nth` 0; NULL if there are no more. One
 * that the loader has not bound yet is bound. Its type is that of a pointer to the function.
 */
void **kdetour_import(const char *image, const char *symbol, unsigned int nth, struct kdetour_error *error);

/*
 * The same of a PE image: Windows' program or library in a Linux process, by whatever loader. `image` is its base, its HMODULE. `library`
 * is the one that it imports from, with its ".dll"; NULL is any. `symbol` may be an ordinal: "#12". Functions of 64-bit images take their
 * arguments as Windows has it: write __attribute__((ms_abi)) at the detour and at the original's type.
 */
void **kdetour_pe_import(const void *image, const char *library, const char *symbol, unsigned int nth, struct kdetour_error *error);

/*
 * Has an export of a PE image lead to a pointer, for KDETOUR_POINTER, and by it to its function: who looks the function up from now on calls
 * it through that pointer, for ever, and reaches detours of it as long as there are any. NULL, and an error, if that cannot be.
 * The image stays where it is until the last restore, and until detours of the pointer are gone. Each kdetour_pe_export that
 * succeeded needs one kdetour_pe_restore; the last one has the export lead to its function again, those before change nothing.
 */
void **kdetour_pe_export(const void *image, const char *symbol, struct kdetour_error *error);
int kdetour_pe_restore(void **pointer, struct kdetour_error *error);
#endif

/*
 * Plan and commit apart: what kdetour_plan says is to be written may be written at a moment of your own: with interrupts off, in
 * a handler, with all other processors or threads parked. All of it is in this record: no pointer into kdetour.
 */
#define KDETOUR_BOUNDARIES 14
struct kdetour_patch {
	kdetour_u64 address;			/* the window: the first byte that changes */
	kdetour_u64 trampoline;			/* the original, callable from now on */
	kdetour_u64 detour;
	kdetour_u64 resume[KDETOUR_BOUNDARIES];	/* for each displaced instruction its copy */
	unsigned char boundary[KDETOUR_BOUNDARIES];	/* and its distance from the window; nobody may stand there but on 0 */
	unsigned char shape;			/* 0 WholeInstruction, 1 Jump5Kept, ...: the order of docs/shapes/README.md */
	unsigned char length;			/* bytes that change */
	unsigned char expected_length;		/* bytes that have to be what they were: whole instructions */
	unsigned char boundary_count;
	unsigned char expected[30];		/* what is there now */
	unsigned char patched[16];		/* what is to be there: `length` bytes */
};

/*
 * Does all but the write: surveys, plans, takes a slot and fills it, and tells *original the trampoline. `protocol` says by whom it
 * will be written: KDETOUR_LOCAL for yourself. `patch` receives the record then; for other protocols it is NULL.
 *
 * Afterwards: kdetour_attach_all writes it without planning anything anew; or you do, and then call kdetour_written; or
 * kdetour_detach_all gives back what was taken, and gives KDETOUR_ALREADY_DETOURED if you have written it and not said so.
 *
 * Context of a module: process; may sleep. Takes kdetour's mutex, and what kdetour_attach_all takes to plan. From then on kdetour
 * has the window's pages mapped once more, writable and not executable, until it is attached or given back.
 */
int kdetour_plan(struct kdetour *detour, enum kdetour_protocol protocol, struct kdetour_patch *patch,
		 struct kdetour_error *error);

/*
 * Compares what is there with what the record expects, and writes the patch; with `back`, what was there before. Any difference,
 * also a kprobe that came meanwhile, and nothing is written. It may be written and taken back again until you have called
 * kdetour_written.
 *
 * You vouch that nobody runs, stands or returns inside the window meanwhile, and that every other processor executes a serializing
 * instruction before it runs the window again: in a module sync_core(), in a handler that your IPI runs, in the callback of your
 * stop_machine; or afterwards kdetour_sync. In a program this call does it for all.
 *
 * Context of a module: any, NMI included, with interrupts off or on. Takes no lock, allocates nothing, never sleeps; this processor is
 * serialized.
 */
int kdetour_patch_write(const struct kdetour_patch *patch, int back, struct kdetour_error *error);

/*
 * Every processor executes a serializing instruction before it returns.
 *
 * Context of a module: process; may sleep. Takes cpus_read_lock.
 */
int kdetour_sync(struct kdetour_error *error);

/*
 * The patch of a planned detour has been written, and every processor has fetched the bytes anew: it is attached now, as any
 * other. The record is of no use any more.
 *
 * Context of a module: as kdetour_plan.
 */
int kdetour_written(struct kdetour *detour, struct kdetour_error *error);

/*
 * KDETOUR(target, return type, (parameters), (arguments)) { body }
 *
 * Defines the detour function with your body, the function `target_original` through which the body calls the
 * original, and the struct `target_detour` to attach. KDETOUR_VOID is for functions that return nothing. A function without
 * parameters has (void) and ().
 *
 * In a module the original is called by a direct call of the trampoline, patched in when the detour is attached; and calls are
 * counted while they are inside, so that detaching can wait for them, however long the original sleeps.
 *
 * Context of the body: that of each call of the target, NMI included. It must not be reached from the target's own
 * callees unless it can bear that. It must leave by returning, and so must the original: a call of do_exit or the like
 * is never over, and detaching would wait for it for ever. The same holds for functions in which tasks sleep without
 * end, such as schedule or the main loop of a kernel thread.
 */
#ifdef __KERNEL__
#define KDETOUR(target_, type_, parameters_, arguments_)						\
	static_assert(!__builtin_types_compatible_p(type_, void), "use KDETOUR_VOID");			\
	KDETOUR_PARTS_(target_, type_, parameters_, arguments_)						\
	static notrace type_ target_##_entered_ parameters_						\
	{												\
		type_ result_;										\
		this_cpu_inc(target_##_in_flight_);							\
		result_ = target_##_body_ arguments_;							\
		this_cpu_dec(target_##_in_flight_);							\
		return result_;										\
	}												\
	KDETOUR_STRUCT_(target_)									\
	static __always_inline type_ target_##_body_ parameters_

#define KDETOUR_VOID(target_, parameters_, arguments_)							\
	KDETOUR_PARTS_(target_, void, parameters_, arguments_)						\
	static notrace void target_##_entered_ parameters_						\
	{												\
		this_cpu_inc(target_##_in_flight_);							\
		target_##_body_ arguments_;								\
		this_cpu_dec(target_##_in_flight_);							\
	}												\
	KDETOUR_STRUCT_(target_)									\
	static __always_inline void target_##_body_ parameters_

/*
 * `target_original` for inline assembly of the body, as a string: "call " KDETOUR_ORIGINAL_SYMBOL(target). The operands have to say where
 * the arguments are, and what a function may change.
 *
 * Context: that of target_original.
 */
#define KDETOUR_ORIGINAL_SYMBOL(target_) STATIC_CALL_TRAMP_STR(target_##_call_)

#define KDETOUR_PARTS_(target_, type_, parameters_, arguments_)						\
	static DEFINE_PER_CPU(unsigned long, target_##_in_flight_);					\
	typedef type_ target_##_function_ parameters_;							\
	DEFINE_STATIC_CALL_NULL(target_##_call_, target_##_function_);					\
	static __always_inline type_ target_##_original parameters_					\
	{												\
		return static_call(target_##_call_) arguments_;						\
	}												\
	static __always_inline type_ target_##_body_ parameters_;

#define KDETOUR_STRUCT_(target_)									\
	static struct kdetour target_##_detour = {							\
		.symbol = #target_,									\
		.detour = (void *)target_##_entered_,							\
		.call = &STATIC_CALL_KEY(target_##_call_),						\
		.call_trampoline = STATIC_CALL_TRAMP_ADDR(target_##_call_),				\
		.in_flight = &target_##_in_flight_,							\
		.owner = THIS_MODULE,									\
	};

#else

#define KDETOUR(target_, type_, parameters_, arguments_)						\
	KDETOUR_PARTS_(target_, type_, parameters_)							\
	KDETOUR_INLINE type_ target_##_original parameters_						\
	{												\
		return KDETOUR_ORIGINAL_(target_) arguments_;						\
	}												\
	static type_ target_##_entered_ parameters_

#define KDETOUR_VOID(target_, parameters_, arguments_)							\
	KDETOUR_PARTS_(target_, void, parameters_)							\
	KDETOUR_INLINE void target_##_original parameters_						\
	{												\
		KDETOUR_ORIGINAL_(target_) arguments_;							\
	}												\
	static void target_##_entered_ parameters_

#define KDETOUR_PARTS_(target_, type_, parameters_)							\
	typedef type_ target_##_function_ parameters_;							\
	static void *target_##_original_;								\
	static type_ target_##_entered_ parameters_;							\
	static struct kdetour target_##_detour = {							\
		#target_, NULL, __extension__ (void *)target_##_entered_, &target_##_original_, 0, 0,	\
	};

/* Read anew for each call. */
#define KDETOUR_ORIGINAL_(target_)									\
	(__extension__ (target_##_function_ *)*(void *volatile *)&target_##_original_)

#endif

#ifdef __cplusplus
}
#endif

#endif
