/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * kernel_detours.h - detours in the call style of V. Plantamura's Kernel Detours, for modules: a static trampoline is reserved in
 * the module's own text, and filled when its target is detoured.
 *
 *	DETOUR_TRAMPOLINE(Real_lcm, lcm);
 *
 *	static unsigned long My_lcm(unsigned long a, unsigned long b)
 *	{
 *		return Real_lcm(a, b);
 *	}
 *
 *	begin:	if (!DetourFunctionWithTrampoline((PBYTE)Real_lcm, (PBYTE)My_lcm, NULL)) ...
 *	end:	DetourRemove((PBYTE)Real_lcm, (PBYTE)My_lcm);
 *
 * It maps onto kdetour.h: what can be detoured, what is refused and why, what is waited for is the same. docs/kernel/kernel_detours.md
 * has it call by call, with what differs from that file and from Detours 1.5.
 */
#ifndef KDETOUR_KERNEL_DETOURS_H
#define KDETOUR_KERNEL_DETOURS_H

#ifndef __KERNEL__
#error "kernel_detours.h is for kernel modules; for programs there are kdetour.h and detours.h"
#endif

#include <linux/kprobes.h>
#include <linux/objtool.h>
#include <linux/stringify.h>
#include "kdetour.h"

typedef unsigned char BOOLEAN;
typedef unsigned char *PBYTE;
/* The delayed patch: to be written by kdetour_patch_write. */
typedef struct kdetour_patch DELAY_TARGET_JUMP_INSERTION, *PDELAY_TARGET_JUMP_INSERTION;

#ifndef TRUE
#define TRUE 1
#define FALSE 0
#endif

/* What belongs to a static trampoline; kdetour's own. */
struct kdetour_trampoline {
	unsigned int magic;
	unsigned int room;		/* bytes for the displaced instructions */
	void *code;			/* the trampoline */
	const char *symbol;		/* one of these names the target */
	void *target;
	void *const *variable;
	struct kdetour detour;
	int busy;			/* a call is at it */
};

#define KDETOUR_TRAMPOLINE_MAGIC 0x6b647472u
/* Room for the displaced instructions, if nothing else is said: enough for nearly every function. */
#define DETOUR_TRAMPOLINE_ROOM 64

/*
 * A static trampoline of a function that is declared and exported. It is called as that function is: before it is filled it jumps
 * there; while the function is detoured it runs the displaced instructions and goes on behind them; afterwards it jumps there again.
 */
#define DETOUR_TRAMPOLINE(trampoline_, target_)								\
	DETOUR_TRAMPOLINE_SIZED(trampoline_, target_, DETOUR_TRAMPOLINE_ROOM)

