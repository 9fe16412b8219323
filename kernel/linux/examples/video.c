// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * video: knows where the screen is, how it is laid out, and of every change of its mode.
 *
 *	insmod kdetour.ko; insmod video.ko; cat /dev/kdetour_video
 *
 * It asks no driver: it detours the functions by which framebuffers come and go and modes are set, whoever calls them: consoles,
 * programs (FBIOPUT_VSCREENINFO), DRM's emulation of framebuffers. What was there before it was loaded it learns by
 * opening /dev/fb0. VGA text mode is told by the console's own switch and resize. What programs set by DRM's own interface lies over
 * all that; video_drm.ko reports it (video_cover).
 *
 * The state is exchanged under a spinlock with interrupts off, so that it can be read in interrupts (video_now). Subscribers
 * hear of it later, by a work item. While a mode is being set there is none: VIDEO_NONE.
 */
#include <linux/console.h>
#include <linux/fb.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/major.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/vt_kern.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <asm/vga.h>
#include "kdetour.h"
#include "video.h"

#define TEXT_MEMORY 0xb8000
#define TEXT_SIZE 0x8000
static DEFINE_RAW_SPINLOCK(now_lock);
/* What is shown: the console's mode, or the one that covers it. */
static struct video_mode now;
static struct video_mode console;
/* Whose mode the console's is, to tell it from others; never followed. */
static const void *console_of;
static struct video_mode cover;
static bool is_covered;
/* What subscribers are told: never a mode that is only on its way. */
static struct video_mode announced;

static DEFINE_MUTEX(subscribers_mutex);
static LIST_HEAD(subscribers);
static unsigned int subscriber_count;
/* Who holds the mutex while subscribers are told: they may come and go from `changed`. */
static struct task_struct *teller;
static void tell_subscribers(struct work_struct *work);
static DECLARE_WORK(telling, tell_subscribers);

void video_now(struct video_mode *mode)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&now_lock, flags);
	*mode = now;
	raw_spin_unlock_irqrestore(&now_lock, flags);
}
EXPORT_SYMBOL_GPL(video_now);

static bool same_field(struct video_field a, struct video_field b)
{
	return a.shift == b.shift && a.bits == b.bits;
}

static bool same(const struct video_mode *a, const struct video_mode *b)
{
	return a->kind == b->kind && a->base == b->base && a->physical == b->physical && a->size == b->size &&
	       a->pitch == b->pitch && a->width == b->width && a->height == b->height && a->bits == b->bits &&
	       a->fourcc == b->fourcc && same_field(a->red, b->red) && same_field(a->green, b->green) &&
	       same_field(a->blue, b->blue) && !strcmp(a->driver, b->driver);
}

/* With now_lock held. Whether there is something to tell: not while the console's mode is being set, since what comes of that will be. */
static bool settle(void)
{
	now = is_covered ? cover : console;
	now.serial = announced.serial;
	if ((!is_covered && console.kind == VIDEO_NONE && console_of) || same(&now, &announced))
		return false;
	now.serial++;
	announced = now;
	return true;
}

/* With now_lock held. If nothing but the base has moved, who comes later is told where it is. */
static void settle_quietly(void)
{
	struct video_mode moved = announced;

	if (is_covered)
		return;
	now = console;
	now.serial = announced.serial;
	moved.base = now.base;
	moved.physical = now.physical;
	if (same(&moved, &now))
		announced = moved;
}

/*
 * The console's mode. With `if_still` nothing, if the console has become another's meanwhile. `tell`: subscribers hear of it. A pan, which
 * consoles do for each line, only moves the base.
 */
static void publish(const struct video_mode *mode, const void *of, bool if_still, bool tell)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&now_lock, flags);
	if (if_still && console_of != of) {
		tell = false;
	} else {
		console = *mode;
		WRITE_ONCE(console_of, of);
		if (tell)
			tell = settle();
		else
			settle_quietly();
	}
	raw_spin_unlock_irqrestore(&now_lock, flags);
	if (tell)
		schedule_work(&telling);
}

void video_cover(const struct video_mode *mode)
{
	unsigned long flags;
	bool tell;

	raw_spin_lock_irqsave(&now_lock, flags);
	is_covered = mode;
	if (mode)
		cover = *mode;
	tell = settle();
	raw_spin_unlock_irqrestore(&now_lock, flags);
	if (tell)
		schedule_work(&telling);
}
EXPORT_SYMBOL_GPL(video_cover);

static void read_announced(struct video_mode *mode)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&now_lock, flags);
	*mode = announced;
	raw_spin_unlock_irqrestore(&now_lock, flags);
}

