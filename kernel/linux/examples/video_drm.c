// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * video_drm: modes that programs set by DRM's own interface, for video.ko.
 *
 *	insmod kdetour.ko; insmod video.ko; insmod video_drm.ko
 *
 * Whoever sets a mode, by whatever call (DRM_IOCTL_MODE_SETCRTC, an atomic commit, the emulation of framebuffers), and whether
 * the caller waits or not: a driver's commit comes by drm_atomic_helper_commit_hw_done, when the hardware has been set, with the new state of
 * all CRTCs and planes that are part of it. A commit that was only to be tested, or has failed, does not.
 *
 * The console's own framebuffer is video.ko's business: a CRTC that shows it covers nothing. Programs' framebuffers do. Of several
 * CRTCs that are on it is the first one of the first card that is told.
 *
 * DRM's modules may come and go while this one is loaded; it uses nothing that they export.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <drm/drm_atomic.h>
#include <drm/drm_crtc.h>
#include <drm/drm_device.h>
#include <drm/drm_drv.h>
#include <drm/drm_fb_helper.h>
#include <drm/drm_file.h>
#include <drm/drm_fourcc.h>
#include <drm/drm_framebuffer.h>
#include <drm/drm_ioctl.h>
#include <drm/drm_plane.h>
#include "kdetour.h"
#include "video.h"

#define OUTPUTS 32
#define CARDS 16

/* What a CRTC shows. */
enum shown {
	NOTHING,	/* it is off, and the console is not its card's: an entry that is free */
	OFF,		/* it is off, and so is the console on it */
	CONSOLE,	/* the framebuffer of the console's emulation */
	PROGRAM,	/* another one, whose mode this is */
};

struct output {
	enum shown shown;
	const struct drm_device *device;	/* never followed */
	unsigned int card, crtc;
	struct video_mode mode;
};

/* A card that is being unregistered: its emulation may be freed any moment. */
struct going {
	struct list_head node;
	const struct drm_device *device;
};

/* Innermost: it is taken with the locks of a commit held, and nothing is allocated and nobody waited for while it is. */
static DEFINE_MUTEX(outputs_mutex);
static struct output outputs[OUTPUTS];
static LIST_HEAD(all_going);
static bool has_no_room;

static const struct { u32 fourcc; struct video_field red, green, blue; } formats[] = {
	{ DRM_FORMAT_XRGB8888, { 16, 8 }, { 8, 8 }, { 0, 8 } }, { DRM_FORMAT_ARGB8888, { 16, 8 }, { 8, 8 }, { 0, 8 } },
	{ DRM_FORMAT_XBGR8888, { 0, 8 }, { 8, 8 }, { 16, 8 } }, { DRM_FORMAT_ABGR8888, { 0, 8 }, { 8, 8 }, { 16, 8 } },
	{ DRM_FORMAT_RGBX8888, { 24, 8 }, { 16, 8 }, { 8, 8 } }, { DRM_FORMAT_RGBA8888, { 24, 8 }, { 16, 8 }, { 8, 8 } },
	{ DRM_FORMAT_BGRX8888, { 8, 8 }, { 16, 8 }, { 24, 8 } }, { DRM_FORMAT_BGRA8888, { 8, 8 }, { 16, 8 }, { 24, 8 } },
	{ DRM_FORMAT_RGB888, { 16, 8 }, { 8, 8 }, { 0, 8 } }, { DRM_FORMAT_BGR888, { 0, 8 }, { 8, 8 }, { 16, 8 } },
	{ DRM_FORMAT_RGB565, { 11, 5 }, { 5, 6 }, { 0, 5 } }, { DRM_FORMAT_BGR565, { 0, 5 }, { 5, 6 }, { 11, 5 } },
	{ DRM_FORMAT_XRGB1555, { 10, 5 }, { 5, 5 }, { 0, 5 } }, { DRM_FORMAT_ARGB1555, { 10, 5 }, { 5, 5 }, { 0, 5 } },
};

/* Whether a plane shows as many pixels as the mode has, one for one, upright. */
static bool fills(const struct drm_plane_state *plane, const struct video_mode *mode)
{
	return !plane->crtc_x && !plane->crtc_y && plane->crtc_w == mode->width && plane->crtc_h == mode->height &&
	       plane->src_w == mode->width << 16 && plane->src_h == mode->height << 16 &&
	       (!plane->rotation || plane->rotation == DRM_MODE_ROTATE_0);
}

/*
 * The base stays unknown: the framebuffer is a buffer object, which is where its driver wants it, and only as long as it is shown. Without
 * a plane, or one that is scaled, turned, tiled, or in a format that is no true colour of 16, 24 or 32 bits, there is no layout
 * in rows of the mode: VIDEO_UNKNOWN.
 */
