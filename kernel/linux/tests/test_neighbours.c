// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * neighbours: everybody else who looks at one function of the kernel or changes where it goes, together with a
 * detour, in each order of coming and leaving. Both must see every call, and the function must do what it does.
 *
 * The function is int_sqrt, which nobody else calls while this runs; for a kprobe that the kernel can optimise one of this
 * module's own, in which nothing branches.
 */
#include <linux/delay.h>
#include <linux/fprobe.h>
#include <linux/ftrace.h>
#include <linux/kprobes.h>
#include <linux/linkage.h>
#include <linux/math.h>
#include <linux/ptrace.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include "test.h"

#define WORK 100
/* Furthest behind the entry that a probe is tried. */
#define FURTHEST 64
#define OPTIMISED_WITHIN_MS 3000

static unsigned long detoured;

KDETOUR(int_sqrt, unsigned long, (unsigned long x), (x))
{
	WRITE_ONCE(detoured, detoured + 1);
	return int_sqrt_original(x);
}

noinline unsigned long test_straight(unsigned long x);
noinline unsigned long test_straight(unsigned long x)
{
	/* Each of them is an instruction. */
#define STEP(what_) do { x what_; OPTIMIZER_HIDE_VAR(x); } while (0)
	STEP(^= 0x1234567);
	STEP(+= 0x2345678);
	STEP(^= 0x3456789);
	STEP(^= 0x3456789);
	STEP(-= 0x2345678);
	STEP(^= 0x1234567);
	return x;
}

KDETOUR(test_straight, unsigned long, (unsigned long x), (x))
{
	WRITE_ONCE(detoured, detoured + 1);
	return test_straight_original(x);
}

static unsigned long call_root(unsigned long x)
{
	return int_sqrt(x * x);
}

/* What is detoured, and called: each call gives back what it is given. */
struct target {
	const char *symbol;
	unsigned long (*call)(unsigned long x);
	struct kdetour *detour;
};
static const struct target root = { "int_sqrt", call_root, &int_sqrt_detour };
static const struct target straight = { "test_straight", test_straight, &test_straight_detour };
static const struct target *target = &root;

static int attach(struct kdetour_error *error)
{
	struct kdetour *detour = target->detour;

	return kdetour_attach_all(&detour, 1, KDETOUR_LIVE, error);
}

static int detach(unsigned int timeout_ms, struct kdetour_error *error)
{
	struct kdetour *detour = target->detour;

	return kdetour_detach_all(&detour, 1, KDETOUR_LIVE, timeout_ms, error);
}

/* What the neighbour has seen. */
static unsigned long seen;

static void see(void)
{
	WRITE_ONCE(seen, seen + 1);
}

static int on_kprobe(struct kprobe *probe, struct pt_regs *regs)
{
	see();
	return 0;
}

static int on_return(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	see();
	return 0;
}

static void on_ftrace(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	see();
}

/* As a live patch does: another function instead of this one, detour and all. */
static unsigned long patched(unsigned long x)
{
	see();
	return x + 1000000;
}

static void on_livepatch(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	struct pt_regs *all = ftrace_get_regs(regs);

	if (all)
		all->ip = (unsigned long)patched;
}

/* Where a probe behind the window goes: found by trying, before anything is attached. */
static unsigned int offset_inside;

static struct kprobe kprobe;
static struct kretprobe kretprobe;
static struct ftrace_ops ops;
#ifdef CONFIG_FPROBE
static struct fprobe fprobe;

static int on_fprobe(struct fprobe *probe, unsigned long entry, unsigned long back, struct pt_regs *regs, void *data)
{
	see();
	return 0;
}

static void on_fprobe_exit(struct fprobe *probe, unsigned long entry, unsigned long back, struct pt_regs *regs,
			   void *data)
{
	see();
}
#endif

/* Where the window is, by what a survey says; 0 if there is none. */
static unsigned long find_window(unsigned int *displaced)
{
	static char text[1024];
	unsigned long long window = 0, last = 0;
	char *line, *rest = text, hex[48];

	kdetour_survey((void *)kdetour_find(target->symbol), text, sizeof(text));
	while ((line = strsep(&rest, "\n"))) {
		if (sscanf(line, "window %llx", &window) == 1 || sscanf(line, "displaced %llx %47s", &last, hex) != 2)
			continue;
		*displaced = last + strlen(hex) / 2 - window;
	}
	return window;
}

