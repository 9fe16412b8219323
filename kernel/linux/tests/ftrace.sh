# guest: cpus=2 kernels=6.1,6.12 timeout=200
# ftrace on the function that is detoured: enabled before it is attached, and after.
. /lib/kdetour.sh
load_modules textsum kdetour
echo 0 > $T/tracing_on
echo vfs_read > $T/set_ftrace_filter

# work: a hundred reads, counted by ftrace and by the detour
work() {
	echo > $T/trace
	echo 1 > $T/tracing_on
	dd if=/dev/zero of=/dev/null bs=1 count=100 2>/dev/null
	echo 0 > $T/tracing_on
}
traced() { grep -c 'vfs_read <-' $T/trace; }
reads() { cat /sys/module/hello/parameters/reads; }
# counts NAME: both must have seen the work
counts() {
	before=$(reads); work; after=$(reads); hits=$(traced)
	if [ "$hits" -ge 100 ] && [ $((after - before)) -ge 100 ]; then ok "$1: ftrace $hits, detour $((after - before))"
	else fail "$1: ftrace $hits, detour $((after - before))"; fi
}

# ftrace first, then the detour
echo function > $T/current_tracer
check "attach while ftrace is on" insmod /modules/hello.ko
counts "ftrace first"
check "detour of /proc/version" grep -q detoured /proc/version
check "detach while ftrace is on" rmmod hello
work
[ "$(traced)" -ge 100 ] && ok "ftrace works on after detaching" || fail "ftrace after detaching: $(traced)"
echo nop > $T/current_tracer

# the detour first, then ftrace
check "attach" insmod /modules/hello.ko
echo function > $T/current_tracer
counts "detour first"
echo nop > $T/current_tracer
before=$(reads); work; after=$(reads)
[ $((after - before)) -ge 100 ] && ok "the detour works on without ftrace" || fail "detour without ftrace: $((after - before))"
echo function > $T/current_tracer
check "detach while ftrace is on again" rmmod hello
work
[ "$(traced)" -ge 100 ] && ok "ftrace still works" || fail "ftrace: $(traced)"
echo nop > $T/current_tracer
echo > $T/set_ftrace_filter
text_is_whole "text"
check "rmmod" rmmod kdetour
finish
