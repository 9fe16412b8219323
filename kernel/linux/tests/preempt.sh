# guest: cpus=4 append="preempt=full" kernels=6.1,6.12 timeout=400
# The same where tasks are preempted anywhere, windows included.
. /lib/kdetour.sh
check "preempt=full" grep -q '(full)' /sys/kernel/debug/sched/preempt
load_modules textsum kdetour kdetour_test
echo 1 > /sys/module/kdetour/parameters/quiet
start_load
run toggle live 60
# A rendezvous could miss a task that is exiting, so it is refused where a window has an inside.
run toggle rendezvous-refused 1
stop_load
text_is_whole "text"
finish