static bool is_consoles(const void *of)
{
	return READ_ONCE(console_of) == of;
}

static bool is_true_colour(const struct fb_info *info)
{
	const struct fb_var_screeninfo *var = &info->var;

	return info->fix.type == FB_TYPE_PACKED_PIXELS && info->fix.visual == FB_VISUAL_TRUECOLOR && !var->grayscale &&
	       (var->bits_per_pixel == 16 || var->bits_per_pixel == 24 || var->bits_per_pixel == 32) &&
	       var->red.length && var->red.length <= 8 && var->green.length && var->green.length <= 8 &&
	       var->blue.length && var->blue.length <= 8 && !var->red.msb_right;
}

/* The framebuffer's own lock, or the console's, is held by whoever changes it. */
static void publish_framebuffer(const struct fb_info *info, bool if_still, bool tell)
{
	const struct fb_var_screeninfo *var = &info->var;
	u32 first = var->yoffset * info->fix.line_length + var->xoffset * var->bits_per_pixel / 8;
	struct video_mode mode = {
		.kind = is_true_colour(info) ? VIDEO_PIXELS : VIDEO_UNKNOWN,
		.size = var->yres * info->fix.line_length,
		.pitch = info->fix.line_length,
		.width = var->xres,
		.height = var->yres,
		.bits = var->bits_per_pixel,
		.red = { var->red.offset, var->red.length },
		.green = { var->green.offset, var->green.length },
		.blue = { var->blue.offset, var->blue.length },
	};

	/*
	 * Drivers with a shadow, such as DRM's, tell no address: what is written there is shown by a task, some time later. Others have not
	 * mapped it.
	 */
	if (info->fix.smem_start && info->screen_base) {
		mode.base = info->screen_base + first;
		mode.physical = info->fix.smem_start + first;
	}
	strscpy(mode.driver, info->fix.id, sizeof(mode.driver));
	publish(&mode, info, if_still, tell);
}

static void publish_text(u32 columns, u32 rows)
{
	struct video_mode mode = {
		.kind = VIDEO_TEXT,
		.base = (void __iomem *)VGA_MAP_MEM(TEXT_MEMORY, TEXT_SIZE),
		.physical = TEXT_MEMORY,
		.size = TEXT_SIZE,
		.pitch = columns * 2,
		.width = columns,
		.height = rows,
		.bits = 16,
		.driver = "vgacon",
	};

	publish(&mode, &vga_con, false, true);
}

KDETOUR(register_framebuffer, int, (struct fb_info *info), (info))
{
	int result = register_framebuffer_original(info);

	/* The first one is the console's. */
	if (!result && info->node == 0)
		publish_framebuffer(info, false, true);
	return result;
}

KDETOUR_VOID(unregister_framebuffer, (struct fb_info *info), (info))
{
	/* Before it goes: nobody may write there any more. */
	if (is_consoles(info)) {
		struct video_mode none = { .driver = "gone" };

		publish(&none, NULL, false, true);
	}
	unregister_framebuffer_original(info);
}

KDETOUR(fb_set_var, int, (struct fb_info *info, struct fb_var_screeninfo *var), (info, var))
{
	bool sets = is_consoles(info) && (var->activate & FB_ACTIVATE_MASK) == FB_ACTIVATE_NOW;
	struct video_mode none = { .driver = "changing" };
	int result;

	if (sets)
		publish(&none, info, true, false);
	result = fb_set_var_original(info, var);
	/* It may have gone meanwhile, while its device is open. */
	if (sets)
		publish_framebuffer(info, true, true);
	return result;
}

KDETOUR(fb_pan_display, int, (struct fb_info *info, struct fb_var_screeninfo *var), (info, var))
{
	int result = fb_pan_display_original(info, var);

	if (is_consoles(info))
		publish_framebuffer(info, true, false);
	return result;
}

/* An int in 6.1, a bool later: all of the register is handed on. */
KDETOUR(vgacon_switch, long, (struct vc_data *console), (console))
{
	long result = vgacon_switch_original(console);

	publish_text(console->vc_cols, console->vc_rows);
	return result;
}

KDETOUR(vgacon_resize, int, (struct vc_data *console, unsigned int columns, unsigned int rows, unsigned int user),
	(console, columns, rows, user))
{
	int result = vgacon_resize_original(console, columns, rows, user);

	if (!result && is_consoles(&vga_con) && console == vc_cons[fg_console].d)
		publish_text(columns, rows);
	return result;
}

