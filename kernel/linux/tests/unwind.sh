# guest: cpus=2 append="preempt=full" kernels=6.1,6.12 timeout=300
# Stack traces through detours and trampolines.
. /lib/kdetour.sh
load_modules textsum kdetour
check "preempt=full" grep -q '(full)' $D/sched/preempt

# From everywhere on the way.
load_modules kdetour_test
run unwind
# dump_stack from behind each trampoline: in this order, and nothing between them but guesses.
dmesg | sed -nE 's/.*\]  (test_unwind_[a-z_]+)(\.cold)?\+0x.*/\1/p' | tr '\n' ' ' > /tmp/dumped
for f in framed pushes calls; do
	check "dump_stack through $f" grep -q "test_unwind_leaf test_unwind_$f test_unwind_${f}_entered_ test_unwind_call " /tmp/dumped
done

# NMI backtraces of processors that run detoured functions all the time.
start_load
check "insmod hello" insmod /modules/hello.ko
for i in 1 2 3 4 5; do echo l > /proc/sysrq-trigger; done
check "a backtrace of another processor" sh -c "dmesg | grep -q 'NMI backtrace for cpu'"
check "rmmod hello" rmmod hello
stop_load

text_is_whole "text"
check "rmmod" rmmod kdetour_test kdetour
finish
