// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * kms DEVICE: sets modes by DRM's own interface, as its standard input says, and answers each line with `ok` or an error's name.
 *
 *	set WIDTH HEIGHT FORMAT [COLUMNS ROWS]		a new buffer, of another size if one is given, and the mode, by DRM_IOCTL_MODE_SETCRTC
 *	commit WIDTH HEIGHT FORMAT [test|nonblock|left]	the same by an atomic commit; `left`: the plane covers the left half only
 *	flip						another buffer of the same kind, by DRM_IOCTL_MODE_PAGE_FLIP
 *	swap						the same by an atomic commit that nobody waits for
 *	dpms on|off					the connector's property
 *	active on|off					the CRTC's
 *	use N						from now on the Nth connector that is connected and its CRTC, counted from 0
 *	loop						sets one mode after the other, until it is killed
 *
 * Formats are four characters: XR24. The structures are those of drm.h and drm_mode.h, which are in no package that is needed otherwise.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

struct mode {
	uint32_t clock;
	uint16_t hdisplay, hsync_start, hsync_end, htotal, hskew, vdisplay, vsync_start, vsync_end, vtotal, vscan;
	uint32_t vrefresh, flags, type;
	char name[32];
};
struct resources {
	uint64_t fbs, crtcs, connectors, encoders;
	uint32_t count_fbs, count_crtcs, count_connectors, count_encoders, min_width, max_width, min_height, max_height;
};
struct connector {
	uint64_t encoders, modes, props, prop_values;
	uint32_t count_modes, count_props, count_encoders, encoder, id, type, type_id, connection, mm_width, mm_height, subpixel, pad;
};
struct crtc {
	uint64_t connectors;
	uint32_t count_connectors, id, fb, x, y, gamma_size, mode_valid;
	struct mode mode;
};
struct dumb { uint32_t height, width, bpp, flags, handle, pitch; uint64_t size; };
struct fb {
	uint32_t id, width, height, format, flags, handles[4], pitches[4], offsets[4];
	uint64_t modifiers[4];
};
struct flip { uint32_t crtc, fb, flags, reserved; uint64_t user_data; };
struct properties { uint64_t ids, values; uint32_t count, object, type; };
struct property {
	uint64_t values, enums;
	uint32_t id, flags;
	char name[32];
	uint32_t count_values, count_enums;
};
struct set_property { uint64_t value; uint32_t id, connector; };
struct planes { uint64_t ids; uint32_t count; };
struct blob { uint64_t data; uint32_t length, id; };
struct atomic { uint32_t flags, count; uint64_t objects, counts, props, values, reserved, user_data; };
struct capability { uint64_t number, value; };

#define SET_CAPABILITY _IOW('d', 0x0d, struct capability)
#define GET_RESOURCES _IOWR('d', 0xa0, struct resources)
#define SET_CRTC _IOWR('d', 0xa2, struct crtc)
#define GET_CONNECTOR _IOWR('d', 0xa7, struct connector)
#define GET_PROPERTY _IOWR('d', 0xaa, struct property)
#define SET_PROPERTY _IOWR('d', 0xab, struct set_property)
#define REMOVE_FB _IOWR('d', 0xaf, unsigned int)
#define PAGE_FLIP _IOWR('d', 0xb0, struct flip)
#define CREATE_DUMB _IOWR('d', 0xb2, struct dumb)
#define DESTROY_DUMB _IOWR('d', 0xb4, uint32_t)
#define GET_PLANES _IOWR('d', 0xb5, struct planes)
#define ADD_FB _IOWR('d', 0xb8, struct fb)
#define GET_PROPERTIES _IOWR('d', 0xb9, struct properties)
#define COMMIT _IOWR('d', 0xbc, struct atomic)
#define CREATE_BLOB _IOWR('d', 0xbd, struct blob)

enum { CRTC = 0xcccccccc, CONNECTOR = 0xc0c0c0c0, PLANE = 0xeeeeeeee };
enum { TEST = 0x100, NONBLOCK = 0x200, MODESET = 0x400 };
enum { MANY = 256, PRIMARY = 1 };

static int card;
static uint32_t connector, crtc, plane, fb;
static struct mode modes[MANY];
static unsigned int mode_count;
/* What is shown, for the next flip. */
static uint32_t width, height, format;

