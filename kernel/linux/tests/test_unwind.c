// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * unwind: stack traces from everywhere on the way through a detour: from the detour, from the original that it calls,
 * from every single instruction of trampoline and target, from a task that sleeps behind a trampoline, and (with
 * preempt=full) from one that was preempted inside it.
 *
 * An execute breakpoint of the processor stops at an instruction without changing it. The targets save registers in
 * which their caller has put the address of a function that is not on the way at all, test_unwind_decoy: whoever takes
 * what was saved for a return address, finds that one.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/hw_breakpoint.h>
#include <linux/irq_work.h>
#include <linux/kallsyms.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/perf_event.h>
#include <linux/preempt.h>
#include <linux/printk.h>
#include <linux/sched.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/stacktrace.h>
#include <linux/static_call.h>
#include <linux/string.h>
#include <asm/nospec-branch.h>
#include "test.h"

#define DEPTH 64
/* Longer than any slot here, and than any target. */
#define SPAN 48

void test_unwind_framed(void);
void test_unwind_pushes(void);
void test_unwind_calls(void);
void test_unwind_traced(void);
void test_unwind_call(void (*target)(void));
void test_unwind_leaf(void);
void test_unwind_decoy(void);

asm(".pushsection .text\n"
    ".macro test_unwind_function name:req\n"
    "	.balign 64, 0xcc\n"
    "	.globl \\name\n"
    "	.type \\name, @function\n"
    "\\name:\n"
    "	endbr64\n"
    ".endm\n"

    "test_unwind_function test_unwind_framed\n"
    "	push %rbp\n"
    "	mov %rsp, %rbp\n"
    "	push %r15\n"
    "	push %r14\n"
    "	call test_unwind_leaf\n"
    "	pop %r14\n"
    "	pop %r15\n"
    "	pop %rbp\n"
    "	" ASM_RET
    ".size test_unwind_framed, . - test_unwind_framed\n"

    "test_unwind_function test_unwind_pushes\n"
    "	push %rbx\n"
    "	push %rbp\n"
    "	push %r12\n"
    "	push %r13\n"
    "	sub $8, %rsp\n"
    "	call test_unwind_leaf\n"
    "	add $8, %rsp\n"
    "	pop %r13\n"
    "	pop %r12\n"
    "	pop %rbp\n"
    "	pop %rbx\n"
    "	" ASM_RET
    ".size test_unwind_pushes, . - test_unwind_pushes\n"

    /* The call is displaced. */
    "test_unwind_function test_unwind_calls\n"
    "	sub $8, %rsp\n"
    "	call test_unwind_leaf\n"
    "	add $8, %rsp\n"
    "	" ASM_RET
    ".size test_unwind_calls, . - test_unwind_calls\n"

    "test_unwind_function test_unwind_call\n"
    "	push %rbp\n"
    "	push %rbx\n"
    "	push %r12\n"
    "	push %r13\n"
    "	push %r14\n"
    "	push %r15\n"
    "	mov %rdi, %rax\n"
    "	lea test_unwind_decoy(%rip), %rbx\n"
    "	lea test_unwind_decoy(%rip), %rbp\n"
    "	lea test_unwind_decoy(%rip), %r12\n"
    "	lea test_unwind_decoy(%rip), %r13\n"
    "	lea test_unwind_decoy(%rip), %r14\n"
    "	lea test_unwind_decoy(%rip), %r15\n"
    "	" ANNOTATE_RETPOLINE_SAFE "\n"
    "	call *%rax\n"
    "	pop %r15\n"
    "	pop %r14\n"
    "	pop %r13\n"
    "	pop %r12\n"
    "	pop %rbx\n"
    "	pop %rbp\n"
    "	" ASM_RET
    ".size test_unwind_call, . - test_unwind_call\n"
    ".purgem test_unwind_function\n"
    ".popsection\n");

noinline void test_unwind_decoy(void)
{
	barrier();
}

/* Not exported; called by a direct jump, since a kernel with IBT seals functions that nobody calls by a pointer. */
typedef unsigned int save_regs_t(struct pt_regs *regs, unsigned long *to, unsigned int size, unsigned int skip);
typedef unsigned int save_task_t(struct task_struct *task, unsigned long *to, unsigned int size, unsigned int skip);
typedef int save_reliable_t(struct task_struct *task, unsigned long *to, unsigned int size);
DEFINE_STATIC_CALL_NULL(save_regs, save_regs_t);
DEFINE_STATIC_CALL_NULL(save_task, save_task_t);
DEFINE_STATIC_CALL_NULL(save_reliable, save_reliable_t);

