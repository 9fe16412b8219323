// Runs functions natively, as they are and detoured, and says where the two differ.
//
// Built without a C library, for 64-bit and for 32-bit, so that a test needs nothing but a compiler. It reads items as
// tests/native.rs writes them (struct item) and prints a line for each: `ok NAME SHAPE` or `FAIL NAME SHAPE: why`.
//
// What is compared after a call: every general register and flag, x87 and SSE state, the data page, and the whole
// stack, what lies below the stack pointer included. So nothing of a detour may touch the stack: the detour here
// counts and jumps on without it, and signals have a stack of their own.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned long word;

#include "host.h"

#define PAGE 4096ul
#define STACK 0x61000000ul
#define STACK_SIZE (4 * PAGE)
#define MAX_RUNS 8
#define MAX_PAIRS 24
#define MAX_STEPS 64 // of a call, at which a patch is written or taken back

enum { REGISTERS = 16 };

struct run {
	u64 registers[REGISTERS];
	u64 flags;
	u64 arguments[32];
};

// One function under one plan. The layout is known to tests/native.rs.
struct item {
	char name[64];
	char shape[32];
	u64 base;                       // a page of code, then a page of data
	u64 entry;
	u64 slot, slot_len, trampoline, detour;
	u64 patch, patch_len;
	u64 cave, cave_len;
	u64 displaced, pairs;           // the first `displaced` pairs are instructions
	u64 map[MAX_PAIRS][2];
	u64 runs;
	u64 entries;                    // how often a call passes the detour; 0: any number
	u64 no_steps;                   // reads its own flags: not for single steps
	u64 returns_to_slot;            // callees return to the slot: what they leave below the stack pointer differs
	struct run run[MAX_RUNS];
	u8 patch_old[16], patch_new[16];
	u8 cave_old[8], cave_new[8];
	u8 slot_bytes[512];
	u8 code[4096];
	u8 data[4096];
};

struct state {
	word registers[REGISTERS];
	word flags;
	u8 fx[512] __attribute__((aligned(16)));
};

// Read and written by invoke (host.h).
struct state in, out;
word host_stack, case_stack, case_target;
// Written by the detour.
word detour_count, detour_save;

static struct item *item;
static word crashed, crashed_at;

enum { RUN, STEP, PATCH_AT, RESTORE_AT };
static int mode;                        // what single steps are for
static word steps, act_at, started, acted, held_back;

static void copy(void *to, const void *from, word len)
{
	for (word i = 0; i < len; i++)
		((u8 *)to)[i] = ((const u8 *)from)[i];
}

static word different(const void *one, const void *other, word len)
{
	for (word i = 0; i < len; i++)
		if (((const u8 *)one)[i] != ((const u8 *)other)[i])
			return i + 1;
	return 0;
}

// ---- printing ----------------------------------------------------------------------------------------------------

static void print(const char *text)
{
	word len = 0;

	while (text[len])
		len++;
	system3(SYS_write, 1, (word)text, len);
}

static void print_hex(u64 value)
{
	char text[19] = "0x";
	int at = 2;

	for (int shift = 60; shift >= 0; shift -= 4) {
		int digit = (int)(value >> shift) & 15;

		if (digit || at > 2 || !shift)
			text[at++] = "0123456789abcdef"[digit];
	}
	text[at] = 0;
	print(text);
}

static word failures;
static int failed_here;

static void fail(const char *what, int run)
{
	if (failed_here++ >= 4)
		return;
	print("FAIL ");
	print(item->name);
	print(" ");
	print(item->shape);
	print(" run ");
	print_hex((u64)run);
	print(" at ");
	print_hex(act_at);
	print(": ");
	print(what);
	print("\n");
}

// ---- patching ----------------------------------------------------------------------------------------------------

static void write_window(int on)
{
	copy((void *)(word)item->patch, on ? item->patch_new : item->patch_old, (word)item->patch_len);
}

static void write_patch(int on)
{
	write_window(on);
	if (item->cave)
		copy((void *)(word)item->cave, on ? item->cave_new : item->cave_old, (word)item->cave_len);
}

// Whether a shape overwrites boundaries on which somebody may stand: the host has to move or to await them.
static int is_free(void)
{
	return item->patch_len >= 5 && !different(item->shape, "Jump5", 6) ? 1 : !different(item->shape, "Jump14", 7);
}

static int in_window(word address)
{
	return address > item->patch && address < item->patch + item->patch_len;
}

static word to_slot(word address)
{
	for (word i = 0; i < item->pairs; i++)
		if (item->map[i][0] == address)
			return (word)item->map[i][1];
	return 0;
}

// A return address into the window: no host would write a free shape now.
static int sleeper(word stack)
{
	if (stack < STACK || stack >= STACK + STACK_SIZE)
		stack = STACK + 2 * PAGE; // the case has another stack for a while
	for (word at = stack & ~(sizeof(word) - 1); at < STACK + STACK_SIZE; at += sizeof(word))
		if (in_window(*(word *)at))
			return 1;
	return 0;
}

// ---- signals -----------------------------------------------------------------------------------------------------

