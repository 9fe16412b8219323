// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * popup: Ctrl+Alt+K stops the machine and shows what it was doing, over whatever is on the screen.
 *
 *	insmod kdetour.ko; insmod video.ko; insmod video_panel.ko; insmod calls.ko; insmod popup.ko
 *
 * With kdetour_words.ko in front of popup.ko instructions are told in words, else by their bytes.
 *
 * The keyboard's interrupt handler is detoured, i8042_interrupt, and what it calls for each byte, serio_interrupt. In that
 * interrupt all other processors are parked, a panel is drawn, and keys are read from the controller's ports until Esc or the hotkey;
 * then the pixels are what they were, and everything runs on. So it works where nothing else does any more but interrupts.
 *	up, down	choose a function of the backtrace, or a detour
 *	tab		the backtrace, the list of detours
 *	d, r		detour the chosen function, release it: attaching sleeps, so it is done when the panel has been closed
 * /sys/kernel/debug/popup/panel has the text of the last panel, and where it was drawn; figures has counters.
 */
#include <linux/debugfs.h>
#include <linux/kallsyms.h>
#include <linux/nmi.h>
#include <linux/seq_file.h>
#include <linux/serio.h>
#include <linux/smp.h>
#include <linux/ktime.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>
#include <asm/irq_regs.h>
#include <asm/unwind.h>
#include "calls.h"
#include "kdetour.h"
#include "kdetour_words.h"
#include "video.h"

static unsigned char key = 0x25;
module_param(key, byte, 0444);
MODULE_PARM_DESC(key, "scan code (set 1) of the key that opens the panel together with Ctrl and Alt; 0x25 is K");

#define FRAMES 16		/* of a backtrace */
#define FRAME_ROWS 6		/* shown at once */
#define LISTED 20		/* detours */
#define PARK_MS 100ull		/* that the other processors have */

#define DATA_PORT 0x60
#define STATUS_PORT 0x64
#define HAS_BYTE 0x01
#define OF_MOUSE 0x20
#define RELEASED 0x80
#define EXTENDED 0xe0
#define PAUSE 0xe1

enum { CTRL = 0x1d, ALT = 0x38, ESC = 0x01, TAB = 0x0f, UP = 0x48, DOWN = 0x50, D = 0x20, R = 0x13 };

static struct video_panel panel;
#define put(...) video_panel_put(&panel, __VA_ARGS__)
static struct serio *keyboard, *mouse;
static typeof(&kdetour_words) words;	/* NULL without kdetour_words.ko */
static bool ctrl, alt, held, wanted;
static unsigned int repeats;

static struct { unsigned long opened, refused, first_pixel_ns, kept, lost, parked; } figures;

/* What was read while the panel was there, and is the keyboard driver's or the mouse's. */
static struct { u8 byte; bool of_mouse; } kept[256];
static unsigned int kept_count;

static struct frame { unsigned long at, entry; } frames[FRAMES];
static unsigned int frame_count, chosen, page;
static const char *message;

/* The list of detours, made by a task: the one that is not shown is written, then they change places. */
static struct listed { struct kdetour_live of[LISTED]; unsigned int count; } lists[2];
static unsigned int shown_list;

/* What is to be done when the panel has been closed. */
static unsigned long to_detour, to_release;

static void refresh(struct work_struct *work);
static DECLARE_DELAYED_WORK(refreshing, refresh);
static void calm(struct work_struct *work);
static DECLARE_DELAYED_WORK(calming, calm);
extern int rcu_cpu_stall_suppress;
static int stalls_were;
static bool calmed;

static DEFINE_PER_CPU(call_single_data_t, park_call);
static atomic_t parked;
static bool parking;

/* By IPI, with interrupts off. A processor that comes too late finds that it is over. */
static void park(void *unused)
{
	atomic_inc(&parked);
	while (READ_ONCE(parking)) {
		touch_nmi_watchdog();
		cpu_relax();
	}
	touch_nmi_watchdog();
	atomic_dec(&parked);
}

