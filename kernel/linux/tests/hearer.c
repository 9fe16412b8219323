// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * hearer: subscribers of video.ko that do what subscribers may do. `do` takes a command, and `result` has what came of it:
 *
 *	sub N plain|leave|swap|sleep	what video_subscribe returned
 *	unsub N				-EBUSY if its `changed` was running when it had returned, or else 0
 *	churn N ROUNDS			the same, over and over, while modes change
 *
 * When they are called for the second time, `leave` unsubscribes itself, `swap` the next one and subscribes the one behind that; `sleep`
 * sleeps each time. `calls` counts for each.
 */
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/string.h>
#include "../examples/video.h"

#define HEARERS 20

struct hearer {
	struct video_subscriber subscriber;
	char what;
	bool inside;
};

static struct hearer hearers[HEARERS];
static unsigned int calls[HEARERS];
static int result;
module_param_array(calls, uint, NULL, 0444);
module_param(result, int, 0444);

static void changed(struct video_subscriber *subscriber, const struct video_mode *mode)
{
	struct hearer *hearer = container_of(subscriber, struct hearer, subscriber);
	unsigned int number = hearer - hearers;

	WRITE_ONCE(hearer->inside, true);
	calls[number]++;
	if (hearer->what == 's' && calls[number] > 1)
		msleep(700);
	if (hearer->what == 'l' && calls[number] == 2)
		video_unsubscribe(subscriber);
	if (hearer->what == 'w' && calls[number] == 2) {
		video_unsubscribe(&hearers[number + 1].subscriber);
		result = video_subscribe(&hearers[number + 2].subscriber);
	}
	WRITE_ONCE(hearer->inside, false);
}

static int unsubscribe(struct hearer *hearer)
{
	video_unsubscribe(&hearer->subscriber);
	return READ_ONCE(hearer->inside) ? -EBUSY : 0;
}

static int obey(const char *command, const struct kernel_param *unused)
{
	char word[8] = "", what[8] = "";
	unsigned int number, rounds;
	struct hearer *hearer;

	if (sscanf(command, "%7s %u %7s", word, &number, what) < 2 || number >= HEARERS - 2)
		return -EINVAL;
	hearer = &hearers[number];
	if (!strcmp(word, "sub")) {
		hearer->what = what[0] == 's' && what[1] == 'w' ? 'w' : what[0];
		result = video_subscribe(&hearer->subscriber);
	} else if (!strcmp(word, "unsub")) {
		result = unsubscribe(hearer);
	} else if (!strcmp(word, "churn") && !kstrtouint(what, 10, &rounds)) {
		for (result = 0; rounds && !result; rounds--) {
			result = video_subscribe(&hearer->subscriber) ?: unsubscribe(hearer);
			cond_resched();
		}
	} else {
		return -EINVAL;
	}
	return 0;
}
static const struct kernel_param_ops obey_ops = { .set = obey };
module_param_cb(do, &obey_ops, NULL, 0200);

static int __init hearer_init(void)
{
	unsigned int i;

	for (i = 0; i < HEARERS; i++)
		hearers[i].subscriber.changed = changed;
	return 0;
}

static void __exit hearer_exit(void)
{
	unsigned int i;

	for (i = 0; i < HEARERS; i++)
		video_unsubscribe(&hearers[i].subscriber);
}

module_init(hearer_init);
module_exit(hearer_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("subscribers of video.ko, for tests");