static struct kdetour *const framebuffer_detours[] = {
	&register_framebuffer_detour, &unregister_framebuffer_detour, &fb_set_var_detour, &fb_pan_display_detour,
};
static struct kdetour *const text_detours[] = { &vgacon_switch_detour, &vgacon_resize_detour };
static bool has_text;

/* Whether it is to be unlocked again: a subscriber in its `changed` has it already. */
static bool lock_subscribers(void)
{
	if (READ_ONCE(teller) == current)
		return false;
	mutex_lock(&subscribers_mutex);
	WRITE_ONCE(teller, current);
	return true;
}

static void unlock_subscribers(bool locked)
{
	if (!locked)
		return;
	WRITE_ONCE(teller, NULL);
	mutex_unlock(&subscribers_mutex);
}

static bool subscribes(const struct video_subscriber *subscriber)
{
	const struct video_subscriber *one;

	list_for_each_entry(one, &subscribers, node)
		if (one == subscriber)
			return true;
	return false;
}

/* The first one that has not been told, nor of a later one: anybody may come and go while one is. */
static struct video_subscriber *untold(u32 serial)
{
	struct video_subscriber *one;

	list_for_each_entry(one, &subscribers, node)
		if ((s32)(serial - one->told) > 0)
			return one;
	return NULL;
}

static void tell_subscribers(struct work_struct *work)
{
	bool locked = lock_subscribers();
	struct video_subscriber *one;
	struct video_mode mode;

	read_announced(&mode);
	while ((one = untold(mode.serial))) {
		one->told = mode.serial;
		one->changed(one, &mode);
	}
	unlock_subscribers(locked);
}

int video_subscribe(struct video_subscriber *subscriber)
{
	bool locked = lock_subscribers();
	struct video_mode mode;
	int error = 0;

	if (subscribes(subscriber)) {
		error = -EEXIST;
	} else if (subscriber_count == VIDEO_SUBSCRIBERS) {
		pr_warn("video: %d subscribers are the most: close /dev/kdetour_video somewhere, or unload a module that subscribes\n",
			VIDEO_SUBSCRIBERS);
		error = -ENOSPC;
	} else {
		subscriber_count++;
		list_add_tail(&subscriber->node, &subscribers);
		read_announced(&mode);
		subscriber->told = mode.serial;
		subscriber->changed(subscriber, &mode);
	}
	unlock_subscribers(locked);
	return error;
}
EXPORT_SYMBOL_GPL(video_subscribe);

void video_unsubscribe(struct video_subscriber *subscriber)
{
	bool locked = lock_subscribers();

	if (subscribes(subscriber)) {
		list_del(&subscriber->node);
		subscriber_count--;
	}
	unlock_subscribers(locked);
}
EXPORT_SYMBOL_GPL(video_unsubscribe);

/*
 * /dev/kdetour_video: a read gives one line, of the mode as it is, and the next read waits for another mode; poll tells when. Of
 * several changes that follow each other fast it gives the last; the serial number tells how many there were.
 */
struct reader {
	struct video_subscriber subscriber;
	wait_queue_head_t wait;
	struct video_mode mode;		/* subscribers_mutex */
	bool fresh;			/* written with it */
};

static void reader_changed(struct video_subscriber *subscriber, const struct video_mode *mode)
{
	struct reader *reader = container_of(subscriber, struct reader, subscriber);

	reader->mode = *mode;
	WRITE_ONCE(reader->fresh, true);
	wake_up_interruptible(&reader->wait);
}

static int device_open(struct inode *inode, struct file *file)
{
	struct reader *reader = file->private_data = kzalloc(sizeof(*reader), GFP_KERNEL);
	int error;

	if (!reader)
		return -ENOMEM;
	init_waitqueue_head(&reader->wait);
	reader->subscriber.changed = reader_changed;
	error = video_subscribe(&reader->subscriber);
	if (error)
		kfree(reader);
	return error;
}

static int device_release(struct inode *inode, struct file *file)
{
	struct reader *reader = file->private_data;

	video_unsubscribe(&reader->subscriber);
	kfree(reader);
	return 0;
}

static size_t put_mode(char *to, size_t size, const struct video_mode *mode)
{
	static const char *const kinds[] = { "none", "text", "pixels", "unknown" };
	char format[5] = "-", driver[sizeof(mode->driver)];
	unsigned int i;

	for (i = 0; mode->fourcc && i < 4; i++)
		format[i] = clamp_t(u8, mode->fourcc >> i * 8, '!', '~');
	strscpy(driver, mode->driver[0] ? mode->driver : "-", sizeof(driver));
	/* A line is words. */
	strreplace(driver, ' ', '_');
	return scnprintf(to, size, "%u %s %s base=0x%llx size=%u pitch=%u width=%u height=%u bits=%u red=%u:%u green=%u:%u blue=%u:%u format=%s\n",
			 mode->serial, kinds[mode->kind], driver, mode->physical, mode->size,
			 mode->pitch, mode->width, mode->height, mode->bits, mode->red.shift, mode->red.bits,
			 mode->green.shift, mode->green.bits, mode->blue.shift, mode->blue.bits, format);
}