static void release_all(void)
{
	WRITE_ONCE(parking, false);
	while (atomic_read(&parked))
		cpu_relax();
}

/*
 * A processor with interrupts off may be waiting for a lock that one that is parked already holds: it would never come, so this
 * ends after a while.
 */
static bool park_all(void)
{
	unsigned int cpu, me = smp_processor_id(), others = num_online_cpus() - 1;
	u64 until = ktime_get_mono_fast_ns() + PARK_MS * NSEC_PER_MSEC;

	WRITE_ONCE(parking, true);
	for_each_online_cpu(cpu)
		if (cpu != me)
			/* -EBUSY: the last time's is still on its way to that processor, and does as well. */
			smp_call_function_single_async(cpu, per_cpu_ptr(&park_call, cpu));
	while (atomic_read(&parked) < others) {
		if (ktime_get_mono_fast_ns() > until) {
			release_all();
			return false;
		}
		cpu_relax();
	}
	figures.parked = others;
	return true;
}

static unsigned long entry_of(unsigned long at)
{
	static char text[KSYM_SYMBOL_LEN];
	unsigned long offset;
	char *plus;

	sprint_symbol(text, at);
	plus = strrchr(text, '+');
	return plus && sscanf(plus, "+0x%lx", &offset) == 1 ? at - offset : 0;
}

static void walk(struct pt_regs *regs)
{
	struct unwind_state state;
	unsigned long at;

	frame_count = 0;
	if (!regs || user_mode(regs))
		return;
	unwind_start(&state, current, regs, NULL);
	for (at = regs->ip; at && frame_count < FRAMES; unwind_next_frame(&state)) {
		/* A return address may be the next function's: it is looked up by what is in front of it. */
		frames[frame_count].entry = entry_of(at - !!frame_count);
		frames[frame_count++].at = at;
		at = unwind_done(&state) ? 0 : unwind_get_return_address(&state);
	}
}

/* The length of the instruction at `at`, in the kernel or in a 64-bit program; 0 if there is none. */
static unsigned int decode(unsigned long at, u8 bytes[15], u64 *leads_to)
{
	if (copy_from_kernel_nofault(bytes, (void *)at, 15) && copy_from_user_nofault(bytes, (void __user *)at, 15))
		return 0;
	return kdetour_length(bytes, 15, at, leads_to);
}

/* In words, or by its bytes; what it refers to by its symbol, in place of the address or behind the bytes. */
static void put_instruction(unsigned int row, enum video_style style, unsigned long at, const u8 *bytes, unsigned int length, u64 leads_to)
{
	static char text[KDETOUR_WORDS_TEXT], address[20];
	const char *name = NULL;

	if (!words || words(bytes, length, at, text, sizeof(text)) < 0)
		snprintf(text, sizeof(text), "%*phN  ", length, bytes);
	snprintf(address, sizeof(address), "0x%llx", leads_to);
	if (leads_to)
		name = strstr(text, address) ?: text + strlen(text);
	put(row, 1, style, "%c %016lx  %.*s", style == VIDEO_TITLE ? '>' : ' ', at, name ? (int)(name - text) : KDETOUR_WORDS_TEXT, text);
	if (name)
		put(row, 21 + name - text, VIDEO_DIM, "%pS%s", (void *)(unsigned long)leads_to, *name ? name + strlen(address) : "");
}

/* Two instructions in front, as they follow from the function's start (kdetour's slots are one of 64 KiB); it; two more. */
static void put_code(unsigned int row, unsigned long ip)
{
	unsigned long at = entry_of(ip), before[2] = { ip, ip };
	unsigned int i, length;
	u64 leads_to;
	u8 bytes[15];

	for (; at && at < ip && ip - at < 8192; at += length) {
		length = decode(at, bytes, &leads_to);
		if (!length)
			break;
		before[0] = before[1];
		before[1] = at;
	}
	at = at == ip ? before[0] : ip;
	for (i = 0; i < 5; i++, at += length) {
		length = decode(at, bytes, &leads_to);
		if (!length)
			break;
		put_instruction(row + i, at == ip ? VIDEO_TITLE : VIDEO_PLAIN, at, bytes, length, leads_to);
	}
}

