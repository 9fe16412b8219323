# guest: cpus=2 append="maxcpus=1" kernels=6.1,6.12 timeout=200
# Bytes that belong to others, and places that the kernel comes to in its own ways, at the start of a function. One
# processor of two, since only then the kernel keeps book of lock prefixes; so this is where the local protocol runs, too.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_test
run owners
start_load
run toggle local 60
run toggle live 10
stop_load
text_is_whole "text"
# Another processor comes while one is attached. The kernel's own text changes with it.
run hold local
echo 1 > /sys/devices/system/cpu/cpu1/online
same "two processors" 0-1 "$(cat /sys/devices/system/cpu/online)"
run hold local-off
check "detached live" sh -c "dmesg | grep -q 'detaching lcm live: another processor has come'"
same "nothing is attached" 1 "$(wc -l < $D/kdetour/detours)"
check "rmmod" rmmod kdetour_test kdetour
finish
