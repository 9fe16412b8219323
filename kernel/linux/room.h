/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* More room for trampolines: text of another module. */
#ifndef KD_ROOM_H
#define KD_ROOM_H

#include <linux/list.h>
#include <linux/module.h>

struct kdetour_room {
	char *start;			/* whole pages of the owner's text */
	size_t size;
	struct module *owner;
	bool given;			/* kdetour's own: there may be slots in it */
	struct list_head list;		/* kdetour's own */
};

/* From a module's init. It is filled with INT3, and used when the room before is full. May sleep. */
int kdetour_add_room(struct kdetour_room *room);
/* From its exit, which the kernel calls only when no slot is in it. May sleep. */
void kdetour_remove_room(struct kdetour_room *room);

#endif