/* The line of a mode that has not been read; 0 if another thread that reads the same file was faster. */
static ssize_t take_line(struct reader *reader, char *line, size_t room, size_t size)
{
	ssize_t length = 0;

	mutex_lock(&subscribers_mutex);
	if (reader->fresh) {
		length = put_mode(line, room, &reader->mode);
		/* A line is read whole or not at all. */
		if (size < length)
			length = -EINVAL;
		else
			WRITE_ONCE(reader->fresh, false);
	}
	mutex_unlock(&subscribers_mutex);
	return length;
}

static ssize_t device_read(struct file *file, char __user *to, size_t size, loff_t *position)
{
	struct reader *reader = file->private_data;
	char line[200];
	ssize_t length;

	while (!(length = take_line(reader, line, sizeof(line), size))) {
		if (file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		if (wait_event_interruptible(reader->wait, READ_ONCE(reader->fresh)))
			return -ERESTARTSYS;
	}
	if (length < 0)
		return length;
	/* Not with the mutex held: the memory may be somebody's who lets it wait. */
	if (copy_to_user(to, line, length)) {
		WRITE_ONCE(reader->fresh, true);
		return -EFAULT;
	}
	return length;
}

static __poll_t device_poll(struct file *file, poll_table *table)
{
	struct reader *reader = file->private_data;

	poll_wait(file, &reader->wait, table);
	return READ_ONCE(reader->fresh) ? EPOLLIN | EPOLLRDNORM : 0;
}

static const struct file_operations device_ops = {
	.owner = THIS_MODULE,
	.open = device_open,
	.release = device_release,
	.read = device_read,
	.poll = device_poll,
	.llseek = noop_llseek,
};

static struct miscdevice device = { .minor = MISC_DYNAMIC_MINOR, .name = "kdetour_video", .fops = &device_ops, .mode = 0400 };

/* The framebuffer that is there already: its device's file has it. */
static void learn_framebuffer(void)
{
	struct file *file = filp_open("/dev/fb0", O_RDONLY, 0);
	struct fb_info *info;

	if (IS_ERR(file))
		return;
	if (imajor(file_inode(file)) == FB_MAJOR && file->private_data) {
		info = file->private_data;
		lock_fb_info(info);
		publish_framebuffer(info, false, true);
		unlock_fb_info(info);
	}
	fput(file);
}

/* Else the console, if that is VGA's. */
static void learn_text(void)
{
	struct vc_data *console;

	console_lock();
	console = vc_cons[fg_console].d;
	if (console && console->vc_sw == &vga_con)
		publish_text(console->vc_cols, console->vc_rows);
	console_unlock();
}

static void detach(void)
{
	if (has_text)
		kdetour_detach_all(text_detours, ARRAY_SIZE(text_detours), KDETOUR_LIVE, KDETOUR_FOR_EVER, NULL);
	kdetour_detach_all(framebuffer_detours, ARRAY_SIZE(framebuffer_detours), KDETOUR_LIVE, KDETOUR_FOR_EVER, NULL);
	cancel_work_sync(&telling);
}

static int __init video_init(void)
{
	int error = kdetour_attach_all(framebuffer_detours, ARRAY_SIZE(framebuffer_detours), KDETOUR_LIVE, NULL);

	if (error) {
		pr_err("video: the framebuffers' functions cannot be detoured (see the line of kdetour above): is fb.ko loaded?\n");
		return error;
	}
	/* A kernel without VGA text has no such functions; that is no failure. */
	if (kdetour_find("vgacon_switch") && kdetour_find("vgacon_resize"))
		has_text = !kdetour_attach_all(text_detours, ARRAY_SIZE(text_detours), KDETOUR_LIVE, NULL);
	learn_framebuffer();
	if (now.kind == VIDEO_NONE && has_text)
		learn_text();
	if (now.kind == VIDEO_NONE)
		pr_info("video: there is no screen yet: load a framebuffer's driver, it will be noticed\n");
	error = misc_register(&device);
	if (error)
		detach();
	return error;
}

static void __exit video_exit(void)
{
	misc_deregister(&device);
	detach();
}

module_init(video_init);
module_exit(video_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("where the screen is, and every change of its mode, learnt by detours");
