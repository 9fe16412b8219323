/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* The Rust half of kdetour_words.ko: crates/words/src/linux_kernel.rs. */
#ifndef KD_WORDS_RUST_H
#define KD_WORDS_RUST_H

#include <linux/types.h>

/* How many bytes kd_words_start needs for that many lines. */
size_t kd_words_memory(size_t lines);
/* Makes all that there will be in these bytes, which stay until the module goes. Once, before all others; process context. */
void kd_words_start(u8 *memory, size_t size, size_t lines);
/* By a line that no other call has; as kdetour_words, with pointers that lead somewhere. Any context. */
int kd_words(size_t line, const u8 *code, size_t len, u64 address, u8 *text, size_t size);

#endif
