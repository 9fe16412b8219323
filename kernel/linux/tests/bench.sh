# What `cargo xtask bench` shows: extra instructions per call of kfree(NULL), counted by QEMU's -icount; and what commits take.
. /lib/kdetour.sh
insmod /modules/kdetour.ko quiet=1 || exit 1
insmod /modules/kdetour_room.ko || exit 1
insmod /modules/counting.ko || exit 1
insmod /modules/kdetour_bench.ko || exit 1
cat $D/kdetour_bench $D/kdetour_bench_commits > /tmp/rows || exit 1
cat /tmp/rows
if grep -q ^FAIL /tmp/rows; then exit 1; fi
rmmod kdetour_bench counting kdetour_room kdetour