static void read_mode(struct video_mode *mode, const struct drm_device *device, const struct drm_crtc_state *crtc,
		      const struct drm_plane_state *plane)
{
	const struct drm_framebuffer *buffer = plane ? plane->fb : NULL;
	unsigned int i;

	*mode = (struct video_mode){ .kind = VIDEO_UNKNOWN, .width = crtc->mode.hdisplay, .height = crtc->mode.vdisplay };
	strscpy(mode->driver, device->driver->name, sizeof(mode->driver));
	if (!buffer)
		return;
	mode->pitch = buffer->pitches[0];
	mode->size = mode->height * mode->pitch;
	mode->fourcc = buffer->format->format;
	mode->bits = buffer->format->cpp[0] * 8;
	for (i = 0; i < ARRAY_SIZE(formats); i++) {
		if (formats[i].fourcc != mode->fourcc)
			continue;
		mode->red = formats[i].red;
		mode->green = formats[i].green;
		mode->blue = formats[i].blue;
		if (buffer->modifier == DRM_FORMAT_MOD_LINEAR && fills(plane, mode))
			mode->kind = VIDEO_PIXELS;
	}
}

static void unlock_outputs(void)
{
	bool warns = has_no_room;

	mutex_unlock(&outputs_mutex);
	/* Not before: what is printed may have the console pan, which is a commit. */
	if (warns)
		pr_warn_once("video_drm: more than %d CRTCs are on: the others are not looked at\n", OUTPUTS);
}

/* With outputs_mutex held. The first card's first CRTC that is on; if none is, one that the console is on. */
static const struct output *first_output(void)
{
	const struct output *first = NULL, *one;

	for (one = outputs; one < outputs + OUTPUTS; one++) {
		if (one->shown == NOTHING)
			continue;
		if (!first || (one->shown != OFF) > (first->shown != OFF) ||
		    ((one->shown != OFF) == (first->shown != OFF) &&
		     (one->card < first->card || (one->card == first->card && one->crtc < first->crtc))))
			first = one;
	}
	return first;
}

/* With outputs_mutex held. */
static void tell(void)
{
	static const struct video_mode off = { .driver = "off" };
	const struct output *first = first_output();

	video_cover(!first || first->shown == CONSOLE ? NULL : first->shown == OFF ? &off : &first->mode);
}

/* With outputs_mutex held. The entry of a CRTC, or a free one. */
static struct output *entry_of(const struct drm_device *device, unsigned int crtc)
{
	struct output *free = NULL, *one;

	for (one = outputs; one < outputs + OUTPUTS; one++) {
		if (one->shown == NOTHING)
			free = one;
		else if (one->device == device && one->crtc == crtc)
			return one;
	}
	return free;
}

/* With outputs_mutex held. */
static void forget(const struct drm_device *device)
{
	struct output *one;

	for (one = outputs; one < outputs + OUTPUTS; one++)
		if (!device || one->device == device)
			one->shown = NOTHING;
	tell();
}

/* With outputs_mutex held. */
static bool is_there(const struct drm_device *device)
{
	const struct going *going;

	list_for_each_entry(going, &all_going, node)
		if (going->device == device)
			return false;
	return device->registered;
}

/* With outputs_mutex held, and whatever keeps both states as they are. */
static void look_at(const struct drm_device *device, const struct drm_crtc *crtc, const struct drm_crtc_state *state,
		    const struct drm_plane_state *plane)
{
	const struct drm_fb_helper *console = READ_ONCE(device->fb_helper);
	struct output *output = entry_of(device, drm_crtc_index(crtc));

	if (!output) {
		has_no_room = true;
		return;
	}
	output->device = device;
	output->card = device->primary ? device->primary->index : U32_MAX;
	output->crtc = drm_crtc_index(crtc);
	if (!state->active) {
		output->shown = console ? OFF : NOTHING;
	} else if (console && plane && plane->fb && plane->fb == console->fb) {
		output->shown = CONSOLE;
	} else {
		output->shown = PROGRAM;
		read_mode(&output->mode, device, state, plane);
	}
}

/* The plane that a CRTC has its pixels from, if it is on that CRTC: what is not part of a commit then stays as it is until that is over. */
static const struct drm_plane_state *plane_of(struct drm_atomic_state *commit, const struct drm_crtc *crtc,
					      const struct drm_crtc_state *state)
{
	const struct drm_plane_state *plane;

	if (!crtc->primary || !(state->plane_mask & drm_plane_mask(crtc->primary)))
		return NULL;
	plane = commit ? drm_atomic_get_new_plane_state(commit, crtc->primary) : NULL;
	return plane ?: crtc->primary->state;
}

