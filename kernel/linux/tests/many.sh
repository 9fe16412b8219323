# guest: cpus=4 kernels=6.1,6.12 extent=all timeout=600
# One session of 200 functions, attached and detached at once, by both protocols, under load.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_test
check "preempt=voluntary" grep -q '(voluntary)' $D/sched/preempt
# Tracing every function under load takes an emulated processor longer than the 20 seconds after which it is called stuck.
echo 60 > /proc/sys/kernel/watchdog_thresh
start_load
# work: something of everything
work() {
	ls -lR /proc/self /sys/kernel > /dev/null 2>&1
	sh -c 'cat /proc/meminfo | wc -l' > /dev/null
}
# Functions that really run under this load, as ftrace sees them: the busiest of the kernel among them. There are
# nearly enough of them; ordinary ones make up the number.
echo function > $T/current_tracer
sleep 0.2
echo 0 > $T/tracing_on
names=$(head -n 50000 $T/trace | sed -n 's/.*: \([a-zA-Z0-9_]*\) <-.*/\1/p' | awk '!seen[$1]++' | head -n 600 | tr '\n' ' ')
echo nop > $T/current_tracer
more=$(grep -E '^(vfs|ksys|generic|filemap|pipe|shmem|path|security)_[a-z_0-9]*$' $T/available_filter_functions | tr '\n' ' ')
echo "many 200 $names $more" > $D/kdetour_test &
# Something of everything while they are attached.
while [ -d /proc/$! ]; do
	work
done
cat $D/kdetour_test | tee /tmp/lines
if grep -q ^FAIL /tmp/lines; then failed=1; fi
stop_load
text_is_whole "text"
check "rmmod" rmmod kdetour_test kdetour
finish
