# guest: cpus=2 kernels=6.1,6.12 extent=long dies="PANIC: double fault" timeout=120
# Softirqs that need more than the larger stack: there is a guard page below it, too.
. /lib/kdetour.sh
load_modules kdetour
check "insmod stackgrow" insmod /modules/stackgrow.ko kib=32
load_modules deep
sleep 1
check "24 KiB fit" [ "$(cat /sys/module/deep/parameters/runs)" -gt 10 ]
echo 36 > /sys/module/deep/parameters/need
sleep 20
fail "still up"
finish
