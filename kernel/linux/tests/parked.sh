# guest: cpus=2 append="preempt=full" extent=long kernels=6.1,6.12,6.1-rt,6.12-rt timeout=300
# Tasks are preempted, and interrupts arrive, at every boundary inside a window and inside a trampoline.
. /lib/kdetour.sh
# A task is kept away by the deadline scheduler, for up to a minute.
echo 100000000 > /proc/sys/kernel/sched_deadline_period_max_us
load_modules textsum kdetour kdetour_test
echo 1 > /sys/module/kdetour/parameters/quiet
run parked
run trampoline
run interrupted live
# No processor goes during a commit: the one that is to go waits as long as the commit does.
run stand on
run stand attach
processors=$(cat /sys/devices/system/cpu/online)
echo 0 > /sys/devices/system/cpu/cpu1/online &
going=$!
sleep 0.5
check "a processor waits for the commit" [ -d /proc/$going -a "$(cat /sys/devices/system/cpu/online)" = "$processors" ]
run stand off
check "then it goes" wait $going
deny "it has gone" [ "$(cat /sys/devices/system/cpu/online)" = "$processors" ]
echo 1 > /sys/devices/system/cpu/cpu1/online
if [ -e $D/sched/preempt ] && ! is_real_time; then
	# Without PREEMPT_RT, the model can be changed while a task stands inside; a rendezvous is allowed then, and finds it.
	# Loaded anew: every few dozen changes old tables of breakpoints are freed, and that would wait for the task.
	check "rmmod" rmmod kdetour_test kdetour
	load_modules kdetour kdetour_test
	echo 1 > /sys/module/kdetour/parameters/quiet
	echo 3 > /sys/module/kdetour/parameters/attempts
	run stand on
	echo voluntary > $D/sched/preempt
	run stand rendezvous
	run interrupted rendezvous
	echo full > $D/sched/preempt
fi
text_is_whole "text"
check "rmmod" rmmod kdetour_test kdetour
finish