static int add_kprobe(unsigned int offset)
{
	kprobe = (struct kprobe){ .symbol_name = target->symbol, .offset = offset, .pre_handler = on_kprobe };
	return register_kprobe(&kprobe);
}

static int kprobe_entry_add(void)
{
	return add_kprobe(0);
}

static int kprobe_inside_add(void)
{
	return add_kprobe(offset_inside);
}

/* Until the kernel has made a jump of the breakpoint. */
static int kprobe_optimised_add(void)
{
	int error = add_kprobe(offset_inside), waited;
	u8 byte = 0;

	for (waited = 0; !error && waited < OPTIMISED_WITHIN_MS; waited += 20) {
		msleep(20);
		if (!copy_from_kernel_nofault(&byte, kprobe.addr, 1) && byte == 0xe9)
			return 0;
	}
	if (!error)
		unregister_kprobe(&kprobe);
	return error ?: -ETIME;
}

static void kprobe_del(void)
{
	unregister_kprobe(&kprobe);
}

static int kretprobe_add(void)
{
	kretprobe = (struct kretprobe){
		.kp.symbol_name = "int_sqrt", .handler = on_return, .maxactive = 16,
	};
	return register_kretprobe(&kretprobe);
}

static void kretprobe_del(void)
{
	unregister_kretprobe(&kretprobe);
}

static int add_ops(ftrace_func_t function, unsigned long flags)
{
	int error;

	ops = (struct ftrace_ops){ .func = function, .flags = flags };
	error = ftrace_set_filter(&ops, "int_sqrt", strlen("int_sqrt"), 1);
	return error ?: register_ftrace_function(&ops);
}

static int ftrace_add(void)
{
	return add_ops(on_ftrace, FTRACE_OPS_FL_SAVE_REGS);
}

static int livepatch_add(void)
{
	return add_ops(on_livepatch, FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_IPMODIFY);
}

static void ftrace_del(void)
{
	unregister_ftrace_function(&ops);
	ftrace_free_filter(&ops);
}

#ifdef CONFIG_FPROBE
static int fprobe_add(void)
{
	fprobe = (struct fprobe){ .entry_handler = on_fprobe, .exit_handler = on_fprobe_exit };
	return register_fprobe(&fprobe, "int_sqrt", NULL);
}

static void fprobe_del(void)
{
	unregister_fprobe(&fprobe);
}
#endif

static const struct neighbour {
	const char *name;
	int (*add)(void);
	void (*del)(void);
	unsigned int sees;	/* of one call */
	bool replaces;		/* the function, and so the detour */
} neighbours[] = {
	{ "kprobe at the entry", kprobe_entry_add, kprobe_del, 1 },
	{ "kprobe behind the window", kprobe_inside_add, kprobe_del, 1 },
	{ "kretprobe", kretprobe_add, kretprobe_del, 1 },
	{ "ftrace", ftrace_add, ftrace_del, 1 },
	{ "livepatch", livepatch_add, ftrace_del, 1, true },
#ifdef CONFIG_FPROBE
	{ "fprobe", fprobe_add, fprobe_del, 2 },
#endif
};

/* The work is done, and each of them has seen all of it, or nothing. */
static bool works(const struct neighbour *neighbour, bool is_there, bool is_detoured)
{
	bool is_replaced = is_there && neighbour->replaces;
	unsigned long i, wrong = 0;

	detoured = 0;
	seen = 0;
	for (i = 1; i <= WORK; i++) {
		wrong += target->call(i) != (is_replaced ? i * i + 1000000 : i);
	}
	return !wrong && seen == (is_there ? WORK * neighbour->sees : 0) &&
	       detoured == (is_detoured && !is_replaced ? WORK : 0);
}

