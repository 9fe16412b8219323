// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* Sorted addresses. */
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include "addresses.h"

int kd_addresses_init(struct kd_addresses *addresses, size_t room)
{
	addresses->count = 0;
	addresses->room = room;
	addresses->all = kvmalloc_array(room, sizeof(*addresses->all), GFP_KERNEL);
	return addresses->all || !room ? 0 : -ENOMEM;
}

void kd_addresses_add(struct kd_addresses *addresses, unsigned long address)
{
	if (!WARN_ON_ONCE(addresses->count == addresses->room))
		addresses->all[addresses->count++] = address;
}

static int by_address(const void *one, const void *other)
{
	unsigned long a = *(const unsigned long *)one, b = *(const unsigned long *)other;

	return a < b ? -1 : a > b;
}

void kd_addresses_sort(struct kd_addresses *addresses)
{
	sort(addresses->all, addresses->count, sizeof(*addresses->all), by_address, NULL);
}

size_t kd_addresses_from(const struct kd_addresses *addresses, unsigned long address)
{
	size_t low = 0, high = addresses->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (addresses->all[middle] < address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

void kd_addresses_free(struct kd_addresses *addresses)
{
	kvfree(addresses->all);
	addresses->all = NULL;
	addresses->count = addresses->room = 0;
}
