# guest: cpus=4 kernels=6.1,6.12 timeout=300
# Modules come and go under load; a call that sleeps inside a detour is waited for.
. /lib/kdetour.sh
load_modules textsum
start_load
rounds="1 2 3 4 5"
# Each waits several times for tasks that were preempted.
if is_real_time; then rounds="1 2"; fi
for i in $rounds; do
	load_modules kdetour hello
	deny "kdetour.ko stays while it is used" rmmod kdetour
	check "the list names the detour" grep -q 'vfs_read .*Live.*attached.*hello' $D/kdetour/detours
	sleep 0.3
	check "rmmod hello" rmmod hello
	deny "no line of ours" grep -q detoured /proc/version
	check "rmmod kdetour" rmmod kdetour
done
text_is_whole "text after some rounds"
load_modules kdetour kdetour_test
run sleep
stop_load

# A read of a pipe sleeps inside the detour of vfs_read until something is written.
mkfifo /tmp/fifo
exec 7<>/tmp/fifo
insmod /modules/hello.ko
dd bs=1 count=1 <&7 >/tmp/byte 2>/dev/null &
reader=$!
sleep 0.5
rmmod hello &
unloader=$!
sleep 1.5
[ -d /proc/$unloader ] && ok "rmmod waits for the sleeping read" || fail "rmmod did not wait"
check "the list says so" grep -q 'vfs_read .* 1 draining hello' $D/kdetour/detours
printf x >&7
wait $reader
wait $unloader && ok "rmmod ends once the read has" || fail "rmmod gave $?"
same "the read got its byte" x "$(cat /tmp/byte)"
deny "hello is gone" grep -q '^hello ' /proc/modules
check "rmmod" rmmod kdetour_test kdetour
text_is_whole "text"
finish
