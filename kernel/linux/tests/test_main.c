// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * /sys/kernel/debug/kdetour_test: write the name of a test and its argument, and it runs; read its lines.
 */
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include "test.h"

/* What the last test said. */
struct test_lines {
	char text[16384];
	size_t len;
};

static const struct {
	const char *name;
	void (*run)(struct test_lines *to, const char *argument);
} tests[] = {
	{ "all", test_all },
	{ "bad", test_bad },
	{ "changed", test_changed },
	{ "many", test_many },
	{ "toggle", test_toggle },
	{ "sleep", test_sleep },
	{ "hold", test_hold },
	{ "unwind", test_unwind },
	{ "chain", test_chain },
	{ "neighbours", test_neighbours },
	{ "bpf", test_bpf },
	{ "owners", test_owners },
	{ "caller", test_caller },
	{ "init", test_from_init },
	{ "forbidden", test_forbidden },
	{ "path", test_path },
	{ "lockdown", test_lockdown },
	{ "parked", test_parked },
	{ "interrupted", test_interrupted },
	{ "trampoline", test_trampoline },
	{ "stand", test_stand },
	{ "pointer", test_pointer },
	{ "failed", test_failed },
	{ "methods", test_methods },
	{ "plan", test_plan },
	{ "style", test_style },
	{ "words", test_words },
	{ "tell", test_tell },
	{ "calls", test_calls },
};

static struct dentry *file;
static struct test_lines lines;
static DEFINE_MUTEX(running);

bool test_line(struct test_lines *to, bool passed, const char *format, ...)
{
	va_list arguments;

	to->len += scnprintf(to->text + to->len, sizeof(to->text) - to->len, passed ? "ok " : "FAIL ");
	va_start(arguments, format);
	to->len += vscnprintf(to->text + to->len, sizeof(to->text) - to->len, format, arguments);
	va_end(arguments);
	to->len += scnprintf(to->text + to->len, sizeof(to->text) - to->len, "\n");
	return passed;
}

static void run(const char *name, const char *argument)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(tests); i++)
		if (!strcmp(name, tests[i].name)) {
			tests[i].run(&lines, argument);
			return;
		}
	test_line(&lines, false, "no test is called \"%s\"", name);
}

static ssize_t test_write(struct file *opened, const char __user *from, size_t count, loff_t *position)
{
	char *text = memdup_user_nul(from, count);
	char *argument, *name;

	if (IS_ERR(text))
		return PTR_ERR(text);
	argument = strim(text);
	name = strsep(&argument, " ");
	mutex_lock(&running);
	lines.len = 0;
	run(name, argument ? skip_spaces(argument) : "");
	mutex_unlock(&running);
	kfree(text);
	/* Whoever keeps the file open reads from the start. */
	*position = 0;
	return count;
}

static ssize_t test_read(struct file *opened, char __user *to, size_t count, loff_t *position)
{
	ssize_t done;

	mutex_lock(&running);
	done = simple_read_from_buffer(to, count, position, lines.text, lines.len);
	mutex_unlock(&running);
	return done;
}

static const struct file_operations fops = {
	.owner = THIS_MODULE,
	.read = test_read,
	.write = test_write,
};

static int __init test_init(void)
{
	test_all_init();
	test_caller_init();
	file = debugfs_create_file("kdetour_test", 0600, NULL, NULL, &fops);
	return 0;
}

static void __exit test_exit(void)
{
	debugfs_remove(file);
	test_all_exit();
	test_chain_end();
}

module_init(test_init);
module_exit(test_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("tests of kdetour.ko");
