# What `cargo xtask bench` shows: extra instructions per call of kfree(NULL), counted by QEMU's -icount; and what commits take.
. /lib/kdetour.sh
insmod /modules/kdetour.ko quiet=1 || exit 1
insmod /modules/kdetour_room.ko || exit 1
insmod /modules/counting.ko || exit 1
insmod /modules/kdetour_bench.ko || exit 1
cat $D/kdetour_bench || exit 1
cat $D/kdetour_bench_commits || exit 1
rmmod kdetour_bench counting kdetour_room kdetour