static void fill_machine(struct pt_regs *regs)
{
	unsigned int i, from = chosen < FRAME_ROWS ? 0 : chosen - FRAME_ROWS + 1;

	put(2, 1, VIDEO_DIM, "task");
	put(2, 8, VIDEO_PLAIN, "%s, pid %d, %s", current->comm, task_pid_nr(current),
	    !regs ? "no registers: interrupts are threads here" : user_mode(regs) ? "in the program" : "in the kernel");
	if (regs) {
		const struct { const char *name; unsigned long value; } all[] = {
			{ "rax", regs->ax }, { "rbx", regs->bx }, { "rcx", regs->cx }, { "rdx", regs->dx },
			{ "rsi", regs->si }, { "rdi", regs->di }, { "rbp", regs->bp }, { "rsp", regs->sp },
			{ "r8", regs->r8 }, { "r9", regs->r9 }, { "r10", regs->r10 }, { "r11", regs->r11 },
			{ "r12", regs->r12 }, { "r13", regs->r13 }, { "r14", regs->r14 }, { "r15", regs->r15 },
			{ "flags", regs->flags }, { "cs", regs->cs },
		};

		put(3, 1, VIDEO_DIM, "rip");
		put(3, 8, VIDEO_PLAIN, "%016lx  %pS", regs->ip, (void *)regs->ip);
		for (i = 0; i < ARRAY_SIZE(all); i++) {
			put(4 + i / 3, 1 + i % 3 * 25, VIDEO_DIM, "%s", all[i].name);
			put(4 + i / 3, 8 + i % 3 * 25, VIDEO_PLAIN, "%016lx", all[i].value);
		}
		if (!user_mode(regs) || regs->cs == __USER_CS)
			put_code(11, regs->ip);
		else
			put(11, 3, VIDEO_PLAIN, "of a 32-bit program");
	}
	put(10, 1, VIDEO_DIM, "code");
	put(16, 1, VIDEO_DIM, "backtrace");
	for (i = from; i < frame_count && i < from + FRAME_ROWS; i++)
		put(17 + i - from, 3, i == chosen ? VIDEO_CHOSEN : VIDEO_PLAIN, "%016lx  %pS", frames[i].at, (void *)(frames[i].at - !!i));
	if (!frame_count)
		put(17, 3, VIDEO_PLAIN, "nothing of the kernel's");
}

static void fill_detours(void)
{
	static const char *const methods[] = { "jump", "pointer", "int3", "debug register" };
	const struct listed *list = &lists[READ_ONCE(shown_list)];
	unsigned long count;
	unsigned int i;

	put(2, 1, VIDEO_DIM, "%-34s %-10s %-10s %s", "detour of", "by", "inside", "owner");
	for (i = 0; i < list->count; i++) {
		const struct kdetour_live *one = &list->of[i];
		enum video_style style = i == chosen ? VIDEO_CHOSEN : VIDEO_PLAIN;

		put(3 + i, 1, style, "%ps", (void *)(unsigned long)one->target);
		put(3 + i, 36, style, "%-10s %-10llu %s", methods[one->method & 3], one->calls,
		    one->attached ? one->owner : "drains, or planned");
		if (calls_of(one->handle, &count))
			put(3 + i, 64, style, "%lu calls", count);
	}
}

