// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * debugfs, in kdetour/:
 *
 *	detours		one line for each detour that is attached, planned or drains; `order` 1/3 is the one of three that is called
 *			first, and its original the next
 *	patches		the bytes of each: the window before and now, the slot
 *	survey		write a symbol's name, read what a survey of it finds
 *	stats		counters and times, one `name value` a line
 */
#include <linux/debugfs.h>
#include <linux/kallsyms.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include "host.h"
#include "list.h"
#include "lookup.h"
#include "main.h"
#include "rust.h"
#include "stats.h"

static struct dentry *folder;

static const char *owner_of(const struct kd_info *info)
{
	const struct module *owner = (const struct module *)info->owner;

	/* A client depends on this module, and its detours go before it does. */
	return owner ? owner->name : "-";
}

/*
 * There may be tens of thousands: both lists are read in pieces. Between two of them detours may come and go; one that
 * is there all the time is told once. The position is the place in the table of detours, counted from 1; the heading
 * is at 0.
 */
static void *list_at(struct seq_file *file, loff_t *position)
{
	struct kd_info *info = file->private;
	size_t place = *position - 1;

	if (!kd_info(&place, info))
		return NULL;
	/* The one that was found is in front of the place to go on from. */
	*position = place;
	return info;
}

static void *list_start(struct seq_file *file, loff_t *position)
{
	kd_lock();
	return *position ? list_at(file, position) : SEQ_START_TOKEN;
}

static void *list_next(struct seq_file *file, void *unused, loff_t *position)
{
	++*position;
	return list_at(file, position);
}

static void list_stop(struct seq_file *file, void *unused)
{
	kd_unlock();
}

static int detours_show(struct seq_file *file, void *one)
{
	struct kd_info *info = one;
	char symbol[KSYM_SYMBOL_LEN], order[24] = "-";

	if (one == SEQ_START_TOKEN) {
		seq_printf(file, "%-18s %-28s %-16s %-10s %-7s %9s %-8s %s\n", "target", "symbol", "shape", "protocol",
			   "order", "in-flight", "state", "owner");
		return 0;
	}
	snprintf(symbol, sizeof(symbol), "%ps", (void *)info->target);
	if (info->attached)
		snprintf(order, sizeof(order), "%u/%u", info->order, info->of);
	seq_printf(file, "0x%016llx %-28s %-16s %-10s %-7s %9llu %-8s %s\n", info->target, symbol, info->shape,
		   info->protocol, order, info->calls,
		   info->attached ? "attached" : info->planned ? "planned" : "draining", owner_of(info));
	return 0;
}

static int patches_show(struct seq_file *file, void *one)
{
	struct kd_info *info = one;
	u8 slot[128];
	u32 len;

	if (one == SEQ_START_TOKEN)
		return 0;
	len = min_t(u32, info->slot_len, sizeof(slot));
	seq_printf(file, "target 0x%llx %ps\n", info->target, (void *)info->target);
	seq_printf(file, "window 0x%llx %*phN %*phN\n", info->window, (int)info->displaced_len, info->original,
		   (int)info->displaced_len, info->now);
	seq_printf(file, "detour 0x%llx %ps\n", info->detour, (void *)info->detour);
	if (!kd_host_read(info->slot, slot, len)) {
		/* %ph stops at 64 bytes. */
		seq_printf(file, "slot 0x%llx %*phN", info->slot, (int)min_t(u32, len, 64), slot);
		if (len > 64)
			seq_printf(file, "%*phN", (int)(len - 64), slot + 64);
		seq_putc(file, '\n');
	}
	return 0;
}

static const struct seq_operations detours_ops = {
	.start = list_start,
	.next = list_next,
	.stop = list_stop,
	.show = detours_show,
};

static const struct seq_operations patches_ops = {
	.start = list_start,
	.next = list_next,
	.stop = list_stop,
	.show = patches_show,
};

static int detours_open(struct inode *inode, struct file *file)
{
	return __seq_open_private(file, &detours_ops, sizeof(struct kd_info)) ? 0 : -ENOMEM;
}

static int patches_open(struct inode *inode, struct file *file)
{
	return __seq_open_private(file, &patches_ops, sizeof(struct kd_info)) ? 0 : -ENOMEM;
}

static const struct file_operations detours_fops = {
	.owner = THIS_MODULE,
	.open = detours_open,
	.read = seq_read,
	.llseek = seq_lseek,
	.release = seq_release_private,
};

static const struct file_operations patches_fops = {
	.owner = THIS_MODULE,
	.open = patches_open,
	.read = seq_read,
	.llseek = seq_lseek,
	.release = seq_release_private,
};

static DEFINE_MUTEX(survey_mutex);
static char survey_symbol[KSYM_NAME_LEN];

static int survey_show(struct seq_file *file, void *unused)
{
	unsigned long target;
	char *text;

	text = kmalloc(PAGE_SIZE, GFP_KERNEL);
	if (!text)
		return -ENOMEM;
	mutex_lock(&survey_mutex);
	target = survey_symbol[0] ? kd_k_kallsyms_lookup_name(survey_symbol) : 0;
	seq_printf(file, "symbol %s\n", survey_symbol);
	mutex_unlock(&survey_mutex);
	if (target) {
		kd_lock();
		kd_survey(target, text, PAGE_SIZE);
		kd_unlock();
		seq_puts(file, text);
	} else {
		seq_puts(file, survey_symbol[0] ? "error no function has this name\n" :
						  "error write a function's name first\n");
	}
	kfree(text);
	return 0;
}

static int survey_open(struct inode *inode, struct file *file)
{
	return single_open(file, survey_show, NULL);
}

static ssize_t survey_write(struct file *file, const char __user *from, size_t count, loff_t *position)
{
	char name[KSYM_NAME_LEN];

	if (count >= sizeof(name))
		return -EINVAL;
	if (copy_from_user(name, from, count))
		return -EFAULT;
	name[count] = '\0';
	mutex_lock(&survey_mutex);
	strscpy(survey_symbol, strim(name), sizeof(survey_symbol));
	mutex_unlock(&survey_mutex);
	return count;
}

static const struct file_operations survey_fops = {
	.owner = THIS_MODULE,
	.open = survey_open,
	.read = seq_read,
	.write = survey_write,
	.llseek = seq_lseek,
	.release = single_release,
};

static int stats_show(struct seq_file *file, void *unused)
{
	struct kd_usage usage = {};
	struct kd_refusal refusal;
	size_t i, bytes;

	kd_stats_show(file);
	kd_lock();
	kd_usage(&usage);
	for (i = 0; kd_refusal(i, &refusal); i++)
		seq_printf(file, "refused_%s %llu\n", refusal.name, refusal.count);
	bytes = kd_slab_bytes();
	kd_unlock();
	seq_printf(file, "attached %llu\n", usage.attached);
	seq_printf(file, "draining %llu\n", usage.draining);
	seq_printf(file, "slot_bytes_used %llu\n", usage.slot_bytes);
	seq_printf(file, "slot_bytes_free %llu\n", bytes - usage.slot_bytes);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(stats);

void kd_list_init(void)
{
	folder = debugfs_create_dir("kdetour", NULL);
	debugfs_create_file("detours", 0400, folder, NULL, &detours_fops);
	debugfs_create_file("patches", 0400, folder, NULL, &patches_fops);
	debugfs_create_file("survey", 0600, folder, NULL, &survey_fops);
	debugfs_create_file("stats", 0400, folder, NULL, &stats_fops);
}

void kd_list_exit(void)
{
	debugfs_remove(folder);
}