static void give_up(word signal, word *context)
{
	crashed = signal;
	crashed_at = context[CONTEXT_IP];
	context[CONTEXT_IP] = (word)recover;
	context[CONTEXT_FLAGS] = 0x202;
}

// A step: the instruction at the context's IP comes next.
static void on_step(word *context)
{
	word ip = context[CONTEXT_IP];

	if (!started) {
		if (ip != case_target)
			return;
		started = 1;
		steps = 0;
	} else if (ip == (word)invoke_back) {
		context[CONTEXT_FLAGS] &= ~0x100ul;
		return;
	} else {
		steps++;
	}
	if (mode == STEP || steps != act_at)
		return;
	context[CONTEXT_FLAGS] &= ~0x100ul;
	if (mode == PATCH_AT && is_free()) {
		if (sleeper(context[CONTEXT_SP])) {
			held_back = 1;
			return;
		}
		if (in_window(ip))
			context[CONTEXT_IP] = to_slot(ip);
	}
	// A cave is given back when nobody can be in it any more, as a slot is.
	if (mode == PATCH_AT)
		write_patch(1);
	else
		write_window(0);
	acted = 1;
}

// A trap at a patched byte: what a host's handler does.
static void on_breakpoint(word *context, word at)
{
	if (at == item->patch && item->patch_new[0] == 0xcc)
		context[CONTEXT_IP] = (word)item->detour;
	else if (to_slot(at))
		context[CONTEXT_IP] = to_slot(at);
	else
		give_up(5, context);
}

void on_signal(int signal, int *info, word *context)
{
	enum { SIGILL_ = 4, SIGTRAP_ = 5, TRAP_TRACE = 2 };

	if (signal == SIGTRAP_ && info[2] == TRAP_TRACE && mode != RUN)
		on_step(context);
	else if (signal == SIGTRAP_)
		on_breakpoint(context, context[CONTEXT_IP] - 1);
	else if (signal == SIGILL_ && in_window(context[CONTEXT_IP]))
		on_breakpoint(context, context[CONTEXT_IP]); // an opcode that traps as INT3 does
	else
		give_up((word)signal, context);
}

// ---- calling -----------------------------------------------------------------------------------------------------

static void prepare_memory(int patched)
{
	copy((void *)(word)item->base, item->code, PAGE);
	copy((void *)(word)(item->base + PAGE), item->data, PAGE);
	copy((void *)(word)item->slot, item->slot_bytes, (word)item->slot_len);
	if (patched)
		write_patch(1);
	for (word at = 0; at < STACK_SIZE; at += sizeof(word))
		*(word *)(STACK + at) = 0x5aa50000 + at;
}

static void call(const struct run *run, word target)
{
	word *stack = (word *)(STACK + 3 * PAGE);

	for (int i = 0; i < REGISTERS; i++)
		in.registers[i] = (word)run->registers[i];
	in.flags = (word)run->flags | 2 | (mode == RUN ? 0 : 0x100);
	for (int i = 0; i < 32; i++)
		stack[1 + i] = (word)run->arguments[i];
	stack[0] = (word)invoke_back;
	case_stack = (word)stack;
	case_target = target;
	detour_count = 0;
	crashed = started = acted = held_back = steps = 0;
	set_alarm(2);
	invoke();
	set_alarm(0);
}

struct kept {
	struct state state;
	u8 data[PAGE];
	u8 stack[STACK_SIZE];
	word steps;
};

static struct kept original[MAX_RUNS];

static void keep(struct kept *to)
{
	copy(&to->state, &out, sizeof(out));
	copy(to->data, (void *)(word)(item->base + PAGE), PAGE);
	copy(to->stack, (void *)STACK, STACK_SIZE);
	to->steps = steps;
}

static const char *const NAMES[] = {
	"ax differs", "cx differs", "dx differs", "bx differs", "sp differs", "bp differs", "si differs", "di differs",
	"r8 differs", "r9 differs", "r10 differs", "r11 differs", "r12 differs", "r13 differs", "r14 differs",
	"r15 differs",
};

static const char *compare(const struct kept *with)
{
	if (crashed) {
		print("# signal ");
		print_hex(crashed);
		print(" at ");
		print_hex(crashed_at);
		print("\n");
		return crashed == 14 ? "does not end" : crashed == 4 ? "SIGILL" : crashed == 5 ? "SIGTRAP" : "SIGSEGV or other";
	}
	for (int i = 0; i < REGISTERS; i++)
		if (out.registers[i] != with->state.registers[i])
			return NAMES[i];
	if ((out.flags ^ with->state.flags) & ~0x10100ul) // RF and TF
		return "flags differ";
	// Bytes 6 to 23 are the last x87 instruction's opcode and addresses, which do change.
	if (different(out.fx, with->state.fx, 6) || different(out.fx + 24, with->state.fx + 24, FX_LEN - 24))
		return "x87 or SSE state differs";
	if (different((void *)(word)(item->base + PAGE), with->data, PAGE))
		return "data differs";
	word live = item->returns_to_slot ? out.registers[4] - STACK : 0;

	if (different((void *)(STACK + live), with->stack + live, STACK_SIZE - live))
		return "stack differs, perhaps below the stack pointer";
	return 0;
}

