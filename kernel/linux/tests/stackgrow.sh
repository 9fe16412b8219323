# guest: cpus=2 kernels=6.1,6.12 timeout=400
# examples/stackgrow.c: softirqs that need more stack than the kernel gives (stackgrow-without.sh: it dies of them), under network and
# timer load, with preempt=full too; traces through the switch; unloaded and loaded under load.
. /lib/kdetour.sh
load_modules textsum kdetour
P=/sys/module/deep/parameters
seconds=8
if [ -n "$kdetour_long" ]; then seconds=60; fi
# column N: of all processors
column() { awk -v n="$1" 'NR > 1 { print $n }' $D/stackgrow; }

# What is no size.
for kib in 0 1 31 33 1028 1048576 4294967292; do
	dmesg -c > /dev/null
	deny "kib=$kib" insmod /modules/stackgrow.ko kib=$kib
	check "kib=$kib: the log says what to do" sh -c "dmesg | grep -q 'stackgrow: kib=$kib is no size for a stack: load it with a multiple of 4 from 32 to 1024'"
done
for kib in many -64 4294967360; do deny "kib=$kib" insmod /modules/stackgrow.ko kib=$kib; done
same "nothing is attached" 1 "$(wc -l < $D/kdetour/detours)"

# Where it is not attached, nothing stays: a kprobe is in the window.
echo handle_softirqs > $D/kdetour/survey
target=$(awk '$1 == "target" { print $2 }' $D/kdetour/survey)
window=$(awk '$1 == "window" { print $2 }' $D/kdetour/survey)
echo "p:kdt/inside handle_softirqs+$((window - target))" > $T/kprobe_events
echo 1 > $T/events/kdt/inside/enable
used() { awk '$1 == "VmallocUsed:" { print $2 }' /proc/meminfo; }
before=$(used)
for i in 1 2 3 4; do deny "a kprobe is in the way ($i)" insmod /modules/stackgrow.ko kib=1024; done
[ "$(used)" -lt $((before + 4096)) ] && ok "the stacks are freed" || fail "vmalloc has $(used) KiB, and had $before"
echo 0 > $T/events/kdt/inside/enable
echo > $T/kprobe_events
same "nothing is attached by it" 1 "$(wc -l < $D/kdetour/detours)"

check "insmod stackgrow" insmod /modules/stackgrow.ko kib=64
deny "a second one" insmod /modules/stackgrow.ko kib=64
same "both detours are there" 3 "$(wc -l < $D/kdetour/detours)"

# timers: processes that sleep for a moment again and again; udp: datagrams over lo.
start_network() {
	udp $seconds > /tmp/udp &
	network=$!
	for i in 1 2; do while [ ! -e /tmp/enough ]; do usleep 500; done & sleepers="$sleepers $!"; done
}
stop_network() {
	wait $network && ok "$1: $(cat /tmp/udp)" || fail "$1: $(cat /tmp/udp)"
	touch /tmp/enough
	wait $sleepers
	sleepers=
	rm /tmp/enough
}

# under_load NAME: softirqs of 24 KiB beside everything else
under_load() {
	before=$(column 2)
	check "$1: insmod deep" insmod /modules/deep.ko need=24
	start_network
	stop_network "$1: datagrams"
	runs=$(cat $P/runs)
	[ "$runs" -ge $((seconds * 20)) ] && ok "$1: $runs runs of 24 KiB" || fail "$1: $runs runs"
	same "$1: none was spoilt" 0 "$(cat $P/spoilt)"
	for deepest in $(column 3); do
		[ "$deepest" -gt 24576 ] && [ "$deepest" -lt 65536 ] && ok "$1: deepest $deepest" || fail "$1: deepest $deepest"
	done
	[ "$(column 2 | sort -n | head -n 1)" -gt 100 ] && ok "$1: switches $(column 2 | tr '\n' ' ')" ||
		fail "$1: switches $(column 2 | tr '\n' ' ')"
}

# traced NAME: from the softirq to the task that was interrupted
traced() {
	dmesg -c > /dev/null
	check "$1: a trace" sh -c "echo 1 > $P/trace"
	cat $P/trace | tr '\n' ' ' > /tmp/trace
	check "$1: it shows all: $(cat /tmp/trace)" grep -q 'take_trace.* deep_dig.* deep_tasklet.* handle_softirqs .*handle_softirqs_entered_ .*__irq_exit_rcu.* deep_spin .*kthread' /tmp/trace
	dmesg | sed -n '/Call Trace/,$p' > /tmp/dump
	for name in deep_tasklet handle_softirqs handle_softirqs_entered_ __irq_exit_rcu deep_spin kthread; do
		check "$1: dump_stack shows $name" grep -Eq "(\]  |RIP: 0010:)$name(\.cold)?\+" /tmp/dump
	done
}

