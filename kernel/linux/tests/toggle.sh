# guest: cpus=4 append="preempt=none" kernels=6.1,6.12 timeout=1100
# vfs_read and vfs_write attached and detached 300 times under load, by both protocols; with --long 1,000 times. Without
# preemption in the kernel; preempt.sh does it with, and many.sh as Debian has it.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_test
echo 1 > /sys/module/kdetour/parameters/quiet
check "preempt=none" grep -q '(none)' $D/sched/preempt
run toggle local-refused 1
start_load
if [ -n "$kdetour_long" ]; then rounds=1000; else rounds=300; fi
run toggle live $rounds
text_is_whole "text after live"
run toggle rendezvous $rounds
text_is_whole "text after rendezvous"
stop_load
# stat NAME: what a counter says
stat() { awk -v name="$1" '$1 == name { print $2 }' $D/kdetour/stats; }
check "each of them parked the processors" test "$(stat rendezvous)" -ge $((2 * rounds))
check "for $(stat parked_ns_longest) ns at the most" test "$(stat parked_ns_longest)" -gt 0
same "nothing is attached" 1 "$(wc -l < $D/kdetour/detours)"
check "rmmod" rmmod kdetour_test kdetour
text_is_whole "text after unloading"
finish
