// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * hello: counts the calls of vfs_read, and adds a line to /proc/version.
 *
 *	insmod kdetour.ko; insmod hello.ko
 *	cat /proc/version /sys/module/hello/parameters/reads
 *	rmmod hello
 *
 * vfs_read sleeps: a shell that waits for a key is inside the detour, and rmmod waits, uninterruptibly, until the key is pressed. To
 * find who is inside, look for vfs_read_entered_ in the files /proc/PID/stack.
 */
#include <linux/fs.h>
#include <linux/seq_file.h>
#include "kdetour.h"

static atomic_long_t calls;

KDETOUR(vfs_read, ssize_t, (struct file *file, char __user *to, size_t count, loff_t *position),
	(file, to, count, position))
{
	atomic_long_inc(&calls);
	return vfs_read_original(file, to, count, position);
}

KDETOUR(version_proc_show, int, (struct seq_file *file, void *value), (file, value))
{
	int result = version_proc_show_original(file, value);

	seq_puts(file, "[detoured by kdetour]\n");
	return result;
}

static struct kdetour *const detours[] = { &vfs_read_detour, &version_proc_show_detour };

/* The number of calls, as the module's parameter `reads`. */
static int reads_get(char *to, const struct kernel_param *parameter)
{
	return sysfs_emit(to, "%ld\n", atomic_long_read(&calls));
}

static const struct kernel_param_ops reads_ops = { .get = reads_get };
module_param_cb(reads, &reads_ops, NULL, 0444);
MODULE_PARM_DESC(reads, "calls of vfs_read so far");

static int __init hello_init(void)
{
	/* NULL: what fails is in the log, too. */
	return kdetour_attach_all(detours, ARRAY_SIZE(detours), KDETOUR_LIVE, NULL);
}

static void __exit hello_exit(void)
{
	kdetour_detach_all(detours, ARRAY_SIZE(detours), KDETOUR_LIVE, KDETOUR_FOR_EVER, NULL);
}

module_init(hello_init);
module_exit(hello_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("the smallest use of kdetour that shows something");