static void fill(struct pt_regs *regs)
{
	video_panel_clear(&panel);
	put(0, 0, VIDEO_TITLE, "%*s", VIDEO_COLUMNS, "");
	put(VIDEO_ROWS - 1, 0, VIDEO_TITLE, "%*s", VIDEO_COLUMNS, "");
	put(0, 1, VIDEO_TITLE, "kdetour popup");
	put(0, 20, VIDEO_TITLE, "CPU %u, %lu more parked", smp_processor_id(), figures.parked);
	put(0, 52, VIDEO_TITLE, "%.15s %ux%u", panel.mode.driver, panel.mode.width, panel.mode.height);
	if (page)
		fill_detours();
	else
		fill_machine(regs);
	put(VIDEO_ROWS - 2, 1, VIDEO_CHOSEN, "%s", message);
	put(VIDEO_ROWS - 1, 1, VIDEO_TITLE, "up down: choose  tab: %s  d: detour  r: release  esc: go on", page ? "machine" : "detours");
}

/* Whether the byte is the hotkey's, and nobody else's. *opens: it has been pressed just now. */
static bool is_hotkey(u8 byte, bool *opens)
{
	*opens = false;
	if ((byte & ~RELEASED) == CTRL)
		ctrl = !(byte & RELEASED);
	else if ((byte & ~RELEASED) == ALT)
		alt = !(byte & RELEASED);
	if (byte == (key | RELEASED) && held) {
		held = false;
		return true;
	}
	if (byte != key || !(held || (ctrl && alt)))
		return false;
	/* A keyboard repeats what is held down. */
	if (held)
		repeats++;
	*opens = !held;
	held = true;
	return true;
}

static void keep(u8 byte, bool of_mouse)
{
	if (kept_count == ARRAY_SIZE(kept)) {
		figures.lost++;
		return;
	}
	kept[kept_count].byte = byte;
	kept[kept_count++].of_mouse = of_mouse;
}

static const char *act(u8 byte)
{
	const struct listed *list = &lists[READ_ONCE(shown_list)];
	unsigned long count;

	if (byte == UP && chosen) {
		chosen--;
	} else if (byte == DOWN && chosen + 1 < (page ? list->count : frame_count)) {
		chosen++;
	} else if (byte == TAB) {
		page = !page;
		chosen = 0;
	} else if (byte == D) {
		if (page || chosen >= frame_count || !frames[chosen].entry)
			return "choose a function of the backtrace first";
		to_detour = frames[chosen].entry;
		return "it will be detoured when the panel is closed";
	} else if (byte == R) {
		if (!page || chosen >= list->count || !calls_of(list->of[chosen].handle, &count))
			return "choose a detour of calls' in the list first";
		to_release = list->of[chosen].target;
		return "it will be released when the panel is closed";
	}
	return "";
}

/*
 * Until Esc or the hotkey. A key that was pressed before the panel came is released for the kernel, too; one
 * that is pressed and released meanwhile is nobody else's.
 */
static void serve(struct pt_regs *regs)
{
	static DECLARE_BITMAP(pressed, 256);
	bool extended = false, closes = false;
	unsigned int of_pause = 0;

	bitmap_zero(pressed, 256);
	while (!closes) {
		u8 status = inb(STATUS_PORT), byte, code;

		touch_nmi_watchdog();
		if (!(status & HAS_BYTE)) {
			cpu_relax();
			continue;
		}
		byte = inb(DATA_PORT);
		if (status & OF_MOUSE) {
			keep(byte, true);
			continue;
		}
		/* Pause is two times three bytes, and is never released. */
		if (byte == PAUSE || of_pause) {
			of_pause = byte == PAUSE ? 2 : of_pause - 1;
			continue;
		}
		if (byte == EXTENDED) {
			extended = true;
			continue;
		}
		if (!is_hotkey(byte, &closes)) {
			code = (byte & ~RELEASED) | (extended ? RELEASED : 0);
			if (!(byte & RELEASED)) {
				__set_bit(code, pressed);
				closes = byte == ESC;
				message = act(byte);
				fill(regs);
				video_panel_draw(&panel, true);
			} else if (!__test_and_clear_bit(code, pressed)) {
				if (extended)
					keep(EXTENDED, false);
				keep(byte, false);
			}
		}
		extended = false;
	}
}

