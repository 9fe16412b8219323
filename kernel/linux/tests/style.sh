# guest: cpus=4 append="preempt=none" kernels=6.1,6.12 timeout=300
# The call style of Kernel Detours: static trampolines in a module's own text.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_test
check "preempt=none" grep -q '(none)' $D/sched/preempt
run style behaviour
text_is_whole "text"
if [ -n "$kdetour_long" ]; then rounds=200; else rounds=30; fi
run style load $rounds
text_is_whole "text after rounds under load"
# A kprobe in a trampoline would be in the way of what is exchanged there.
echo "p:kdt/inside kdetour_test:Real_lcm" > $T/kprobe_events 2>/dev/null
deny "no kprobe in a trampoline" grep -q inside $T/kprobe_events
run style hold
check "the list has it" grep -q 'lcm .*Live .*attached *kdetour_test' $D/kdetour/detours
check "its module forgets it, and goes" rmmod kdetour_test
same "its detour went with it" 1 "$(wc -l < $D/kdetour/detours)"
text_is_whole "text after a forgetful module"

# The example: a delayed patch, written with all processors parked.
load_modules static_trampoline
check "the example's line" grep -q 'through a static trampoline' /proc/version
check "listed as a plan: nobody has to tell" grep -q 'version_proc_show .*planned *static_trampoline' $D/kdetour/detours
check "rmmod static_trampoline" rmmod static_trampoline
deny "no line of ours" grep -q trampoline /proc/version
check "rmmod" rmmod kdetour
text_is_whole "text after unloading"
finish
