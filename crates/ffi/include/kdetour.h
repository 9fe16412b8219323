/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * kdetour.h - detours of functions of a live Linux kernel, for modules.
 *
 * A module that uses this depends on kdetour.ko; load that first. The least that works:
 *
 *	KDETOUR(vfs_read, ssize_t, (struct file *f, char __user *b, size_t n, loff_t *p), (f, b, n, p))
 *	{
 *		... your code ...
 *		return vfs_read_original(f, b, n, p);
 *	}
 *
 *	init:	return kdetour_attach(&vfs_read_detour);
 *	exit:	kdetour_detach(&vfs_read_detour);
 *
 * Every call here but kdetour_find may sleep: call it in process context, with no lock held that the target, the detour
 * or RCU could need. Where the kernel can tell that sleeping is forbidden the call is refused. From inside a detour
 * everything may be called where sleeping is allowed, but a detach of that detour that waits; it is refused.
 *
 * The manual has a page for each call, contexts, locks, errnos, examples: docs/kernel/ of the project.
 *
 * Several modules may detour one target. The youngest detour is called first, its original is the next older one, and
 * that of the oldest the trampoline; they may be detached in any order, also under load. One that is attached again is the
 * youngest. So originals change while detours are attached: read yours anew for each
 * call, right in front of it.
 */
#ifndef KDETOUR_H
#define KDETOUR_H

#ifndef __KERNEL__
#error "kdetour.h is for Linux kernel modules; for a process use the Rust crate kdetour"
#endif

#include <linux/build_bug.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/static_call.h>
#include <linux/types.h>

/* How a set of detours is written while the kernel runs. */
enum kdetour_protocol {
	/* Stops no processor: a breakpoint first, then the rest once nobody stands inside. */
	KDETOUR_LIVE = 0,
	/* Parks all other processors for a moment: the whole set takes effect at once. */
	KDETOUR_RENDEZVOUS = 1,
	/* Parks nobody, since there is nobody: as KDETOUR_RENDEZVOUS, for a machine that runs on one processor. */
	KDETOUR_LOCAL = 2,
};

/* Why something failed; nothing has been written then, but see KDETOUR_BUSY and KDETOUR_OUT_OF_MEMORY of a detach. What a caller gets is an errno, see kdetour_attach_all. */
enum kdetour_code {
	KDETOUR_OK = 0,
	KDETOUR_NULL = 1,		/* -EINVAL: no target or no detour */
	KDETOUR_UNKNOWN_SYMBOL = 2,	/* -ENOENT: no function has this name */
	KDETOUR_UNREADABLE = 3,		/* -EFAULT: nothing is mapped there */
	KDETOUR_NOT_CODE = 4,		/* -EINVAL: not the text of the kernel or a module */
	KDETOUR_NOT_FUNCTION = 5,	/* -EINVAL: not the entry of a function */
	KDETOUR_FORBIDDEN = 6,		/* -EPERM: kprobe blacklist, entry code, kdetour's own */
	KDETOUR_REFUSED = 7,		/* -EOPNOTSUPP: the survey refuses; the text says why */
	KDETOUR_ALREADY_DETOURED = 8,	/* -EEXIST: this struct is attached, or this function to this target; or windows meet */
	KDETOUR_CHANGED = 9,		/* -ESTALE: somebody else changed the bytes */
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
	KDETOUR_ARGUMENT = 21,		/* -EINVAL: no such protocol; the owner is no module; drains, and was something else */
	KDETOUR_LOCKED_DOWN = 22,	/* -EPERM: lockdown forbids patching; what is attached can be detached */
	KDETOUR_NOT_ALONE = 23,		/* -EOPNOTSUPP: local only; another processor is online */
};

/* The whole story of a failure. */
struct kdetour_error {
	__s32 code;		/* enum kdetour_code */
	__u32 index;		/* which detour of the set */
	__u64 address;		/* what it is about, 0 if nothing in particular */
	char text[176];		/* in plain words */
};

/*
 * One detour. Statically made by KDETOUR; zero what you do not set. Once attached it stays where it is, and unchanged, until
 * it has been detached with waiting: when neighbours come and go its original is written.
 */
