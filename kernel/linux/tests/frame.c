// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * frame: a framebuffer in memory, for tests. It takes any size that fits and any number of bits; those below 16 are a palette's. With
 * shadow=1 it tells no address, as DRM's do.
 */
#include <linux/fb.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/vmalloc.h>

#define MEMORY (1024 * 768 * 4)

static bool shadow;
module_param(shadow, bool, 0444);

static struct fb_info *info;

static void set_colour(struct fb_bitfield *field, u32 offset, u32 length)
{
	*field = (struct fb_bitfield){ .offset = offset, .length = length };
}

static int frame_check_var(struct fb_var_screeninfo *var, struct fb_info *unused)
{
	u32 bits = var->bits_per_pixel;

	if (!var->xres || !var->yres || !bits || bits > 32 || (u64)var->xres * var->yres * bits / 8 > MEMORY)
		return -EINVAL;
	var->xres_virtual = var->xres;
	var->yres_virtual = var->yres;
	var->xoffset = var->yoffset = 0;
	set_colour(&var->red, bits == 16 ? 11 : bits > 16 ? 16 : 0, bits == 16 ? 5 : 8);
	set_colour(&var->green, bits == 16 ? 5 : bits > 16 ? 8 : 0, bits == 16 ? 6 : 8);
	set_colour(&var->blue, 0, bits == 16 ? 5 : 8);
	return 0;
}

static int frame_set_par(struct fb_info *it)
{
	it->fix.line_length = it->var.xres * it->var.bits_per_pixel / 8;
	it->fix.visual = it->var.bits_per_pixel < 16 ? FB_VISUAL_PSEUDOCOLOR : FB_VISUAL_TRUECOLOR;
	return 0;
}

static int frame_setcolreg(unsigned int number, unsigned int red, unsigned int green, unsigned int blue,
			   unsigned int transparent, struct fb_info *it)
{
	if (number < 16)
		((u32 *)it->pseudo_palette)[number] = number * 0x111111;
	return 0;
}

static struct fb_ops frame_ops = {
	.owner = THIS_MODULE,
	.fb_check_var = frame_check_var,
	.fb_set_par = frame_set_par,
	.fb_setcolreg = frame_setcolreg,
	.fb_read = fb_sys_read,
	.fb_fillrect = cfb_fillrect,
	.fb_copyarea = cfb_copyarea,
	.fb_imageblit = cfb_imageblit,
};

static int __init frame_init(void)
{
	static u32 palette[16];
	int error = -ENOMEM;

	info = framebuffer_alloc(0, NULL);
	if (!info)
		return error;
	info->screen_base = (char __iomem *)vzalloc(MEMORY);
	if (!info->screen_base)
		goto no_memory;
	info->screen_size = MEMORY;
	info->pseudo_palette = palette;
	info->fbops = &frame_ops;
	strscpy(info->fix.id, "frame", sizeof(info->fix.id));
	info->fix.smem_start = shadow ? 0 : vmalloc_to_pfn((void __force *)info->screen_base) << PAGE_SHIFT;
	info->fix.smem_len = MEMORY;
	info->fix.type = FB_TYPE_PACKED_PIXELS;
	info->var.xres = 800;
	info->var.yres = 600;
	info->var.bits_per_pixel = 32;
	info->var.activate = FB_ACTIVATE_NOW;
	frame_check_var(&info->var, info);
	frame_set_par(info);
	error = fb_alloc_cmap(&info->cmap, 256, 0) ?: register_framebuffer(info);
	if (!error)
		return 0;
	vfree((void __force *)info->screen_base);
no_memory:
	framebuffer_release(info);
	return error;
}

static void __exit frame_exit(void)
{
	char __iomem *memory = info->screen_base;

	unregister_framebuffer(info);
	fb_dealloc_cmap(&info->cmap);
	framebuffer_release(info);
	vfree((void __force *)memory);
}

module_init(frame_init);
module_exit(frame_exit);
MODULE_LICENSE("Dual MIT/GPL");
