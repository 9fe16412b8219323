# guest: cpus=4 kernels=6.1,6.12 timeout=1800
# Every function of the running kernel that can be detoured, in one session, under load. In short every sixteenth; --long takes all.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_room counting kdetour_test
if [ -n "$kdetour_long" ]; then step=1; else step=16; fi
run all find $step
start_load
work() {
	ls -lR /proc/self /sys/kernel > /dev/null 2>&1
	sh -c 'cat /proc/meminfo | wc -l' > /dev/null
}
echo "all detour 5" > $D/kdetour_test &
# Something of everything while they are attached.
while [ -d /proc/$! ]; do
	work
done
cat $D/kdetour_test | tee /tmp/lines
if grep -q ^FAIL /tmp/lines; then failed=1; fi
check "it came to its end" grep -q '^ok all: none is called after detaching' /tmp/lines
echo "the most called:"
sort -rn $D/kdetour_test_calls | head -n 20
stop_load
text_is_whole "text"
check "rmmod" rmmod kdetour_test counting kdetour_room kdetour
finish