/* A commit that nobody waits for is refused as long as another one is on its way. */
static int call(unsigned long request, void *data)
{
	int tries, error = EBUSY;

	for (tries = 0; error == EBUSY && tries < 3000; tries++) {
		if (tries)
			usleep(1000);
		error = ioctl(card, request, data) ? errno : 0;
	}
	return error;
}

/* A property of an object by its name; its value now, too. 0 if it has none. */
static uint32_t property(uint32_t object, uint32_t type, const char *name, uint64_t *value)
{
	static uint32_t ids[MANY];
	static uint64_t values[MANY];
	struct properties all = { (uintptr_t)ids, (uintptr_t)values, MANY, object, type };
	unsigned int i;

	if (call(GET_PROPERTIES, &all))
		return 0;
	for (i = 0; i < all.count; i++) {
		struct property one = { .id = ids[i] };

		if (!call(GET_PROPERTY, &one) && !strcmp(one.name, name)) {
			if (value)
				*value = values[i];
			return ids[i];
		}
	}
	return 0;
}

/* The Nth connector that something is connected to, and the CRTC and the primary plane of the same number. */
static int use(unsigned int wanted)
{
	uint32_t crtcs[MANY], connectors[MANY], planes[MANY];
	struct resources all = { .crtcs = (uintptr_t)crtcs, .connectors = (uintptr_t)connectors, .count_crtcs = MANY, .count_connectors = MANY };
	struct planes every = { (uintptr_t)planes, MANY };
	unsigned int i, found = 0, primaries = 0;

	if (call(GET_RESOURCES, &all) || call(GET_PLANES, &every) || wanted >= all.count_crtcs)
		return ENODEV;
	connector = 0;
	for (i = 0; i < all.count_connectors && !connector; i++) {
		struct connector one = { .id = connectors[i] };

		/* Asked twice: the first time it looks what there is. */
		if (call(GET_CONNECTOR, &one) || one.connection != 1 || found++ != wanted)
			continue;
		one = (struct connector){ .id = connectors[i], .modes = (uintptr_t)modes, .count_modes = MANY };
		if (call(GET_CONNECTOR, &one))
			return ENODEV;
		connector = connectors[i];
		mode_count = one.count_modes < MANY ? one.count_modes : MANY;
	}
	for (i = 0; i < every.count; i++) {
		uint64_t type = 0;

		if (property(planes[i], PLANE, "type", &type) && type == PRIMARY && primaries++ == wanted)
			plane = planes[i];
	}
	crtc = crtcs[wanted];
	return connector && plane ? 0 : ENODEV;
}

static int make_buffer(uint32_t columns, uint32_t rows)
{
	int bits = !memcmp(&format, "RG16", 4) ? 16 : !memcmp(&format, "RG24", 4) ? 24 : 32, error;
	struct dumb dumb = { .width = columns, .height = rows, .bpp = bits };
	struct fb made = { .width = columns, .height = rows, .format = format };

	error = call(CREATE_DUMB, &dumb);
	if (error)
		return error;
	made.handles[0] = dumb.handle;
	made.pitches[0] = dumb.pitch;
	error = call(ADD_FB, &made);
	fb = made.id;
	/* The framebuffer keeps it. */
	call(DESTROY_DUMB, &dumb.handle);
	return error;
}

static const struct mode *find_mode(void)
{
	unsigned int i;

	for (i = 0; i < mode_count; i++)
		if (modes[i].hdisplay == width && modes[i].vdisplay == height)
			return &modes[i];
	return NULL;
}

static int set(uint32_t columns, uint32_t rows)
{
	const struct mode *mode = find_mode();
	struct crtc it = { .connectors = (uintptr_t)&connector, .count_connectors = 1, .id = crtc, .mode_valid = 1 };
	int error = mode ? make_buffer(columns, rows) : ENOENT;

	if (error)
		return error;
	it.fb = fb;
	it.mode = *mode;
	return call(SET_CRTC, &it);
}

