// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* Memory for the Rust half: kvmalloc, with a list of what is out, so that unloading gives back everything. */
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include "host.h"

/* In front of every piece; keeps what follows aligned to 16. */
struct piece {
	struct list_head list;
} __aligned(16);

static LIST_HEAD(pieces);
static DEFINE_SPINLOCK(lock);

void *kd_host_alloc(size_t size, size_t align)
{
	struct piece *piece;

	if (align > sizeof(*piece) || size > INT_MAX - sizeof(*piece))
		return NULL;
	piece = kvmalloc(sizeof(*piece) + size, GFP_KERNEL);
	if (!piece)
		return NULL;
	spin_lock(&lock);
	list_add(&piece->list, &pieces);
	spin_unlock(&lock);
	return piece + 1;
}

void kd_host_free(void *memory)
{
	struct piece *piece = (struct piece *)memory - 1;

	spin_lock(&lock);
	list_del(&piece->list);
	spin_unlock(&lock);
	kvfree(piece);
}

void kd_host_free_all(void)
{
	struct piece *piece, *next;

	list_for_each_entry_safe(piece, next, &pieces, list)
		kvfree(piece);
	INIT_LIST_HEAD(&pieces);
}
