// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * The pieces of functions that the compiler has put elsewhere, NAME.cold, by their names' hashes. The kernel finds a symbol by
 * its name too slowly to be asked for each of tens of thousands of functions (6.1 goes through all of them), so its symbols are
 * gone through once. Those of modules are not in here.
 */
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/string.h>
#include <linux/version.h>
#include "cold.h"
#include "lookup.h"

struct piece {
	u64 hash;		/* of the function's name */
	unsigned long address;
};

static struct piece *pieces;
static size_t count, room;

/* FNV-1a. Two functions of one hash share their pieces, which does no harm: none jumps into the other. */
static u64 hash_of(const char *name, size_t len)
{
	u64 hash = 0xcbf29ce484222325;

	while (len--)
		hash = (hash ^ (u8)*name++) * 0x100000001b3;
	return hash;
}

static int take(const char *name, unsigned long address)
{
	size_t len = strlen(name), suffix = strlen(".cold");

	if (len <= suffix || strcmp(name + len - suffix, ".cold"))
		return 0;
	if (count < room) {
		pieces[count].hash = hash_of(name, len - suffix);
		pieces[count].address = address;
	}
	count++;
	return 0;
}

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
static int on_symbol(void *unused, const char *name, struct module *module, unsigned long address)
{
	return module ? 0 : take(name, address);
}
#else
static int on_symbol(void *unused, const char *name, unsigned long address)
{
	return take(name, address);
}
#endif

static int by_hash(const void *one, const void *other)
{
	u64 a = ((const struct piece *)one)->hash, b = ((const struct piece *)other)->hash;

	return a < b ? -1 : a > b;
}

int kd_cold_init(void)
{
	/* How many there are is known when they have been seen. */
	kd_k_kallsyms_on_each_symbol(on_symbol, NULL);
	room = count;
	count = 0;
	pieces = kvmalloc_array(room, sizeof(*pieces), GFP_KERNEL);
	if (room && !pieces)
		return -ENOMEM;
	kd_k_kallsyms_on_each_symbol(on_symbol, NULL);
	count = min(count, room);
	sort(pieces, count, sizeof(*pieces), by_hash, NULL);
	return 0;
}

void kd_cold_exit(void)
{
	kvfree(pieces);
	pieces = NULL;
	count = room = 0;
}

int kd_cold_pieces(const char *name, int (*found)(void *data, unsigned long address), void *data)
{
	u64 hash = hash_of(name, strlen(name));
	size_t low = 0, high = count;
	int result = 0;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (pieces[middle].hash < hash)
			low = middle + 1;
		else
			high = middle;
	}
	for (; !result && low < count && pieces[low].hash == hash; low++)
		result = found(data, pieces[low].address);
	return result;
}