static void check(const char *what, int run, int patched)
{
	const char *why = compare(&original[run]);

	if (!why) {
		// The code is as it should be: the patch, the cave, and nothing else.
		static u8 expected[PAGE];

		copy(expected, item->code, PAGE);
		if (patched)
			copy(expected + (item->patch - item->base), item->patch_new, (word)item->patch_len);
		if (item->cave && (patched || mode == RESTORE_AT))
			copy(expected + (item->cave - item->base), item->cave_new, (word)item->cave_len);
		if (different((void *)(word)item->base, expected, PAGE))
			why = "the code page differs";
		if (different((void *)(word)item->slot, item->slot_bytes, (word)item->slot_len))
			why = "the slot differs";
	}
	if (why) {
		fail(what, run);
		fail(why, run);
	}
}

static void all_runs(void)
{
	for (int n = 0; n < (int)item->runs; n++) {
		const struct run *run = &item->run[n];

		act_at = 0;
		mode = RUN;
		prepare_memory(0);
		call(run, (word)item->entry);
		keep(&original[n]);
		if (crashed) {
			compare(&original[n]);
			fail("the original crashes: a bad case", n);
			return;
		}
		prepare_memory(0);
		call(run, (word)item->trampoline);
		check("the trampoline, called directly", n, 0);
		prepare_memory(1);
		call(run, (word)item->entry);
		check("the target, patched", n, 1);
		if (!crashed && item->entries && detour_count != item->entries)
			fail("the detour is passed another number of times", n);
		write_patch(0);
		mode = RUN;
		call(run, (word)item->entry);
		// Memory is not as it was, but for the code.
		if (crashed || different((void *)(word)item->base, item->code, PAGE) || detour_count)
			fail("the target, its bytes restored", n);
		if (item->no_steps)
			continue;

		mode = STEP;
		prepare_memory(0);
		call(run, (word)item->entry);
		word total = steps;
		check("the original, step by step", n, 0);
		total = total < MAX_STEPS ? total : MAX_STEPS;
		for (act_at = 0; act_at <= total && failed_here < 4; act_at++) {
			mode = PATCH_AT;
			prepare_memory(0);
			call(run, (word)item->entry);
			check("patched while a thread stands in it", n, (int)acted);
			if (!acted && !held_back)
				fail("the patch was not written", n);
		}
		mode = STEP;
		prepare_memory(1);
		call(run, (word)item->entry);
		check("patched, step by step", n, 1);
		total = steps < MAX_STEPS ? steps : MAX_STEPS;
		for (act_at = 0; act_at <= total && failed_here < 4; act_at++) {
			mode = RESTORE_AT;
			prepare_memory(1);
			call(run, (word)item->entry);
			check("restored while a thread is in it", n, (int)!acted);
		}
	}
}

static int map_pages(u64 first, u64 len)
{
	word start = (word)first & ~(PAGE - 1);
	word end = (word)((first + len + PAGE - 1) & ~(u64)(PAGE - 1));

	return map(start, end - start) == start ? 0 : -1;
}

static void unmap_pages(u64 first, u64 len)
{
	word start = (word)first & ~(PAGE - 1);
	word end = (word)((first + len + PAGE - 1) & ~(u64)(PAGE - 1));

	system3(SYS_munmap, start, end - start, 0);
}

static void one_item(void)
{
	failed_here = 0;
	act_at = 0;
	if (map_pages(item->base, 2 * PAGE)) {
		fail("its pages cannot be mapped", 0);
	} else if (map_pages(item->slot, item->slot_len + 1)) {
		fail("its slot cannot be mapped", 0);
		unmap_pages(item->base, 2 * PAGE);
	} else if (map_pages(item->detour, 64)) {
		fail("its detour cannot be mapped", 0);
		unmap_pages(item->base, 2 * PAGE);
		unmap_pages(item->slot, item->slot_len + 1);
	} else {
		write_detour((u8 *)(word)item->detour, (word)item->trampoline);
		set_segments((word)item->base + PAGE + 0x800);
		all_runs();
		unmap_pages(item->base, 2 * PAGE);
		unmap_pages(item->slot, item->slot_len + 1);
		unmap_pages(item->detour, 64);
	}
	if (failed_here) {
		failures++;
	} else {
		print("ok ");
		print(item->name);
		print(" ");
		print(item->shape);
		print("\n");
	}
}

int start(word *stack)
{
	word len;

	if (stack[0] < 2)
		return 2;
	u8 *items = read_file((const char *)stack[2], &len);
	if (!items || map(STACK, STACK_SIZE) != STACK) {
		print("cannot read the items, or map the stack\n");
		return 2;
	}
	take_signals();
	make_fx(in.fx);
	for (word at = 0; at + sizeof(struct item) <= len; at += sizeof(struct item)) {
		item = (struct item *)(items + at);
		one_item();
	}
	print_hex(failures);
	print(failures ? " failed\n" : " failed: all well\n");
	return failures ? 1 : 0;
}
