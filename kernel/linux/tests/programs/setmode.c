// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* setmode WIDTH HEIGHT BITS: sets the mode of /dev/fb0, as fbset does, and says what became of it. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

int main(int count, char **words)
{
	struct fb_var_screeninfo mode;
	int screen = open("/dev/fb0", O_RDWR);

	if (count != 4 || screen < 0 || ioctl(screen, FBIOGET_VSCREENINFO, &mode)) {
		fprintf(stderr, "setmode: %s\n", strerror(errno));
		return 1;
	}
	mode.xres = mode.xres_virtual = atoi(words[1]);
	mode.yres = mode.yres_virtual = atoi(words[2]);
	mode.bits_per_pixel = atoi(words[3]);
	mode.activate = FB_ACTIVATE_NOW;
	if (ioctl(screen, FBIOPUT_VSCREENINFO, &mode)) {
		fprintf(stderr, "setmode: %s\n", strerror(errno));
		return 1;
	}
	printf("%u %u %u\n", mode.xres, mode.yres, mode.bits_per_pixel);
	return 0;
}