static bool look_up(struct test_lines *to)
{
	unsigned long regs = kdetour_find("stack_trace_save_regs");
	unsigned long task = kdetour_find("stack_trace_save_tsk");
	unsigned long reliable = kdetour_find("stack_trace_save_tsk_reliable");

	if (!CHECK(to, regs && task && reliable, "unwind: the kernel has what is asked"))
		return false;
	static_call_update(save_regs, (save_regs_t *)regs);
	static_call_update(save_task, (save_task_t *)task);
	static_call_update(save_reliable, (save_reliable_t *)reliable);
	return true;
}

struct trace {
	unsigned long entries[DEPTH];
	unsigned int count;
	int reliable;
};

static struct trace in_detour, in_leaf, at_breakpoint, of_task;
static bool leaf_sleeps, leaf_dumps;
static DECLARE_COMPLETION(asleep);
static DECLARE_COMPLETION(wake_up);

noinline void test_unwind_leaf(void)
{
	in_leaf.count = stack_trace_save(in_leaf.entries, DEPTH, 0);
	if (leaf_dumps)
		dump_stack();
	if (leaf_sleeps) {
		complete(&asleep);
		wait_for_completion(&wake_up);
	}
	barrier();
}

/* One with an ftrace site, for those who replace its return address. */
noinline void test_unwind_traced(void)
{
	test_unwind_leaf();
	barrier();
}

#define DETOUR(target_)							\
KDETOUR_VOID(target_, (void), ())					\
{									\
	in_detour.count = stack_trace_save(in_detour.entries, DEPTH, 0);	\
	target_##_original();						\
}

DETOUR(test_unwind_framed)
DETOUR(test_unwind_pushes)
DETOUR(test_unwind_calls)
DETOUR(test_unwind_traced)

/* The names of the functions in a trace from `from` on, innermost first, with < between them. */
static void names(char *to, size_t size, const struct trace *trace, unsigned int from)
{
	size_t len = 0;
	unsigned int i;

	to[0] = '\0';
	for (i = from; i < trace->count; i++) {
		char name[KSYM_SYMBOL_LEN];

		snprintf(name, sizeof(name), "%ps", (void *)trace->entries[i]);
		/* Without [module]. */
		strreplace(name, ' ', '\0');
		len += scnprintf(to + len, size - len, "%s%s", i > from ? "<" : "", name);
	}
}

/* How each trace here goes on from this test's entry up to the system call: "<test_unwind<run<test_write<...". */
static char outer[1024];

/* Whether a trace is this, then what called the target, and so on to the very end. */
static bool is_chain(const struct trace *trace, unsigned int from, const char *begin)
{
	char *all = kmalloc(PAGE_SIZE, GFP_KERNEL);
	size_t len = strlen(begin);
	const char *end;
	bool is = false;

	if (all) {
		names(all, PAGE_SIZE, trace, from);
		end = strstr(all, "<test_unwind<");
		is = !strncmp(all, begin, len) && strstarts(all + len, "test_unwind_call<call_target<") &&
		     end && !strcmp(end, outer);
	}
	kfree(all);
	return is;
}

static bool is_slot(unsigned long address)
{
	char name[KSYM_SYMBOL_LEN];

	snprintf(name, sizeof(name), "%pS", (void *)address);
	return !strncmp(name, "kd_slab", 7) && strstr(name, "+0x") && strstr(name, "[kdetour]");
}

static noinline void call_target(void (*target)(void))
{
	at_breakpoint.count = 0;
	in_leaf.count = 0;
	in_detour.count = 0;
	test_unwind_call(target);
	barrier();
}

static struct task_struct *walker;

static void on_walk(struct perf_event *event, struct perf_sample_data *data, struct pt_regs *regs)
{
	static unsigned long unused[DEPTH];

	if (current != walker || at_breakpoint.count)
		return;
	at_breakpoint.count = static_call(save_regs)(regs, at_breakpoint.entries, DEPTH, 0);
	at_breakpoint.reliable = static_call(save_reliable)(current, unused, DEPTH);
}

static struct perf_event * __percpu *stop_at(unsigned long address, perf_overflow_handler_t handler)
{
	struct perf_event_attr attr;

	hw_breakpoint_init(&attr);
	attr.bp_addr = address;
	attr.bp_len = sizeof(long);
	attr.bp_type = HW_BREAKPOINT_X;
	return register_wide_hw_breakpoint(&attr, handler, NULL);
}

