/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * What the Rust half of kdetour.ko asks of the kernel: the port described in crates/kdetour/src/host/.
 * The Rust declarations are in crates/kdetour/src/host/linux_kernel.rs and crates/ffi/src/runtime.rs.
 */
#ifndef KD_HOST_H
#define KD_HOST_H

#include <linux/types.h>

/* Answers of kd_host_function, kd_host_pointer, kd_host_swap and kd_host_rendezvous. */
enum kd_host_answer {
	KD_OK = 0,
	KD_UNREADABLE = 1,
	KD_NOT_CODE = 2,
	KD_NOT_FUNCTION = 3,
	KD_FORBIDDEN = 4,
	KD_THREAD_IN_WINDOW = 5,
	KD_TEXT_BUSY = 6,
	KD_WORK_FAILED = 7,
	KD_PREEMPTIBLE = 8,
	KD_OTHER_PROCESSORS = 9,
	KD_MISALIGNED = 10,
	KD_NOT_DATA = 11,
};

/* Whose a byte of text is. */
enum kd_owner {
	KD_EXCEPTION_TABLE = 0,
	KD_JUMP_LABEL = 1,
	KD_STATIC_CALL = 2,
	KD_ALTERNATIVE = 3,
	KD_FTRACE = 4,
	KD_BUG_TABLE = 5,
	KD_KPROBE = 6,
};

#define KD_RESERVED 8
#define KD_PARTS 32
#define KD_LANDINGS 8

struct kd_function {
	u64 entry;		/* of the function that the target is in */
	u64 length;
	u64 fentry;		/* its ftrace entry site, 0 if none */
	u64 next_symbol;
	u64 image_start;
	u64 image_end;
	u32 reserved_count;
	u32 part_count;
	u32 landing_count;
	u32 unused;
	struct {
		u64 address;
		u32 len;
		u32 owner;
	} reserved[KD_RESERVED];
	struct {
		u64 address;
		u64 len;
	} parts[KD_PARTS];	/* other pieces of the function: NAME.cold */
	u64 landings[KD_LANDINGS];	/* near the entry, where the kernel may come to without a branch in the function */
};

/* Reads kernel memory; 0, or an errno for a bad address. Any context. */
int kd_host_read(u64 address, void *to, size_t len);
/* As kd_host_read, in process context, with kprobes taken out of what was read. */
int kd_host_read_code(u64 address, void *to, size_t len);
/* What is known about the function at `target`. With kd_mutex held. */
int kd_host_function(u64 target, struct kd_function *function);
/* Whether a detour may lie there. With kd_mutex held. */
int kd_host_detour(u64 detour);
/* Where the pointer at `place` leads, if one may be exchanged there. With kd_mutex held. */
int kd_host_pointer(u64 place, u64 *leads_to);
/* Replaces it by `new` if it is `expected`, at one moment for all processors; *found is what was there. -ENOMEM, too. */
int kd_host_swap(u64 place, u64 expected, u64 new, u64 *found);
/* The first address of these bytes with a kprobe on it, armed or not; 0 if there is none. Does not sleep. */
u64 kd_host_kprobe(u64 address, size_t len);
/* Maps the pages once more, one after the other, writable; NULL if one is not mapped or there is no memory. */
void *kd_host_map(const u64 *pages, size_t count);
void kd_host_unmap(void *alias);
/* Every processor executes a serializing instruction before this returns. */
void kd_host_sync_cores(void);
/* The same, and no processor comes or goes meanwhile. May sleep. Not with the text locked. */
void kd_host_sync_all(void);
/*
 * Keeps ftrace, kprobes, jump labels and static calls from patching, kprobes from being registered, and processors from
 * coming or going.
 */
void kd_host_lock_text(void);
void kd_host_unlock_text(void);
/* Until every task that was preempted anywhere in the kernel has gone on to sleep or to user mode. */
void kd_host_quiesce(void);
/* As kd_host_quiesce, and until every processor has left what it ran while idle. Not with the text locked. */
void kd_host_settle(void);
/*
 * Every processor, those that come later too, traps in front of the instruction at `address` by a debug register, and goes on where
 * kd_breakpoint says. 0, or an errno: -ENOSPC if no register is free on one of them; nobody traps then. Takes the lock of CPU hotplug.
 */
int kd_host_set_register(u64 address);
/* The same back; who has trapped already may not have been answered yet. */
void kd_host_clear_register(u64 address);
/* The sum of a per-CPU counter. */
u64 kd_host_in_flight(u64 counter);
/* Executable memory for slots, full of INT3, in a module's own text: some that was not given yet, or 0. */
u64 kd_host_slab(size_t *len);
/* No slot is in what begins there; false if it is to be kept all the same. */
bool kd_host_slab_back(u64 start);
/* All bytes that slots can be made of, given out yet or not. With kd_mutex held. */
size_t kd_slab_bytes(void);
/* Whether indirect branches have to land on ENDBR64. */
bool kd_host_landing_pads(void);
/*
 * Parks all processors, makes sure that no task stands or returns to one of the boundaries (else *place is the
 * one), and runs kd_rendezvous_work(work) on one of them.
 */
int kd_host_rendezvous(const u64 *boundaries, size_t count, void *work, u64 *place);
/* The same where one processor is online, and stays the only one; nobody is parked. */
int kd_host_solo(const u64 *boundaries, size_t count, void *work, u64 *place);

void *kd_host_alloc(size_t size, size_t align);
void kd_host_free(void *memory);
/* Frees what is left: the decoder keeps its tables in a static variable, which nobody drops. */
void kd_host_free_all(void);

#endif
