// SPDX-License-Identifier: MIT OR Apache-2.0
/* video_panel: text over whatever the screen shows, and what was under it again: by plain stores, also where everything else stands still. */
#include <linux/font.h>
#include <linux/io.h>
#include <linux/ktime.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/vmalloc.h>
#include "video.h"

static const struct { u32 ink, paper; u8 attribute; } styles[] = {
	[VIDEO_PLAIN] = { 0xe8e8e8, 0x10205a, 0x1f },
	[VIDEO_TITLE] = { 0x102040, 0xd8dce8, 0x70 },
	[VIDEO_DIM] = { 0x8fb8e8, 0x10205a, 0x1b },
	[VIDEO_CHOSEN] = { 0x000000, 0xf0c040, 0x60 },
};

int video_panel_init(struct video_panel *panel)
{
	panel->font = find_font("VGA8x16");
	panel->saved = panel->font ? vmalloc(VIDEO_COLUMNS * 8 * VIDEO_ROWS * 16 * 4) : NULL;
	return panel->saved ? 0 : -ENOMEM;
}
EXPORT_SYMBOL_GPL(video_panel_init);

void video_panel_exit(struct video_panel *panel)
{
	vfree(panel->saved);
}
EXPORT_SYMBOL_GPL(video_panel_exit);

const char *video_panel_place(struct video_panel *panel)
{
	struct video_mode *mode = &panel->mode;
	u32 width, height;

	video_now(mode);
	width = mode->kind == VIDEO_TEXT ? VIDEO_COLUMNS : VIDEO_COLUMNS * 8;
	height = mode->kind == VIDEO_TEXT ? VIDEO_ROWS : VIDEO_ROWS * 16;
	if (mode->kind == VIDEO_NONE)
		return "there is no screen, or its mode is being set: load a framebuffer's driver, or try again";
	if (mode->kind == VIDEO_UNKNOWN)
		return "the screen's pixels have a format that it does not know: set a mode of 16, 24 or 32 bits of true colour";
	if (!mode->base)
		return "where the screen's pixels are is not known, its driver copies or moves them: use the firmware's framebuffer, or text (nomodeset)";
	if (mode->width < width || mode->height < height)
		return "the screen is too small: it needs 608x400 pixels, or 76x25 characters";
	panel->left = (mode->width - width) / 2;
	panel->top = (mode->height - height) / 2;
	if (mode->kind == VIDEO_TEXT) {
		/* The console takes its lock with interrupts off: nobody who is parked is between the two ports. */
		u8 index = inb(0x3d4);

		outb(0x0c, 0x3d4);
		panel->origin = inb(0x3d5) << 8;
		outb(0x0d, 0x3d4);
		panel->origin |= inb(0x3d5);
		outb(index, 0x3d4);
	}
	return NULL;
}
EXPORT_SYMBOL_GPL(video_panel_place);

void video_panel_put(struct video_panel *panel, unsigned int row, unsigned int column, enum video_style style,
		     const char *format, ...)
{
	va_list list;
	unsigned int i;

	va_start(list, format);
	vsnprintf(panel->text, sizeof(panel->text), format, list);
	va_end(list);
	for (i = 0; panel->text[i] && row < VIDEO_ROWS && column < VIDEO_COLUMNS; i++, column++)
		panel->cells[row][column] = (struct video_cell){ clamp(panel->text[i], ' ', '~'), style };
}
EXPORT_SYMBOL_GPL(video_panel_put);

void video_panel_clear(struct video_panel *panel)
{
	unsigned int i;

	for (i = 0; i < VIDEO_ROWS * VIDEO_COLUMNS; i++)
		panel->cells[i / VIDEO_COLUMNS][i % VIDEO_COLUMNS] = (struct video_cell){ ' ', VIDEO_PLAIN };
}
EXPORT_SYMBOL_GPL(video_panel_clear);