/* One breakpoint after the other at each address, at which an instruction begins or not. The number that were met. */
static unsigned int walk(struct test_lines *to, const char *what, void (*target)(void), unsigned long start,
			 const char *behind_window, unsigned long *second)
{
	unsigned int met = 0, wrong = 0, reliable = 0;
	unsigned long at;

	for (at = start; at < start + SPAN; at++) {
		struct perf_event * __percpu *event = stop_at(at, on_walk);
		const struct trace *trace = &at_breakpoint;
		bool right;

		if (IS_ERR((void __force *)event)) {
			test_line(to, false, "unwind: no breakpoint at %pS", (void *)at);
			return 0;
		}
		call_target(target);
		unregister_wide_hw_breakpoint(event);
		if (!trace->count)
			continue;
		if (++met == 2 && second)
			*second = at;
		right = trace->entries[0] == at && is_slot(at) == !behind_window;
		if (!behind_window)
			right = right && trace->count == 1;
		else
			right = right && (is_chain(trace, 1, "") || is_chain(trace, 1, behind_window));
		wrong += !right;
		reliable += trace->reliable > 0;
	}
	CHECK(to, !wrong, "unwind: %s: traces from %u instructions, %u wrong", what, met, wrong);
	/* The name of the target is nowhere in a trace that ends in a slot: nobody must rely on it. */
	CHECK(to, reliable == (behind_window ? met : 0), "unwind: %s: %u of them reliable", what, reliable);
	return met;
}

static DECLARE_COMPLETION(returned);

static int calling(void *target)
{
	test_unwind_call(target);
	complete(&returned);
	return 0;
}

static struct task_struct *on_processor_0(int (*run)(void *data), void *data, const char *name)
{
	struct task_struct *task = kthread_create(run, data, "%s", name);

	if (IS_ERR(task))
		return NULL;
	get_task_struct(task);
	kthread_bind(task, 0);
	return task;
}

static void wait_until_asleep(struct task_struct *task)
{
	while (READ_ONCE(task->__state) != TASK_UNINTERRUPTIBLE || READ_ONCE(task->on_cpu))
		msleep(1);
}

/* A task that sleeps in what the original calls: all of the chain, and reliable. */
static void check_asleep(struct test_lines *to, void (*target)(void), const char *chain)
{
	char *all = kmalloc(PAGE_SIZE, GFP_KERNEL);
	struct task_struct *task;
	int count;

	task = on_processor_0(calling, target, "kdetour_asleep");
	if (!CHECK(to, all && task, "unwind: a task"))
		return;
	leaf_sleeps = true;
	wake_up_process(task);
	wait_for_completion(&asleep);
	leaf_sleeps = false;
	wait_until_asleep(task);
	count = static_call(save_reliable)(task, of_task.entries, DEPTH);
	of_task.count = max(count, 0);
	names(all, PAGE_SIZE, &of_task, 0);
	CHECK(to, count > 0 && strstr(all, chain) && strstr(all, "test_unwind_call<calling<kthread<ret_from_fork"),
	      "unwind: a task that sleeps behind a trampoline: reliable %d: %s", count, all);
	complete(&wake_up);
	wait_for_completion(&returned);
	kthread_stop(task);
	put_task_struct(task);
	kfree(all);
}

/*
 * A task that is preempted in a trampoline: a breakpoint there asks for an interrupt, which wakes a task of a higher
 * priority on the same processor, which looks at the first one.
 */
static struct task_struct *parked;
static bool asked;
static DECLARE_COMPLETION(look);

static void on_interrupt(struct irq_work *work)
{
	complete(&look);
}
static DEFINE_IRQ_WORK(ask, on_interrupt);

static void on_park(struct perf_event *event, struct perf_sample_data *data, struct pt_regs *regs)
{
	if (current == parked && !asked) {
		asked = true;
		irq_work_queue(&ask);
	}
}

static int looking(void *unused)
{
	static unsigned long reliable[DEPTH];

	wait_for_completion(&look);
	of_task.count = static_call(save_task)(parked, of_task.entries, DEPTH, 0);
	of_task.reliable = static_call(save_reliable)(parked, reliable, DEPTH);
	return 0;
}

static void check_preempted(struct test_lines *to, void (*target)(void), unsigned long at)
{
	struct perf_event * __percpu *event = stop_at(at, on_park);
	struct task_struct *looker;
	unsigned int slot;

	parked = on_processor_0(calling, target, "kdetour_parked");
	looker = on_processor_0(looking, NULL, "kdetour_looking");
	if (!CHECK(to, parked && looker && !IS_ERR((void __force *)event), "unwind: two tasks"))
		return;
	asked = false;
	of_task.count = 0;
	of_task.reliable = 0;
	sched_set_fifo(looker);
	wake_up_process(looker);
	/* It waits before the other one, whose processor it would take, begins. */
	wait_until_asleep(looker);
	wake_up_process(parked);
	wait_for_completion(&returned);
	kthread_stop(parked);
	/* Should nobody have come by. */
	if (!CHECK(to, asked, "unwind: a task came to %pS", (void *)at))
		complete(&look);
	kthread_stop(looker);
	for (slot = 0; slot < of_task.count && !is_slot(of_task.entries[slot]); slot++)
		;
	CHECK(to, slot < of_task.count, "unwind: it was preempted in the trampoline");
	CHECK(to, slot + 1 == of_task.count, "unwind: its trace ends there");
	CHECK(to, of_task.reliable < 0, "unwind: which is not reliable: %d", of_task.reliable);
	unregister_wide_hw_breakpoint(event);
	put_task_struct(parked);
	put_task_struct(looker);
}