# What comes, and looks, while a processor is on its stack: an NMI, ftrace with a stack for each event, and with changed return addresses.
looked_at() {
	check "an NMI on the stack" sh -c "echo 1 > $P/nmi"
	cat $P/trace | tr '\n' ' ' > /tmp/trace
	check "its trace shows all: $(cat /tmp/trace)" grep -q 'on_nmi .*exc_nmi .*take_trace .*deep_dig .*handle_softirqs .*handle_softirqs_entered_ .*__irq_exit_rcu .*deep_spin .*kthread' /tmp/trace
	echo 1 > $T/options/stacktrace
	echo 1 > $T/events/irq/softirq_exit/enable
	sleep 1
	echo 0 > $T/events/irq/softirq_exit/enable
	echo 0 > $T/options/stacktrace
	# Stacks, and those of them that end at the change.
	stacks=$(awk '/=> handle_softirqs_entered_/ { last = 1; next } last { all++; ended += $1 != "=>"; last = 0 } END { print all + 0, ended + 0 }' $T/trace)
	[ "${stacks% *}" -gt 10 ] && [ "${stacks#* }" = 0 ] && ok "ftrace's stacks go on behind the change: $stacks" || fail "ftrace's stacks: $stacks"
	echo > $T/trace
	echo handle_softirqs > $T/set_ftrace_filter
	echo function_graph > $T/current_tracer
	check "a trace with the graph tracer on" sh -c "echo 1 > $P/trace"
	cat $P/trace | tr '\n' ' ' > /tmp/trace
	check "it shows all: $(cat /tmp/trace)" grep -q 'take_trace.* deep_dig.* deep_tasklet.* handle_softirqs .*handle_softirqs_entered_ .*__irq_exit_rcu.* deep_spin .*kthread' /tmp/trace
	check "softirqs were traced" grep -q 'handle_softirqs' $T/trace
	echo nop > $T/current_tracer
	echo > $T/set_ftrace_filter
	echo > $T/trace
}

# From each instruction of the detour, the change of stacks and back among them.
stepped() {
	entered=$(awk '$3 == "handle_softirqs_entered_" { print $1 }' /proc/kallsyms)
	check "$1: every instruction" sh -c "echo $entered > $P/steps"
	set -- "$1" $(cat $P/steps)
	[ "$2" -ge 12 ] && [ "$2" = "$3" ] && ok "$1: traces from $2 instructions" || fail "$1: traces from $*"
}

under_load usual
traced usual
looked_at
check "rmmod deep" rmmod deep

# It goes and comes while softirqs run, of the usual depth now.
check "a softirq at each tick" insmod /modules/deep.ko need=2
seconds=6
start_network
for i in 1 2 3; do
	sleep 0.5
	check "rmmod under load" rmmod stackgrow
	[ -e $D/stackgrow ] && fail "the file stays" || ok "the file is gone"
	check "insmod under load" insmod /modules/stackgrow.ko kib=32
done
stop_network "datagrams meanwhile"
same "none was spoilt" 0 "$(cat $P/spoilt)"
check "rmmod" rmmod deep stackgrow
text_is_whole "text"

# A processor goes and comes.
mode=$(sed 's/.*(\(.*\)).*/\1/' $D/sched/preempt)
check "preempt=full" sh -c "echo full > $D/sched/preempt"
check "insmod stackgrow again" insmod /modules/stackgrow.ko
# With softirqs on the stack of the one that goes.
udp 4 > /tmp/udp &
network=$!
for i in 1 2; do
	check "a processor goes" sh -c "echo 0 > /sys/devices/system/cpu/cpu1/online"
	check "and comes" sh -c "echo 1 > /sys/devices/system/cpu/cpu1/online"
done
wait $network && ok "datagrams meanwhile: $(cat /tmp/udp)" || fail "datagrams meanwhile: $(cat /tmp/udp)"
if [ -n "$kdetour_long" ]; then seconds=60; fi
under_load full
traced full
stepped full
check "rmmod" rmmod deep stackgrow kdetour
check "preempt=$mode" sh -c "echo $mode > $D/sched/preempt"
text_is_whole "text at the end"
finish