void video_panel_show(const struct video_panel *panel, struct seq_file *file)
{
	bool text = panel->mode.kind == VIDEO_TEXT;
	unsigned int row, column;

	seq_printf(file, "%u %u %u 16 %u\n", panel->left * (text ? 9 : 1), panel->top * (text ? 16 : 1), text ? 9 : 8, VIDEO_ROWS);
	for (row = 0; row < VIDEO_ROWS; row++) {
		for (column = 0; column < VIDEO_COLUMNS; column++)
			seq_putc(file, panel->cells[row][column].character);
		seq_putc(file, '\n');
	}
}
EXPORT_SYMBOL_GPL(video_panel_show);

static u32 colour(const struct video_mode *mode, u32 rgb)
{
	return (rgb >> 16 & 255) >> (8 - mode->red.bits) << mode->red.shift |
	       (rgb >> 8 & 255) >> (8 - mode->green.bits) << mode->green.shift |
	       (rgb & 255) >> (8 - mode->blue.bits) << mode->blue.shift;
}

static void put_pixel(void __iomem *to, u32 bits, u32 value)
{
	if (bits == 32) {
		writel(value, to);
		return;
	}
	writew(value, to);
	if (bits == 24)
		writeb(value >> 16, to + 2);
}

static u16 __iomem *text_at(const struct video_panel *panel, unsigned int row, unsigned int column)
{
	u32 cell = panel->origin + (panel->top + row) * panel->mode.width + panel->left + column;

	return panel->mode.base + (cell * 2 & (panel->mode.size - 1));
}

static void __iomem *pixels_at(const struct video_panel *panel, unsigned int line)
{
	return panel->mode.base + (panel->top + line) * panel->mode.pitch + panel->left * (panel->mode.bits / 8);
}

u64 video_panel_draw(struct video_panel *panel, bool again)
{
	const struct video_mode *mode = &panel->mode;
	const size_t length = VIDEO_COLUMNS * 8 * (mode->bits / 8);
	unsigned int row, line, column, x;
	u16 *saved = panel->saved;
	u64 first = 0;

	for (row = 0; mode->kind == VIDEO_TEXT && row < VIDEO_ROWS; row++)
		for (column = 0; column < VIDEO_COLUMNS; column++) {
			const struct video_cell *cell = &panel->cells[row][column];
			u16 __iomem *at = text_at(panel, row, column);

			if (!again)
				saved[row * VIDEO_COLUMNS + column] = readw(at);
			writew((u8)cell->character | styles[cell->style].attribute << 8, at);
			first = first ?: ktime_get_mono_fast_ns();
		}
	for (line = 0; mode->kind == VIDEO_PIXELS && line < VIDEO_ROWS * 16; line++) {
		void __iomem *at = pixels_at(panel, line);

		if (!again)
			memcpy_fromio(panel->saved + line * length, at, length);
		for (column = 0; column < VIDEO_COLUMNS; column++) {
			const struct video_cell *cell = &panel->cells[line / 16][column];
			u8 bits = ((const u8 *)panel->font->data)[(u8)cell->character * 16 + line % 16];
			u32 ink = colour(mode, styles[cell->style].ink), paper = colour(mode, styles[cell->style].paper);

			for (x = 0; x < 8; x++, at += mode->bits / 8)
				put_pixel(at, mode->bits, bits << x & 0x80 ? ink : paper);
			first = first ?: ktime_get_mono_fast_ns();
		}
	}
	return first;
}
EXPORT_SYMBOL_GPL(video_panel_draw);

void video_panel_restore(const struct video_panel *panel)
{
	const size_t length = VIDEO_COLUMNS * 8 * (panel->mode.bits / 8);
	unsigned int row, line, column;

	for (row = 0; panel->mode.kind == VIDEO_TEXT && row < VIDEO_ROWS; row++)
		for (column = 0; column < VIDEO_COLUMNS; column++)
			writew(((u16 *)panel->saved)[row * VIDEO_COLUMNS + column], text_at(panel, row, column));
	for (line = 0; panel->mode.kind == VIDEO_PIXELS && line < VIDEO_ROWS * 16; line++)
		memcpy_toio(pixels_at(panel, line), panel->saved + line * length, length);
}
EXPORT_SYMBOL_GPL(video_panel_restore);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("text over whatever the screen shows");