/* The same with so many bytes for the displaced instructions. */
#define DETOUR_TRAMPOLINE_SIZED(trampoline_, target_, room_)						\
	extern typeof(target_) trampoline_;								\
	KDETOUR_TRAMPOLINE_(trampoline_, ".byte 0xe9; .long " #target_ " - . - 4", room_, .target = (void *)target_)

/*
 * One of a function that is looked up by its name, exported or not ("module:name" for a module's), when it is detoured. Nobody
 * may call the trampoline before that: whoever does is stopped, and the log tells who it was.
 */
#define DETOUR_TRAMPOLINE_NAMED(trampoline_, type_, parameters_, symbol_)				\
	extern type_ trampoline_ parameters_;								\
	KDETOUR_TRAMPOLINE_(trampoline_, ".byte 0xe9; .long kdetour_empty_trampoline - . - 4",		\
			    DETOUR_TRAMPOLINE_ROOM, .symbol = symbol_)

/* As that, of a function whose address is in a variable (void *) when it is detoured. */
#define DETOUR_TRAMPOLINE_GLOBVAR(trampoline_, type_, parameters_, variable_)				\
	extern type_ trampoline_ parameters_;								\
	KDETOUR_TRAMPOLINE_(trampoline_, ".byte 0xe9; .long kdetour_empty_trampoline - . - 4",		\
			    DETOUR_TRAMPOLINE_ROOM, .variable = &(variable_))

/* Where a trampoline leads whose target is not known yet. */
void kdetour_empty_trampoline(void);

/*
 *	 0	endbr64
 *	 4	a jump to the target, 5 bytes; while it is filled, a NOP
 *	 9	a NOP that refers to the struct, 7 bytes
 *	16	the slot, full of INT3
 *
 * No kprobe may be in it. As in kdetour's own slots a stack trace ends there: docs/kernel/unwinding.md.
 */
#define KDETOUR_TRAMPOLINE_(trampoline_, first_, room_, ...)						\
	static struct kdetour_trampoline trampoline_##_reserved_ __used = {				\
		.magic = KDETOUR_TRAMPOLINE_MAGIC,							\
		.room = room_,										\
		.code = (void *)trampoline_,								\
		.detour = { .owner = THIS_MODULE, .trampoline = &trampoline_##_reserved_ },		\
		__VA_ARGS__										\
	};												\
	static_assert((room_) > 0);									\
	asm(".pushsection .text\n"									\
	    ".balign 16\n"										\
	    ".type " #trampoline_ ", @function\n"							\
	    #trampoline_ ":\n"										\
	    "	endbr64\n"										\
	    "	" first_ "\n"										\
	    "	.byte 0x0f, 0x1f, 0x05\n"								\
	    "	.long " #trampoline_ "_reserved_ - . - 4\n"						\
	    "	.fill " __stringify(room_) ", 1, 0xcc\n"						\
	    ".size " #trampoline_ ", . - " #trampoline_ "\n"						\
	    ".popsection\n");										\
	STACK_FRAME_NON_STANDARD(trampoline_);								\
	NOKPROBE_SYMBOL(trampoline_)

/*
 * Detours the target of a static trampoline. With `pDelayed` NULL it is written at once, by KDETOUR_LIVE, which stops nobody; else it
 * is only planned, and the record says what is to be written: by kdetour_patch_write, at a moment of your own. *ppbRealTrampoline
 * and *ppbRealTarget, if they are given, receive the trampoline and the target, or NULL.
 *
 * The target has one such detour, and no other one of kdetour's beside it.
 *
 * Context: as kdetour_attach_all. FALSE if it failed, with nothing written; DetourLastError tells why, and so does the log.
 */
BOOLEAN DetourFunctionWithTrampolineEx(PBYTE pbTrampoline, PBYTE pbDetour, PBYTE *ppbRealTrampoline, PBYTE *ppbRealTarget,
				       PDELAY_TARGET_JUMP_INSERTION pDelayed);
BOOLEAN DetourFunctionWithTrampoline(PBYTE pbTrampoline, PBYTE pbDetour, PDELAY_TARGET_JUMP_INSERTION pDelayed);

/*
 * Lets the target be itself again, written at once or by a delayed record, or never; waits until nobody is on the way through detour
 * and trampoline; empties the trampoline, which may be filled again then. Calls that sleep inside the detour are not counted: it
 * must be for a target that does not sleep, or stay.
 *
 * Context: as kdetour_detach_all. FALSE if it failed; the detour stays then.
 */
BOOLEAN DetourRemove(PBYTE pbTrampoline, PBYTE pbDetour);

/*
 * Where code leads that begins with a jump: one by a pointer is followed, a direct one if `fSkipJmp`. The jump of a detour is not.
 * NULL if nothing can be read there.
 *
 * Context: process; may sleep.
 */
PBYTE DetourGetFinalCode(PBYTE pbCode, BOOLEAN fSkipJmp);

/*
 * The story of the last of these calls that failed, if it was this task's; `error` may be NULL. Returns its code, 0 if it was not, or
 * none has failed.
 *
 * Context: any but NMI.
 */
int DetourLastError(struct kdetour_error *error);

#endif
