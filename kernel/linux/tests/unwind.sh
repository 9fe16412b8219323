# guest: cpus=2 append="preempt=full" kernels=6.1,6.12 timeout=300
# Stack traces through detours and trampolines; and what debugfs and the log tell of it: counters, events.
. /lib/kdetour.sh
load_modules textsum kdetour
check "preempt=full" grep -q '(full)' $D/sched/preempt
S=$D/kdetour/stats
# stat NAME: what a counter says
stat() { awk -v name="$1" '$1 == name { print $2 }' $S; }
# grown NAME FROM BY
grown() { same "$1 grew by $3" "$3" "$(($(stat $1) - $2))"; }

# From everywhere on the way.
load_modules kdetour_test
run unwind
# dump_stack from behind each trampoline: in this order, and nothing between them but guesses.
dmesg | sed -nE 's/.*\]  (test_unwind_[a-z_]+)(\.cold)?\+0x.*/\1/p' | tr '\n' ' ' > /tmp/dumped
for f in framed pushes calls; do
	check "dump_stack through $f" grep -q "test_unwind_leaf test_unwind_$f test_unwind_${f}_entered_ test_unwind_call " /tmp/dumped
done

# While others replace the return address: the function graph tracer, then a kretprobe.
echo test_unwind_traced > $T/set_ftrace_filter
echo function_graph > $T/current_tracer
run unwind traced
check "the graph has seen it" grep -q 'test_unwind_traced' $T/trace
echo nop > $T/current_tracer
echo > $T/set_ftrace_filter
echo 'r:kdt/traced test_unwind_traced' > $T/kprobe_events
echo 1 > $T/events/kdt/traced/enable
run unwind traced
check "the kretprobe was hit" awk '$1 == "traced" && $2 > 0 { found = 1 } END { exit !found }' $T/kprobe_profile
echo 0 > $T/events/kdt/traced/enable
echo > $T/kprobe_events

# NMI backtraces of processors that run detoured functions all the time.
start_load
check "insmod hello" insmod /modules/hello.ko
for i in 1 2 3 4 5; do echo l > /proc/sysrq-trigger; done
check "a backtrace of another processor" sh -c "dmesg | grep -q 'NMI backtrace for cpu'"
check "rmmod hello" rmmod hello
stop_load

# Counters: what one module does, and what fails.
attaches=$(stat attaches) sets=$(stat attach_sets) detaches=$(stat detaches) reclaims=$(stat reclaims)
syncs=$(stat syncs) quiesces=$(stat quiesces) settles=$(stat settles)
same "no slot is in use" 0 "$(stat slot_bytes_used)"
free=$(stat slot_bytes_free)
insmod /modules/hello.ko
grown attaches $attaches 2
grown attach_sets $sets 1
# INT3, tails, first bytes.
grown syncs $syncs 3
same "two are attached" 2 "$(stat attached)"
used=$(stat slot_bytes_used)
check "they take slots" test "$used" -ge 32
same "which are no longer free" "$free" "$(($(stat slot_bytes_free) + used))"
check "commits take time" test "$(stat commit_ns_longest)" -ge "$(stat commit_ns_last)" -a "$(stat commit_ns_last)" -gt 0
check "sessions longer" test "$(stat session_ns_last)" -gt "$(stat commit_ns_last)"
rmmod hello
grown detaches $detaches 2
grown reclaims $reclaims 2
grown settles $settles 1
check "quiesces are counted" test "$(stat quiesces)" -gt "$quiesces"
same "none is attached" "0 0 0" "$(stat attached) $(stat draining) $(stat slot_bytes_used)"
check "breakpoints were answered under load" test "$(stat breakpoint_hits)" -gt 0

# A rendezvous: refused here for a window with an inside, and counted.
preemptible=$(stat failed_preemptible)
run toggle rendezvous-refused 1
check "a rendezvous that is refused" test "$(stat failed_preemptible)" -gt "$preemptible"

# A failure, by code and by the survey's reason.
unknown=$(stat failed_unknown_symbol)
deny "a target that does not exist" insmod /modules/forgetful.ko target=there_is_no_such_function
grown failed_unknown_symbol $unknown 2

# The log: nothing while it is off, one line for each event while it is on.
events() { dmesg | grep -c 'kdetour: event='; }
same "the log is off" 0 "$(events)"
echo 'module kdetour +p' > $D/dynamic_debug/control
insmod /modules/hello.ko
rmmod hello
deny "a failure" insmod /modules/forgetful.ko target=there_is_no_such_function
echo 'module kdetour -p' > $D/dynamic_debug/control
dmesg | sed -n 's/.*kdetour: event=//p' > /tmp/events
for event in attach detach reclaim; do
	for f in vfs_read version_proc_show; do
		check "event=$event for $f" grep -qE "^$event handle=0x[0-9a-f]+ target=0xffffffff[0-9a-f]+ symbol=$f shape=[A-Za-z0-9]+ protocol=Live owner=hello slot=0xffffffff[0-9a-f]+ slot_len=[0-9]+ calls=[0-9]+ set=2 ns=[1-9][0-9]*$" /tmp/events
	done
done
check "event=refuse" grep -qE '^refuse call=attach symbol=there_is_no_such_function code=2 address=0x0 index=0 set=1 text=".*"$' /tmp/events
# Two for each of three, and the failure, which busybox' insmod tries twice.
same "and no others" 8 "$(wc -l < /tmp/events)"
insmod /modules/hello.ko && rmmod hello
same "off again" 8 "$(events)"

# quiet: an ordinary line is not written.
said() { dmesg | grep -c 'kdetour: attached'; }
before=$(said)
echo 1 > /sys/module/kdetour/parameters/quiet
insmod /modules/hello.ko && rmmod hello
same "quiet" "$before" "$(said)"
echo 0 > /sys/module/kdetour/parameters/quiet
text_is_whole "text"
check "rmmod" rmmod kdetour_test kdetour
finish
