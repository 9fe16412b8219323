// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* Memory, text, processors: what host.h says. */
#include <linux/cpu.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <asm/sync_core.h>
#include "host.h"
#include "lookup.h"
#include "stats.h"

int kd_host_read(u64 address, void *to, size_t len)
{
	if (address + len < address)
		return -EFAULT;
	return copy_from_kernel_nofault(to, (const void *)address, len);
}

/*
 * The kernel maps its text read-only and checks that it stays so. The physical pages can be mapped a second time;
 * slow_virt_to_phys finds them for large pages of the kernel image and for modules alike.
 */
void *kd_host_map(const u64 *addresses, size_t count)
{
	struct page **pages;
	void *alias = NULL;
	size_t i;
	u8 byte;

	pages = kvmalloc_array(count, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return NULL;
	for (i = 0; i < count; i++) {
		if (kd_host_read(addresses[i], &byte, 1))
			goto out;
		pages[i] = pfn_to_page(slow_virt_to_phys((void *)addresses[i]) >> PAGE_SHIFT);
	}
	alias = vmap(pages, count, VM_MAP, PAGE_KERNEL);
out:
	kvfree(pages);
	return alias;
}

void kd_host_unmap(void *alias)
{
	vunmap(alias);
}

static void sync_one_core(void *unused)
{
	sync_core();
}

void kd_host_sync_cores(void)
{
	kd_count(KD_SYNCS, 1);
	on_each_cpu(sync_one_core, NULL, 1);
}

void kd_host_sync_all(void)
{
	cpus_read_lock();
	kd_host_sync_cores();
	cpus_read_unlock();
}

/* When the text was locked; protected by text_mutex. */
static u64 locked_since;

/*
 * A processor that comes or goes runs kernel code while it is not in the mask of those that are sent an IPI, in an idle
 * task for which no quiesce waits: it must not do so during a commit. The order is that of kprobes.
 */
void kd_host_lock_text(void)
{
	mutex_lock(kd_kprobe_mutex);
	cpus_read_lock();
	mutex_lock(kd_text_mutex);
	locked_since = kd_now();
}

void kd_host_unlock_text(void)
{
	kd_took(KD_COMMIT_TIME, kd_now() - locked_since);
	mutex_unlock(kd_text_mutex);
	cpus_read_unlock();
	mutex_unlock(kd_kprobe_mutex);
}

static int nothing(void *unused)
{
	return 0;
}

/*
 * It begins and ends with an RCU grace period, so handlers that run with interrupts off have finished, too. It does
 * not wait for idle tasks, and neither does RCU while they are idle, though some of what they run then may be detoured (6.1:
 * cpuidle_poll_time, sched_clock_cpu): so each of them is made to give up its processor, which it does nowhere in the middle.
 */
void kd_host_quiesce(void)
{
	int cpu;

	kd_count(KD_QUIESCES, 1);
	synchronize_rcu_tasks();
	for_each_online_cpu(cpu)
		smp_call_on_cpu(cpu, nothing, NULL, false);
}

void kd_host_settle(void)
{
	kd_count(KD_SETTLES, 1);
	synchronize_rcu_tasks();
	/* Takes the lock of CPU hotplug, which must not be waited for with text_mutex held. */
	synchronize_rcu_tasks_rude();
}

u64 kd_host_in_flight(u64 counter)
{
	unsigned long __percpu *calls = (unsigned long __percpu *)counter;
	unsigned long sum = 0;
	int cpu;

	/* A call may leave on another processor than it came in: only the sum means something. */
	for_each_possible_cpu(cpu)
		sum += READ_ONCE(*per_cpu_ptr(calls, cpu));
	return sum;
}

bool kd_host_landing_pads(void)
{
	return IS_ENABLED(CONFIG_X86_KERNEL_IBT);
}
