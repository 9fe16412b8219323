// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * rodent: a driver of the mouse at the keyboard's controller that keeps every byte as it came, since these kernels have none (psmouse).
 *
 *	bytes	read: all of them, in order, in decimal; the first is the mouse's answer to being switched on
 */
#include <linux/module.h>
#include <linux/serio.h>

#define SWITCH_ON 0xf4

static u8 bytes[1024];
static unsigned int count;

static irqreturn_t rodent_interrupt(struct serio *serio, unsigned char byte, unsigned int flags)
{
	if (count < ARRAY_SIZE(bytes))
		bytes[count] = byte;
	WRITE_ONCE(count, count + 1);
	return IRQ_HANDLED;
}

static int rodent_connect(struct serio *serio, struct serio_driver *driver)
{
	int error = serio_open(serio, driver);

	if (error)
		return error;
	error = serio_write(serio, SWITCH_ON);
	if (error)
		serio_close(serio);
	return error;
}

static void rodent_disconnect(struct serio *serio)
{
	serio_close(serio);
}

static int bytes_get(char *to, const struct kernel_param *unused)
{
	unsigned int i, all = min_t(unsigned int, READ_ONCE(count), ARRAY_SIZE(bytes));
	int at = 0;

	for (i = 0; i < all && at < PAGE_SIZE - 8; i++)
		at += sysfs_emit_at(to, at, "%u ", bytes[i]);
	return at + sysfs_emit_at(to, at, "\n");
}
static const struct kernel_param_ops bytes_ops = { .get = bytes_get };
module_param_cb(bytes, &bytes_ops, NULL, 0400);

static const struct serio_device_id ids[] = {
	{ .type = SERIO_8042, .proto = SERIO_ANY, .id = SERIO_ANY, .extra = SERIO_ANY },
	{}
};

static struct serio_driver rodent = {
	.driver = { .name = "rodent" },
	.description = "a mouse's bytes",
	.id_table = ids,
	.interrupt = rodent_interrupt,
	.connect = rodent_connect,
	.disconnect = rodent_disconnect,
};

static int __init rodent_init(void)
{
	return serio_register_driver(&rodent);
}

static void __exit rodent_exit(void)
{
	serio_unregister_driver(&rodent);
}

module_init(rodent_init);
module_exit(rodent_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("a mouse's bytes");