KDETOUR(serio_interrupt, irqreturn_t, (struct serio *serio, unsigned char byte, unsigned int flags), (serio, byte, flags))
{
	bool opens;

	if (serio != keyboard || flags || !is_hotkey(byte, &opens))
		return serio_interrupt_original(serio, byte, flags);
	if (opens)
		WRITE_ONCE(wanted, true);
	else if (held && repeats == 8)
		pr_info("popup: the hotkey is held down: its repeats are ignored, release it\n");
	return IRQ_HANDLED;
}

static void popup(u64 entered)
{
	struct pt_regs *regs = get_irq_regs();
	unsigned long flags;
	const char *problem;
	unsigned int i;
	u64 first = 0;

	local_irq_save(flags);
	/* Parked first: nobody changes the mode, or takes the screen away, behind the look at it. */
	problem = park_all() ? video_panel_place(&panel) :
		  "a processor did not park in time, it may wait for a lock: press the keys again";
	if (!problem) {
		rcu_cpu_stall_suppress = 1;
		chosen = page = kept_count = 0;
		message = "";
		walk(regs);
		fill(regs);
		first = video_panel_draw(&panel, false) - entered;
		serve(regs);
		video_panel_restore(&panel);
		/*
		 * Before any other byte, and before time goes on: half of a mouse's packet would be too old. What an interrupt
		 * locks is held with interrupts off elsewhere, so by nobody who is parked.
		 */
		for (i = 0; i < kept_count; i++)
			if (!kept[i].of_mouse || mouse)
				serio_interrupt_original(kept[i].of_mouse ? mouse : keyboard, kept[i].byte, 0);
	}
	release_all();
	local_irq_restore(flags);
	if (problem) {
		figures.refused++;
		pr_warn("popup: not shown: %s\n", problem);
		return;
	}
	figures.opened++;
	figures.first_pixel_ns = first;
	figures.kept += kept_count;
	mod_delayed_work(system_wq, &refreshing, 0);
	calmed = false;
	mod_delayed_work(system_wq, &calming, HZ);
}

/* The handler has let its lock go, and the byte is where it belongs, when its original has returned. */
KDETOUR(i8042_interrupt, irqreturn_t, (int irq, void *device), (irq, device))
{
	u64 entered = ktime_get_mono_fast_ns();
	irqreturn_t result = i8042_interrupt_original(irq, device);

	if (READ_ONCE(wanted) && xchg(&wanted, false)) {
		popup(entered);
		repeats = 0;
	}
	return result;
}

static struct kdetour *const detours[] = { &serio_interrupt_detour, &i8042_interrupt_detour };

static void change_detours(void)
{
	unsigned long entry = xchg(&to_detour, 0), old = xchg(&to_release, 0);

	if (old)
		calls_release(old);
	if (entry)
		calls_detour(entry);
}

static void refresh(struct work_struct *work)
{
	struct listed *list = &lists[!shown_list];
	size_t at = 0;

	change_detours();
	for (list->count = 0; list->count < LISTED && kdetour_next(&at, &list->of[list->count]);)
		list->count++;
	smp_store_release(&shown_list, !shown_list);
	schedule_delayed_work(&refreshing, HZ);
}

/* Half a minute later a grace period that was going on is over. The first time comes early: the clock has stood, and catches up. */
static void calm(struct work_struct *work)
{
	if (!calmed)
		schedule_delayed_work(&calming, 30 * HZ);
	else
		rcu_cpu_stall_suppress = stalls_were;
	calmed = true;
}

