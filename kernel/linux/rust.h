/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * The Rust half of kdetour.ko: crates/ffi/src/linux_kernel.rs and the hook in crates/kdetour/src/host/linux_kernel.rs.
 * But for the last three, call them with kd_mutex held, in process context.
 */
#ifndef KD_RUST_H
#define KD_RUST_H

#include <linux/build_bug.h>
#include <linux/types.h>
#include "kdetour.h"

struct kd_request {
	u64 handle;		/* 0, or a detour that drains and is attached again */
	u64 target, detour;
	u64 announce;		/* what kd_announce is told, with the original */
	u64 in_flight;		/* per-CPU counter, or 0 */
	u64 owner;		/* struct module */
	u32 method;		/* enum kdetour_method */
	u32 unused;
	u64 slot, slot_len;	/* memory of the client's own for the slot, or 0 */
};

/* One line of the list of detours. */
struct kd_info {
	u64 handle, target, window, detour, slot, owner, in_flight, calls, announce;
	u64 function;		/* what does the work when nothing is attached: the target, or what the pointer led to */
	u32 slot_len, displaced_len;
	u32 attached, method;	/* enum kdetour_method */
	u32 planned;		/* neither this nor attached: it drains */
	u32 order, of;		/* 1 is called first, 0 drains; how many of this target are attached */
	u32 unused;
	u8 original[20], now[20];
	char shape[20], protocol[12];
};

static_assert(sizeof(struct kd_info) == 10 * 8 + 8 * 4 + 3 * 20 + 12);
static_assert(sizeof(struct kdetour_error) == 192);
static_assert(sizeof(struct kdetour_patch) == 3 * 8 + KDETOUR_BOUNDARIES * 9 + 4 + 30 + 16);

/* What is in use now. */
struct kd_usage {
	u64 attached, draining, slot_bytes;
};

/* How often the survey has refused for one reason. */
struct kd_refusal {
	u64 count;
	char name[24];
};

int kd_start(void);
/* Nothing is attached, and the breakpoint hook is gone. */
void kd_stop(void);
/* By one of enum kdetour_protocol. If it fails `handles` names what was attached for a moment, and is to be drained; the rest is 0. */
int kd_attach(const struct kd_request *requests, size_t count, u32 protocol, u64 *handles, struct kdetour_error *error);
int kd_detach(const u64 *handles, size_t count, u32 protocol, struct kdetour_error *error);
/*
 * All but the write of one detour, which drains then; *handle is set also where that fails after it was planned, and it has to be
 * given back. `patch` may be NULL.
 */
int kd_plan(const struct kd_request *request, u32 protocol, u64 *handle, struct kdetour_patch *patch,
	    struct kdetour_error *error);
/* Its client has written it, and every processor has fetched the bytes anew: it is attached. */
int kd_written(u64 handle, struct kdetour_error *error);
/* KDETOUR_ALREADY_DETOURED if it is planned and its patch is in the text, KDETOUR_CHANGED if it may be; 0 for any other. */
int kd_check_unwritten(u64 handle, struct kdetour_error *error);
/* 0 if the handle names nothing, or, with an announce other than 0, a detour that was not requested with that. */
enum kd_state { KD_ATTACHED = 1, KD_DRAINING = 2 };
int kd_state(u64 handle, u64 announce);
/* As kd_detach, without writing the target, whose memory is about to go; one that is planned may be given back then. */
int kd_forget(u64 handle);
int kd_reclaim(const u64 *handles, size_t count);
/* The first detour at *place of the list or behind it, and moves *place behind that; false if there is none. */
bool kd_info(size_t *place, struct kd_info *info);
/* The same for a handle; false if it names nothing. */
bool kd_describe(u64 handle, struct kd_info *info);
void kd_usage(struct kd_usage *usage);
/* The reasons that there were so far, one for each position; false if there are no more. */
bool kd_refusal(size_t position, struct kd_refusal *refusal);
size_t kd_survey(u64 target, u8 *text, size_t len);
/* Any context: the length of an instruction, 0 if it is none, and where it leads, 0 for nowhere. */
size_t kd_length(const u8 *bytes, size_t len, u64 address, u64 *leads_to);
/* Where code that begins with a jump by a pointer leads, with `skip` also with a direct one; 0 if it cannot be read. */
u64 kd_final_code(u64 address, bool skip);

/*
 * The Rust half calls this one, for every detour of every target that changes: this is what the one of `announce` has to
 * call as the original from now on, the next older detour or the trampoline. All is planned then, and no target is
 * written yet.
 */
void kd_announce(u64 announce, u64 handle, u64 original, bool attached);

/* Any context: where a processor goes on that has met an INT3 at `at`, or trapped there; 0 if it is none of ours. */
u64 kd_breakpoint(u64 at);
/* All other processors parked or offline, interrupts off: the work of a rendezvous. 0 if it succeeded. */
int kd_rendezvous_work(void *work);

#endif
