# guest: cpus=2 kernels=6.1,6.12 dies="stack guard page was hit" timeout=120
# The softirqs of stackgrow.sh without examples/stackgrow.c: what the kernel gives them is not enough, and it goes down.
. /lib/kdetour.sh
load_modules textsum
load_modules deep
P=/sys/module/deep/parameters
sleep 20
fail "still up after $(cat $P/runs) runs"
finish