static void together(struct test_lines *to, const struct neighbour *neighbour, bool comes_first, bool leaves_first)
{
	struct kdetour_error error = {};
	int added = 0, attached;
	bool alone, both, left = false, none;

	if (comes_first)
		added = neighbour->add();
	attached = attach(&error);
	alone = comes_first || works(neighbour, false, true);
	if (!comes_first)
		added = neighbour->add();
	if (added || attached) {
		test_line(to, false, "neighbours: %s: it gives %d, the detour %d: %s", neighbour->name, added,
			  attached, error.text);
		if (!added)
			neighbour->del();
		if (!attached)
			detach(KDETOUR_FOR_EVER, &error);
		return;
	}
	both = works(neighbour, true, true);
	if (leaves_first) {
		neighbour->del();
		left = works(neighbour, false, true);
	}
	detach(KDETOUR_FOR_EVER, &error);
	if (!leaves_first) {
		left = works(neighbour, true, false);
		neighbour->del();
	}
	none = works(neighbour, false, false);
	test_line(to, alone && both && left && none,
		  "neighbours: %s comes %s and leaves %s: %s%s%s%s", neighbour->name,
		  comes_first ? "first" : "second", leaves_first ? "first" : "second", alone ? "" : "detour alone, ",
		  both ? "" : "both, ", left ? "" : "one left, ", none ? "all works" : "none left");
}

/* In the window: who is there first keeps it, and who comes second is told of, or told. */
static void in_window(struct test_lines *to, unsigned int offset)
{
	static const struct neighbour kprobe_there = { "kprobe in the window", NULL, NULL, 1 };
	struct kdetour_error error = {};
	unsigned int tries;
	int result;

	result = add_kprobe(offset);
	CHECK(to, !result, "neighbours: kprobe in the window: %d", result);
	result = attach(&error);
	CHECK(to, result == -EOPNOTSUPP && strstr(error.text, "kprobe") && works(&kprobe_there, true, false),
	      "neighbours: kprobe in the window first: the detour gets %d: %s", result, error.text);
	unregister_kprobe(&kprobe);
	/* One that was optimised meanwhile is put away by a worker, a moment later. */
	for (tries = 0; tries < 200; tries++) {
		result = attach(&error);
		if (!result || !strstr(error.text, "kprobe"))
			break;
		msleep(20);
	}
	CHECK(to, !result, "neighbours: kprobe on the jump: attach %d: %s", result, error.text);
	result = add_kprobe(offset);
	CHECK(to, !result && works(&kprobe_there, true, true), "neighbours: kprobe on the jump: %d, both see", result);
	result = detach(KDETOUR_NO_WAIT, &error);
	CHECK(to, result == -ESTALE && error.code == KDETOUR_CHANGED && works(&kprobe_there, true, true),
	      "neighbours: kprobe on the jump: detach gives %d: %s", result, error.text);
	unregister_kprobe(&kprobe);
	result = detach(KDETOUR_FOR_EVER, &error);
	CHECK(to, !result && works(&kprobe_there, false, false), "neighbours: without it detach gives %d", result);

	/* One that is registered and not armed: it has kept the jump's first byte, and would put that back. */
	result = attach(&error);
	CHECK(to, !result, "neighbours: a sleeping kprobe on the jump: attach %d: %s", result, error.text);
	kprobe = (struct kprobe){
		.symbol_name = target->symbol, .offset = offset, .pre_handler = on_kprobe, .flags = KPROBE_FLAG_DISABLED,
	};
	result = register_kprobe(&kprobe);
	CHECK(to, !result, "neighbours: a sleeping kprobe on the jump: %d", result);
	result = detach(KDETOUR_NO_WAIT, &error);
	CHECK(to, result == -EOPNOTSUPP && error.code == KDETOUR_REFUSED && works(&kprobe_there, false, true),
	      "neighbours: a sleeping kprobe on the jump: detach gives %d: %s", result, error.text);
	unregister_kprobe(&kprobe);
	result = detach(KDETOUR_FOR_EVER, &error);
	CHECK(to, !result && works(&kprobe_there, false, false), "neighbours: without it detach gives %d", result);
}

static void in_every_order(struct test_lines *to, const struct neighbour *neighbour)
{
	together(to, neighbour, true, true);
	together(to, neighbour, true, false);
	together(to, neighbour, false, true);
	together(to, neighbour, false, false);
}