static int commit(uint32_t flags, const char *what)
{
	const struct mode *mode = find_mode();
	struct blob blob = { (uintptr_t)mode, sizeof(*mode), 0 };
	uint32_t shown = !strcmp(what, "left") ? width / 2 : width;
	uint32_t objects[3] = { connector, crtc, plane }, counts[3] = { 1, 2, 10 };
	const char *names[] = { "CRTC_ID", "MODE_ID", "ACTIVE", "FB_ID", "CRTC_ID", "SRC_X", "SRC_Y", "SRC_W", "SRC_H",
				"CRTC_X", "CRTC_Y", "CRTC_W", "CRTC_H" };
	uint32_t types[3] = { CONNECTOR, CRTC, PLANE }, props[13], object, i, at = 0;
	struct atomic it = { flags, 3, (uintptr_t)objects, (uintptr_t)counts, (uintptr_t)props, 0, 0, 0 };
	int error = !mode ? ENOENT : make_buffer(width, height) ?: call(CREATE_BLOB, &blob);
	uint64_t values[13] = { crtc, blob.id, 1, fb, crtc, 0, 0, (uint64_t)shown << 16, (uint64_t)height << 16, 0, 0, shown, height };

	it.values = (uintptr_t)values;
	for (object = 0; object < 3; object++)
		for (i = 0; i < counts[object]; i++, at++)
			props[at] = property(objects[object], types[object], names[at], NULL);
	return error ? error : call(COMMIT, &it);
}

static int swap(void)
{
	uint32_t count = 1, prop = property(plane, PLANE, "FB_ID", NULL);
	uint64_t value;
	struct atomic commit = { NONBLOCK, 1, (uintptr_t)&plane, (uintptr_t)&count, (uintptr_t)&prop, (uintptr_t)&value, 0, 0 };
	int error = make_buffer(width, height);

	value = fb;
	return error ? error : call(COMMIT, &commit);
}

static int active(uint64_t is_on)
{
	uint32_t count = 1, prop = property(crtc, CRTC, "ACTIVE", NULL);
	struct atomic commit = { MODESET, 1, (uintptr_t)&crtc, (uintptr_t)&count, (uintptr_t)&prop, (uintptr_t)&is_on, 0, 0 };

	return call(COMMIT, &commit);
}

static int dpms(uint64_t value)
{
	struct set_property it = { value, property(connector, CONNECTOR, "DPMS", NULL), connector };

	return call(SET_PROPERTY, &it);
}

static int loop(void)
{
	unsigned int i;
	int error;

	for (i = 0;; i++) {
		unsigned int old = fb;

		width = i & 1 ? 800 : 640;
		height = i & 1 ? 600 : 480;
		error = i & 2 ? set(width, height) : commit(MODESET, "");
		if (!error && old)
			error = call(REMOVE_FB, &old);
		if (error)
			return error;
	}
}

static int obey(const char *line)
{
	char word[16] = "", name[8] = "", what[16] = "";
	uint32_t columns, rows;

	if (!strncmp(line, "set ", 4) || !strncmp(line, "commit ", 7)) {
		if (sscanf(line, "%15s %u %u %4s %15s %u", word, &width, &height, name, what, &rows) < 4)
			return EINVAL;
		memcpy(&format, name, 4);
		columns = atoi(what);
		if (word[0] == 's')
			return columns ? set(columns, rows) : set(width, height);
		return commit(MODESET | (!strcmp(what, "test") ? TEST : !strcmp(what, "nonblock") ? NONBLOCK : 0), what);
	}
	if (!strcmp(line, "flip")) {
		struct flip it = { crtc, 0, 0, 0, 0 };
		int error = make_buffer(width, height);

		it.fb = fb;
		return error ? error : call(PAGE_FLIP, &it);
	}
	if (!strcmp(line, "swap"))
		return swap();
	if (!strcmp(line, "loop"))
		return memcpy(&format, "XR24", 4), loop();
	if (!strncmp(line, "use ", 4))
		return use(atoi(line + 4));
	/* 0 is on, 3 is off. */
	if (!strncmp(line, "dpms ", 5))
		return dpms(strcmp(line + 5, "on") ? 3 : 0);
	if (!strncmp(line, "active ", 7))
		return active(!strcmp(line + 7, "on"));
	return EINVAL;
}

int main(int count, char **words)
{
	struct capability atomic_commits = { 3, 1 };
	char line[128];

	card = open(count > 1 ? words[1] : "/dev/dri/card0", O_RDWR);
	if (card < 0 || call(SET_CAPABILITY, &atomic_commits) || use(0)) {
		perror("kms");
		return 1;
	}
	setlinebuf(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		int error;

		line[strcspn(line, "\n")] = 0;
		error = obey(line);
		puts(error ? strerrorname_np(error) : "ok");
	}
	return 0;
}
