# guest: cpus=4 append="preempt=full" extent=long kernels=6.1,6.12,6.1-rt,6.12-rt timeout=400
# Attached and detached under load where tasks are preempted anywhere, windows included: preempt=full, and PREEMPT_RT. The
# long form for the default is in toggle.sh.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_test
echo 1 > /sys/module/kdetour/parameters/quiet
is_real_time || check "preempt=full" grep -q '(full)' $D/sched/preempt
start_load
# Each round waits for tasks that were preempted.
run toggle live 12
run toggle mixed 5
# A rendezvous could miss a task that is exiting, so it is refused where a window has an inside.
run toggle rendezvous-refused 1
stop_load
text_is_whole "text"
check "rmmod" rmmod kdetour_test kdetour
finish