struct kdetour {
	const char *symbol;			/* the target's name; NULL to give its address instead */
	void *target;				/* the target's entry; found out if symbol is given */
	void *detour;				/* your function, of the target's signature */
	void **original;			/* receives the original, before the first call arrives and when it changes */
	struct static_call_key *call;		/* the same for a static call; kept by KDETOUR */
	void *call_trampoline;			/* and its STATIC_CALL_TRAMP_ADDR */
	/*
	 * Calls inside the detour; kept by KDETOUR. Without it (NULL) no call may sleep inside while the detour goes, and
	 * with PREEMPT_RT whoever takes a spinlock sleeps.
	 */
	unsigned long __percpu *in_flight;
	struct module *owner;			/* THIS_MODULE */
	__u64 handle;				/* kdetour's own; 0 at first */
};

/*
 * Attaches a set of detours, all or none. `error` may be NULL; a failure is also logged.
 * Returns 0 or the errno named at the code above.
 *
 * Context: process; may sleep (GFP_KERNEL, grace periods). Takes kdetour's mutex; then kprobe_mutex,
 * cpus_read_lock and text_mutex (live) or cpus_read_lock (rendezvous, local), and cpus_read_lock for a static call. None of them may
 * be held.
 */
int kdetour_attach_all(struct kdetour *const *detours, unsigned int count, enum kdetour_protocol protocol,
		       struct kdetour_error *error);

/* For timeout_ms: */
#define KDETOUR_FOR_EVER 0u
#define KDETOUR_NO_WAIT 0xffffffffu

/*
 * Detaches a set of detours, all or none, then waits until no call is inside any of them, so that their module may
 * go.
 *
 * KDETOUR_FOR_EVER: returns only when it may, even if somebody else's probe stands on a jump and has to be removed
 * first; it tells the log what it waits for. What fails at once is a detour that is not attached, and what the caller
 * does wrong: KDETOUR_NULL, KDETOUR_NOT_ATTACHED, KDETOUR_ATOMIC, KDETOUR_INSIDE, KDETOUR_ARGUMENT.
 *
 * A time-out: -EBUSY if calls are still inside when it has passed. The targets are as they were, but the module
 * must stay; call again to go on waiting. Any other failure is returned at once; all detours stay attached then, but for
 * KDETOUR_OUT_OF_MEMORY and for a KDETOUR_NOT_ATTACHED of a target whose module has gone, which keeps no other detour.
 *
 * KDETOUR_NO_WAIT: as a time-out, but 0 as soon as the targets are as they were. The detours may be attached again
 * at once, which is what this is for: the trampolines are kept, and nothing is planned anew. Detach once more, with
 * waiting, before the module goes.
 *
 * Context: process; may sleep, for as long as a call is inside. Takes what kdetour_attach_all takes; kdetour's mutex is
 * not held while it waits. No lock may be held for which a call that is inside could wait, nor an RCU read lock.
 */
int kdetour_detach_all(struct kdetour *const *detours, unsigned int count, enum kdetour_protocol protocol,
		       unsigned int timeout_ms, struct kdetour_error *error);

/*
 * The address of a function of the kernel or a module, 0 if there is none of that name. Any of several.
 *
 * Context: process; may sleep. Takes no lock of kdetour's.
 */
unsigned long kdetour_find(const char *symbol);

/*
 * What a survey of `target` finds, as lines of text (see the file `survey` in debugfs). Returns the text's length.
 *
 * Context: process; may sleep. Takes kdetour's mutex and text_mutex.
 */
size_t kdetour_survey(void *target, char *text, size_t size);

/* Attaches one detour, live. Context: as kdetour_attach_all. */
static inline int kdetour_attach(struct kdetour *detour)
{
	return kdetour_attach_all(&detour, 1, KDETOUR_LIVE, NULL);
}

/* Detaches one detour, live, and waits until no call is inside it. Context: as kdetour_detach_all. */
static inline int kdetour_detach(struct kdetour *detour)
{
	return kdetour_detach_all(&detour, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, NULL);
}

/*
 * KDETOUR(target, return type, (parameters), (arguments)) { body }
 *
 * Defines the detour function with your body, the function `target_original` through which the body calls the
 * original (a direct call of the trampoline, patched in when the detour is attached), and the struct `target_detour`
 * to attach. Calls are counted while they are inside, so that detaching can wait for them, however long the original
 * sleeps. KDETOUR_VOID is for functions that return nothing. A function without parameters has (void) and ().
 *
 * Context of the body: that of each call of the target, NMI included. It must not be reached from the target's own
 * callees unless it can bear that. It must leave by returning, and so must the original: a call of do_exit or the like
 * is never over, and detaching would wait for it for ever. The same holds for functions in which tasks sleep without
 * end, such as schedule or the main loop of a kernel thread.
 */
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

#endif
