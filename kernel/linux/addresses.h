/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
#ifndef KD_ADDRESSES_H
#define KD_ADDRESSES_H

#include <linux/types.h>

/* Addresses, to be found by binary search. */
struct kd_addresses {
	unsigned long *all;
	size_t count;
	size_t room;
};

/* Room for so many. 0 or -ENOMEM. */
int kd_addresses_init(struct kd_addresses *addresses, size_t room);
/* There must be room. */
void kd_addresses_add(struct kd_addresses *addresses, unsigned long address);
/* When all have been added, before one is looked for. */
void kd_addresses_sort(struct kd_addresses *addresses);
/* The index of the first that does not lie before this address; the count if all do. */
size_t kd_addresses_from(const struct kd_addresses *addresses, unsigned long address);
void kd_addresses_free(struct kd_addresses *addresses);

#endif