static void screen_changed(struct video_subscriber *subscriber, const struct video_mode *now)
{
	if (now->kind == VIDEO_UNKNOWN)
		pr_warn("popup: the screen has %u bits a pixel, in a format that it does not know: nothing will be shown until a mode of 16, 24 or 32 bits of true colour is set\n", now->bits);
	else if (now->kind == VIDEO_PIXELS && !now->base)
		pr_warn("popup: where %s has the screen's pixels is not known: nothing will be shown; boot with nomodeset\n", now->driver);
}

static struct video_subscriber subscriber = { .changed = screen_changed };

static int panel_show(struct seq_file *file, void *unused)
{
	video_panel_show(&panel, file);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(panel);

static int figures_show(struct seq_file *file, void *unused)
{
	seq_printf(file, "opened %lu\nrefused %lu\nfirst_pixel_ns %lu\nkept %lu\nlost %lu\ndetours %u\n", figures.opened,
		   figures.refused, figures.first_pixel_ns, figures.kept, figures.lost, calls_number());
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(figures);

static struct dentry *folder;

static int find_ports(struct device *device, void *unused)
{
	struct serio *serio = to_serio_port(device);
	struct serio **port = serio->id.type == SERIO_8042_XL ? &keyboard : serio->id.type == SERIO_8042 ? &mouse : NULL;

	if (port && !*port) {
		get_device(device);
		*port = serio;
	}
	return 0;
}

/* Nobody is in the detours any more. */
static void stop(bool subscribed)
{
	if (subscribed)
		video_unsubscribe(&subscriber);
	video_panel_exit(&panel);
	if (keyboard)
		put_device(&keyboard->dev);
	if (mouse)
		put_device(&mouse->dev);
	if (words)
		symbol_put(kdetour_words);
}

static int __init popup_init(void)
{
	unsigned int cpu;
	bool subscribed;
	int error;

	if (IS_ENABLED(CONFIG_PREEMPT_RT)) {
		pr_err("popup: with PREEMPT_RT an interrupt waits for locks that somebody who is parked may hold: take a kernel without\n");
		return -EOPNOTSUPP;
	}
	if (!key || key & RELEASED || key == CTRL || key == ALT) {
		pr_err("popup: key=%#x is not the scan code of a key that goes with Ctrl and Alt: load it with one from 1 to 0x7f, as in key=0x25\n", key);
		return -EINVAL;
	}
	stalls_were = rcu_cpu_stall_suppress;
	for_each_possible_cpu(cpu)
		INIT_CSD(per_cpu_ptr(&park_call, cpu), park, NULL);
	bus_for_each_dev(&serio_bus, NULL, NULL, find_ports);
	words = symbol_get(kdetour_words);
	if (!keyboard)
		pr_err("popup: there is no PS/2 keyboard with translated scan codes (i8042): switch it on in the firmware; USB will not do\n");
	error = keyboard ? video_panel_init(&panel) ?: video_subscribe(&subscriber) : -ENODEV;
	subscribed = !error;
	error = error ?: kdetour_attach_all(detours, ARRAY_SIZE(detours), KDETOUR_LIVE, NULL);
	if (error) {
		stop(subscribed);
		return error;
	}
	schedule_delayed_work(&refreshing, 0);
	folder = debugfs_create_dir("popup", NULL);
	debugfs_create_file("panel", 0400, folder, NULL, &panel_fops);
	debugfs_create_file("figures", 0400, folder, NULL, &figures_fops);
	return 0;
}

static void __exit popup_exit(void)
{
	debugfs_remove(folder);
	kdetour_detach_all(detours, ARRAY_SIZE(detours), KDETOUR_LIVE, KDETOUR_FOR_EVER, NULL);
	cancel_delayed_work_sync(&refreshing);
	cancel_delayed_work_sync(&calming);
	rcu_cpu_stall_suppress = stalls_were;
	calls_release_all();
	/* Nobody parks any more, and who was asked to park and came too late has been there: it goes on behind this. */
	on_each_cpu(park, NULL, true);
	stop(true);
}

module_init(popup_init);
module_exit(popup_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("stops the machine at a key, and shows what it was doing");