/* How a trace goes on behind a target, and from what the original calls. */
struct chains {
	char entered[64], leaf[128];
};

static void name_chains(struct chains *chains, const char *name)
{
	snprintf(chains->entered, sizeof(chains->entered), "%s_entered_<", name);
	snprintf(chains->leaf, sizeof(chains->leaf), "test_unwind_leaf<%s<%s_entered_<", name, name);
}

static void check_chains(struct test_lines *to, const char *name, void (*target)(void))
{
	struct chains chains;

	name_chains(&chains, name);
	call_target(target);
	CHECK(to, is_chain(&in_detour, 0, chains.entered), "unwind: %s: from the detour", name);
	CHECK(to, is_chain(&in_leaf, 0, chains.leaf), "unwind: %s: from what the original calls", name);
}

static void check_target(struct test_lines *to, struct kdetour *detour, const char *name, void (*target)(void),
			 unsigned int in_slot)
{
	struct kdetour *const one[] = { detour };
	struct kdetour_error error = {};
	unsigned long second = 0;
	void *trampoline = NULL;
	struct chains chains;
	unsigned int met;

	name_chains(&chains, name);
	detour->original = &trampoline;
	if (!CHECK(to, !kdetour_attach_all(one, 1, KDETOUR_LIVE, &error), "unwind: %s: attach %s", name, error.text))
		return;

	leaf_dumps = true;
	check_chains(to, name, target);
	leaf_dumps = false;
	met = walk(to, "trampoline", target, (unsigned long)trampoline, NULL, &second);
	CHECK(to, met == in_slot, "unwind: %s: %u instructions in the slot", name, met);
	met = walk(to, name, target, (unsigned long)target, chains.entered, NULL);
	/* The jump at least, and all behind the displaced call. */
	CHECK(to, met > 2, "unwind: %s: %u instructions in the target", name, met);
	check_asleep(to, target, chains.leaf);
	if (preempt_model_preemptible() && CHECK(to, second, "unwind: %s: a second instruction", name))
		check_preempted(to, target, second);

	CHECK(to, !kdetour_detach_all(one, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error), "unwind: %s: detach %s", name,
	      error.text);
	detour->original = NULL;
}

static void learn_outer(struct test_lines *to)
{
	char *all = kmalloc(PAGE_SIZE, GFP_KERNEL);
	const char *end = NULL;

	outer[0] = '\0';
	call_target(test_unwind_framed);
	if (all) {
		names(all, PAGE_SIZE, &in_leaf, 0);
		end = strstr(all, "<test_unwind<");
		strscpy(outer, end ?: "", sizeof(outer));
	}
	CHECK(to, strstr(outer, "<test_write<") && strstr(outer, "<entry_SYSCALL_64"),
	      "unwind: without a detour: %s", all ?: "");
	kfree(all);
}

/* traced: while somebody replaces the target's return address. */
static void check_traced(struct test_lines *to)
{
	struct kdetour *const one[] = { &test_unwind_traced_detour };
	struct kdetour_error error = {};

	if (!CHECK(to, !kdetour_attach_all(one, 1, KDETOUR_LIVE, &error), "unwind traced: attach %s", error.text))
		return;
	check_chains(to, "test_unwind_traced", test_unwind_traced);
	CHECK(to, !kdetour_detach_all(one, 1, KDETOUR_LIVE, KDETOUR_FOR_EVER, &error), "unwind traced: detach %s",
	      error.text);
}

void test_unwind(struct test_lines *to, const char *argument)
{
	if (!look_up(to))
		return;
	walker = current;
	learn_outer(to);
	if (!strcmp(argument, "traced")) {
		check_traced(to);
		barrier();
		return;
	}
	/* push, mov, push, jmp; four pushes, jmp; sub, push, jmp. */
	check_target(to, &test_unwind_framed_detour, "test_unwind_framed", test_unwind_framed, 4);
	check_target(to, &test_unwind_pushes_detour, "test_unwind_pushes", test_unwind_pushes, 5);
	check_target(to, &test_unwind_calls_detour, "test_unwind_calls", test_unwind_calls, 3);
	/* No jump in place of the last call: this function is to be in every trace. */
	barrier();
}
