# guest: cpus=4 kernels=6.1,6.12 timeout=300
# One session of 200 functions, attached and detached at once, by both protocols, under load.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_test
# Functions that ordinary work runs through, of those that ftrace could trace.
names=$(grep -E '^(vfs|ksys|do|__x64_sys|__do_sys|generic|filemap|pipe|shmem|mutex|dput|mntput|path|link|fput|fdget|alloc|kmem|put|get|copy|security|task|sched|wake|enqueue|update|select|hrtimer|tick|timer|rcu)_[a-z_0-9]*$' \
	$T/available_filter_functions | awk '!seen[$1]++' | awk 'NR % 3 == 1' | head -n 400 | tr '\n' ' ')
start_load
echo "many 200 $names" > $D/kdetour_test &
# Something of everything while they are attached.
while [ -d /proc/$! ]; do
	ls -lR /proc/self /sys/kernel > /dev/null 2>&1
	sh -c 'cat /proc/meminfo | wc -l' > /dev/null
done
cat $D/kdetour_test | tee /tmp/lines
if grep -q ^FAIL /tmp/lines; then failed=1; fi
stop_load
text_is_whole "text"
check "rmmod" rmmod kdetour_test kdetour
finish
