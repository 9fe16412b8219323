# guest: kernels=6.1,6.12 counts=instructions timeout=200
# How many instructions a run of softirqs takes more with examples/stackgrow.c: 30 are allowed. `cargo xtask demo stackgrow` shows it.
. /lib/kdetour.sh
load_modules kdetour
check "insmod deep" insmod /modules/deep.ko need=0
cost() { cat /sys/module/deep/parameters/cost; }
echo "demo.cost_without=$(cost)"
without=$(cost)
check "insmod stackgrow" insmod /modules/stackgrow.ko
with=$(cost)
echo "demo.cost_with=$with"
extra=$((with - without))
[ "$extra" -gt 8 ] && [ "$extra" -le 30 ] && ok "$extra instructions more than $without" || fail "$extra more than $without"
check "rmmod stackgrow" rmmod stackgrow
same "without it as before" "$without" "$(cost)"
check "rmmod" rmmod deep kdetour
finish