/* Where the window is, and the first instruction behind what it displaces. */
static bool find_offsets(struct test_lines *to, unsigned int *offset)
{
	unsigned int displaced = 0;
	unsigned long window = find_window(&displaced), entry = kdetour_find(target->symbol);

	*offset = window - entry;
	/* The kernel says where instructions begin. */
	for (offset_inside = *offset + displaced; offset_inside < FURTHEST; offset_inside++)
		if (!add_kprobe(offset_inside)) {
			unregister_kprobe(&kprobe);
			break;
		}
	return CHECK(to, window >= entry && displaced >= 5 && offset_inside < FURTHEST,
		     "neighbours: %s can be detoured, %u bytes from +%u", target->symbol, displaced, *offset);
}

/* The last byte of the instruction that the jump does not cover begins one of its own, if one decodes from there. */
asm(".pushsection .text\n"
    ".type test_out_of_step, @function\n"
    "test_out_of_step:\n"
    "	endbr64\n"
    "	mov $0x0f000000, %r8d\n"		/* 41 b8 00 00 00 0f */
    "	mov %rdi, %rax\n"			/* 48 89 f8 */
    "	xor $0x1234567, %rax\n"
    "	xor $0x1234567, %rax\n"
    "	" ASM_RET
    ".size test_out_of_step, . - test_out_of_step\n"
    ".popsection\n");
unsigned long test_out_of_step(unsigned long x);
#define BEHIND_WINDOW 10

KDETOUR(test_out_of_step, unsigned long, (unsigned long x), (x))
{
	WRITE_ONCE(detoured, detoured + 1);
	return test_out_of_step_original(x);
}

/* The kernel decodes a function from its start to find out where a probe may be, and cannot see through our jump. */
static void out_of_step(struct test_lines *to)
{
	static const struct neighbour kprobe_there = { "kprobe behind the window", NULL, NULL, 1 };
	static const struct target target_ = { "test_out_of_step", test_out_of_step, &test_out_of_step_detour };
	struct kdetour_error error = {};
	int first, second, attached;
	bool both;

	target = &target_;
	first = add_kprobe(BEHIND_WINDOW);
	attached = attach(&error);
	both = works(&kprobe_there, true, true);
	if (!first)
		unregister_kprobe(&kprobe);
	second = add_kprobe(BEHIND_WINDOW);
	if (!second)
		unregister_kprobe(&kprobe);
	CHECK(to, !first && !attached && both && second == -EILSEQ && works(&kprobe_there, false, true),
	      "neighbours: where the jump leaves a byte a kprobe behind it comes first (%d, %d), or not: %d", first,
	      attached, second);
	if (!attached)
		detach(KDETOUR_FOR_EVER, &error);
}

/*
 * bpf attach|detach|there|gone: for the script, which has a program of its own attached meanwhile. The last two do the
 * work, with the detour there or gone.
 */
void test_bpf(struct test_lines *to, const char *argument)
{
	struct kdetour_error error = {};
	unsigned long i, wrong = 0;
	bool is_there = !strcmp(argument, "there");

	if (!strcmp(argument, "attach")) {
		CHECK(to, !attach(&error), "bpf: attach %s", error.text);
	} else if (!strcmp(argument, "detach")) {
		CHECK(to, !detach(KDETOUR_FOR_EVER, &error), "bpf: detach %s",
		      error.text);
	} else {
		detoured = 0;
		for (i = 1; i <= WORK; i++)
			wrong += int_sqrt(i * i) != i;
		CHECK(to, !wrong && detoured == (is_there ? WORK : 0), "bpf: %s: %lu wrong, the detour saw %lu", argument,
		      wrong, detoured);
	}
}

void test_neighbours(struct test_lines *to, const char *argument)
{
	static const struct neighbour optimised = { "optimised kprobe", kprobe_optimised_add, kprobe_del, 1 };
	unsigned int i, offset;
	int __maybe_unused result;

	target = &straight;
	if (find_offsets(to, &offset))
		in_every_order(to, &optimised);
	target = &root;
	if (!find_offsets(to, &offset))
		return;
	for (i = 0; i < ARRAY_SIZE(neighbours); i++)
		in_every_order(to, &neighbours[i]);
#ifndef CONFIG_FPROBE
	result = register_fprobe(&(struct fprobe){ .nmissed = 0 }, "int_sqrt", NULL);
	CHECK(to, result == -EOPNOTSUPP, "neighbours: fprobe cannot be tried, this kernel has no CONFIG_FPROBE: %d", result);
#endif
	in_window(to, offset);
	out_of_step(to);
	target = &root;
}
