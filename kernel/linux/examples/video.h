/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What video.ko knows of the screen, for other modules; programs read /dev/kdetour_video. video_drm.ko tells it of DRM's modes, and
 * video_panel.ko draws.
 */
#ifndef VIDEO_H
#define VIDEO_H

#include <linux/compiler_attributes.h>
#include <linux/list.h>
#include <linux/types.h>

struct seq_file;
struct font_desc;

#define VIDEO_SUBSCRIBERS 16	/* those of modules and those that have the device open, together */

enum video_kind {
	VIDEO_NONE,	/* no screen, or its mode is being changed */
	VIDEO_TEXT,	/* cells of VGA text: a character, an attribute */
	VIDEO_PIXELS,	/* true colour of 16, 24 or 32 bits */
	VIDEO_UNKNOWN,	/* pixels of another format */
};

struct video_field {
	u8 shift, bits;
};

struct video_mode {
	u32 serial;			/* one more with each change */
	enum video_kind kind;
	/*
	 * The first visible byte; NULL where there is none that stays: what the kernel writes is a driver's shadow, or the pixels are in a
	 * buffer object of DRM's (GEM), which its driver moves as it likes.
	 */
	void __iomem *base;
	u64 physical;			/* its address, 0 if base is NULL */
	u32 size, pitch;		/* of what is visible, and of one row, in bytes; in text mode of the memory, and of one row */
	u32 width, height;		/* in pixels; in text mode in cells */
	u32 bits;			/* of a pixel, of a cell */
	struct video_field red, green, blue;
	u32 fourcc;			/* the format as DRM names it (drm_fourcc.h), 0 where it has not told */
	char driver[16];
};

struct video_subscriber {
	/* In process context, once at first and then for each change; of several that follow each other fast, for the last one. */
	void (*changed)(struct video_subscriber *subscriber, const struct video_mode *mode);
	/* video.ko's own. */
	struct list_head node;
	u32 told;
};

/*
 * 0; -ENOSPC: there are VIDEO_SUBSCRIBERS already; -EEXIST: it is one. Context: process; may sleep, as long as any subscriber's `changed`.
 * Also from `changed`, for itself or for others; never with a lock held that a `changed` takes.
 */
int video_subscribe(struct video_subscriber *subscriber);
/*
 * `changed` is not called any more once it has returned, nor is it running, but for the one that has called this. Nothing happens to one that
 * does not subscribe. Context: as above.
 */
void video_unsubscribe(struct video_subscriber *subscriber);
/* The mode as it is now. Context: any but NMI. */
void video_now(struct video_mode *mode);

/*
 * A mode that covers the console's, until another one does, or NULL: the console's is what is shown again. For one module at a time.
 * Context: any but NMI.
 */
void video_cover(const struct video_mode *mode);

/* video_panel.ko: a panel of text in the middle of the screen. */
#define VIDEO_COLUMNS 76
#define VIDEO_ROWS 25

enum video_style { VIDEO_PLAIN, VIDEO_TITLE, VIDEO_DIM, VIDEO_CHOSEN };

struct video_cell {
	char character;
	u8 style;
};

struct video_panel {
	struct video_cell cells[VIDEO_ROWS][VIDEO_COLUMNS];
	struct video_mode mode;			/* that it is drawn in */
	u32 left, top;				/* in pixels; in text mode in cells */
	u32 origin;				/* of VGA text: the first visible cell */
	const struct font_desc *font;
	void *saved;				/* what is under it */
	char text[256];				/* where one is put together: the stack may be an interrupt's */
};

/* Context: process; may sleep. */
int video_panel_init(struct video_panel *panel);
void video_panel_exit(struct video_panel *panel);

/* Only cells: nothing is drawn. Context: any. */
void video_panel_clear(struct video_panel *panel);
__printf(5, 6) void video_panel_put(struct video_panel *panel, unsigned int row, unsigned int column, enum video_style style,
				    const char *format, ...);
/* Where it was drawn, in pixels: x, y, width and height of a cell, rows; then the rows. Characters of VGA text are 9 wide. */
void video_panel_show(const struct video_panel *panel, struct seq_file *file);

/*
 * Where it will be; or why it cannot be drawn, and what to do about that. From then on until it has been restored nobody else may run
 * who could set a mode, or draw. Context of the three: any but NMI, with interrupts off.
 */
const char *video_panel_place(struct video_panel *panel);
/* Draws the cells, and remembers what was there unless it is drawn again. The time (ktime_get_mono_fast_ns) of the first pixel. */
u64 video_panel_draw(struct video_panel *panel, bool again);
void video_panel_restore(const struct video_panel *panel);

#endif
