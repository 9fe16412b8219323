/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* kdetour_test: the tests that need code in the kernel. */
#ifndef KD_TEST_H
#define KD_TEST_H

#include <linux/printk.h>
#include "kdetour.h"

/* Where a test writes its lines: `ok NAME` or `FAIL NAME: why`. */
struct test_lines;

__printf(3, 4) bool test_line(struct test_lines *to, bool passed, const char *format, ...);

/* One line for one check; whether it passed. */
#define CHECK(to_, condition_, format_, ...)							\
({												\
	bool passed_ = (condition_);								\
	test_line(to_, passed_, format_ "%s", ##__VA_ARGS__, passed_ ? "" : ": " #condition_);	\
})

/* Each gets what was written behind its name. */
void test_bad(struct test_lines *to, const char *argument);
void test_changed(struct test_lines *to, const char *argument);
void test_all(struct test_lines *to, const char *argument);
void test_all_init(void);
void test_all_exit(void);
void test_many(struct test_lines *to, const char *argument);
void test_toggle(struct test_lines *to, const char *argument);
void test_sleep(struct test_lines *to, const char *argument);
void test_hold(struct test_lines *to, const char *argument);
void test_unwind(struct test_lines *to, const char *argument);
void test_chain(struct test_lines *to, const char *argument);
void test_neighbours(struct test_lines *to, const char *argument);
void test_bpf(struct test_lines *to, const char *argument);
void test_owners(struct test_lines *to, const char *argument);
void test_caller(struct test_lines *to, const char *argument);
void test_from_init(struct test_lines *to, const char *argument);

/* When the module is loaded, and when it goes. */
void test_caller_init(void);
void test_chain_end(void);
void test_forbidden(struct test_lines *to, const char *argument);
void test_path(struct test_lines *to, const char *argument);
void test_lockdown(struct test_lines *to, const char *argument);
void test_parked(struct test_lines *to, const char *argument);
void test_interrupted(struct test_lines *to, const char *argument);
void test_trampoline(struct test_lines *to, const char *argument);
void test_pointer(struct test_lines *to, const char *argument);
void test_failed(struct test_lines *to, const char *argument);
void test_stand(struct test_lines *to, const char *argument);
void test_methods(struct test_lines *to, const char *argument);
void test_plan(struct test_lines *to, const char *argument);
void test_style(struct test_lines *to, const char *argument);
void test_words(struct test_lines *to, const char *argument);
void test_tell(struct test_lines *to, const char *argument);
void test_calls(struct test_lines *to, const char *argument);

#endif
