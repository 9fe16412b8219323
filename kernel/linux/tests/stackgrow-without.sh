# guest: cpus=2 append="possible_cpus=200" kernels=6.1,6.12 dies="stack guard page was hit" timeout=120
# The softirqs of stackgrow.sh without examples/stackgrow.c: what the kernel gives them is not enough, and it goes down.
. /lib/kdetour.sh
load_modules textsum
# Stacks for so many would take an eighth of the memory. A later kernel knows better how many there can be.
if [ "$(cat /sys/devices/system/cpu/possible)" = 0-199 ]; then
	load_modules kdetour
	deny "200 stacks of 1 MiB" insmod /modules/stackgrow.ko kib=1024
	check "the log says what to do" sh -c "dmesg | grep -q 'stackgrow: 200 stacks of 1024 KiB are too much for this .* smaller kib='"
	check "rmmod" rmmod kdetour
fi
load_modules deep
P=/sys/module/deep/parameters
sleep 20
fail "still up after $(cat $P/runs) runs"
finish