KDETOUR_VOID(drm_atomic_helper_commit_hw_done, (struct drm_atomic_state *commit), (commit))
{
	struct drm_crtc_state *state;
	struct drm_crtc *crtc;
	int i;

	/* Before: afterwards the next commit may begin, and free these states. */
	mutex_lock(&outputs_mutex);
	if (is_there(commit->dev)) {
		for_each_new_crtc_in_state(commit, crtc, state, i)
			look_at(commit->dev, crtc, state, plane_of(commit, crtc, state));
		tell();
	}
	unlock_outputs();
	drm_atomic_helper_commit_hw_done_original(commit);
}

KDETOUR_VOID(drm_dev_unregister, (struct drm_device *device), (device))
{
	struct going going = { .device = device };

	mutex_lock(&outputs_mutex);
	list_add(&going.node, &all_going);
	forget(device);
	mutex_unlock(&outputs_mutex);
	drm_dev_unregister_original(device);
	mutex_lock(&outputs_mutex);
	list_del(&going.node);
	mutex_unlock(&outputs_mutex);
}

/* What is shown already. A CRTC's lock keeps its state, and that of planes on it; only one is held at a time. */
static void learn_card(struct drm_device *device)
{
	struct drm_crtc *crtc;

	if (!device->driver || !(device->driver->driver_features & DRIVER_ATOMIC))
		return;
	list_for_each_entry(crtc, &device->mode_config.crtc_list, head) {
		ww_mutex_lock(&crtc->mutex.mutex, NULL);
		mutex_lock(&outputs_mutex);
		if (is_there(device) && crtc->state)
			look_at(device, crtc, crtc->state, plane_of(NULL, crtc, crtc->state));
		unlock_outputs();
		ww_mutex_unlock(&crtc->mutex.mutex);
	}
}

static void learn(void)
{
	unsigned int card;

	for (card = 0; card < CARDS; card++) {
		char path[24];
		struct file *file;

		snprintf(path, sizeof(path), "/dev/dri/card%u", card);
		file = filp_open(path, O_RDONLY, 0);
		if (IS_ERR(file))
			continue;
		if (imajor(file_inode(file)) == DRM_MAJOR && file->private_data)
			learn_card(((struct drm_file *)file->private_data)->minor->dev);
		fput(file);
	}
	mutex_lock(&outputs_mutex);
	tell();
	mutex_unlock(&outputs_mutex);
}

/* Each is attached when its module is there. */
static struct {
	const char *module;
	struct kdetour *detour;
	bool attached;
} parts[] = {
	{ "drm", &drm_dev_unregister_detour },
	{ "drm_kms_helper", &drm_atomic_helper_commit_hw_done_detour },
};
static DEFINE_MUTEX(parts_mutex);

/* With parts_mutex held. */
static int attach(unsigned int part)
{
	int error;

	if (parts[part].attached || !kdetour_find(parts[part].detour->symbol))
		return 0;
	error = kdetour_attach(parts[part].detour);
	parts[part].attached = !error;
	if (error)
		pr_err("video_drm: %s cannot be detoured (see the line of kdetour above): modes that programs set by DRM are not seen\n",
		       parts[part].detour->symbol);
	return error;
}

/* A module's functions are detoured before its init runs; when it goes, kdetour lets go of them. */
static int on_module(struct notifier_block *block, unsigned long event, void *data)
{
	const struct module *module = data;
	unsigned int i;

	mutex_lock(&parts_mutex);
	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		if (strcmp(module->name, parts[i].module))
			continue;
		if (event == MODULE_STATE_COMING)
			attach(i);
		else if (event == MODULE_STATE_GOING)
			parts[i].attached = false;
	}
	mutex_unlock(&parts_mutex);
	return NOTIFY_OK;
}

static struct notifier_block block = { .notifier_call = on_module };

static void detach(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(parts); i++)
		if (parts[i].attached)
			kdetour_detach(parts[i].detour);
	mutex_lock(&outputs_mutex);
	forget(NULL);
	mutex_unlock(&outputs_mutex);
}

static int __init video_drm_init(void)
{
	int error = register_module_notifier(&block);
	unsigned int i;

	mutex_lock(&parts_mutex);
	for (i = 0; i < ARRAY_SIZE(parts); i++)
		error = error ?: attach(i);
	mutex_unlock(&parts_mutex);
	if (error) {
		unregister_module_notifier(&block);
		detach();
		return error;
	}
	if (parts[1].attached)
		learn();
	else
		pr_info("video_drm: there is no DRM yet: load the driver of the screen, it will be noticed\n");
	return 0;
}

static void __exit video_drm_exit(void)
{
	unregister_module_notifier(&block);
	detach();
}

module_init(video_drm_init);
module_exit(video_drm_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("modes that programs set by DRM's own interface, learnt by a detour");
