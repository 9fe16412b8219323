# guest: cpus=4 append="preempt=none" kernels=6.1,6.12 timeout=300
# Plan and commit apart: planned by kdetour, written by a module at moments of its own. The windows have an inside, and nobody
# looks who is in there: so without preemption in the kernel.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_test
check "preempt=none" grep -q '(none)' $D/sched/preempt
run plan behaviour
run plan kprobe
start_load
if [ -n "$kdetour_long" ]; then rounds=200; else rounds=40; fi
run plan load $rounds
stop_load
text_is_whole "text after rounds under load"
# stat NAME: what a counter says
stat() { awk -v name="$1" '$1 == name { print $2 }' $D/kdetour/stats; }
check "plans are counted" test "$(stat plans)" -ge "$rounds"
check "and failures of writes" test "$(stat failed_changed)" -ge 4
same "nothing is left" "0 0" "$(stat attached) $(stat draining)"
run plan hold
check "the list has it" grep -q 'test_planned .*Local .*planned *kdetour_test' $D/kdetour/detours
deny "kdetour.ko stays" rmmod kdetour
check "its client forgets it, and goes" rmmod kdetour_test
same "its plan went with it" "0 0" "$(stat attached) $(stat draining)"
check "rmmod" rmmod kdetour
text_is_whole "text after unloading"
finish
