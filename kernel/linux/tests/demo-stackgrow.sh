# What `cargo xtask demo stackgrow` shows of a guest with examples/stackgrow.c. Lines demo.KEY=VALUE, and `step TEXT`.
. /lib/kdetour.sh
P=/sys/module/deep/parameters
seconds=20
echo "step load kdetour.ko and stackgrow.ko kib=64"
insmod /modules/textsum.ko || exit 1
insmod /modules/kdetour.ko || exit 1
insmod /modules/stackgrow.ko kib=64 || exit 1

echo "step softirqs of 24 KiB on every processor, and datagrams over lo, for $seconds s"
insmod /modules/deep.ko need=24 || exit 1
udp $seconds > /tmp/udp || exit 1
echo "demo.network=$(cat /tmp/udp)"

echo "step a stack trace from such a softirq"
echo 1 > $P/trace || exit 1
echo "demo.trace=$(cat $P/trace | tr '\n' ';')"
echo "demo.runs=$(cat $P/runs)"
echo "demo.spoilt=$(cat $P/spoilt)"
awk 'NR > 1 { print "demo.cpu" $1 "=" $2, $3, $4 }' $D/stackgrow
echo "demo.processors=$(awk 'NR > 1' $D/stackgrow | wc -l)"

echo "step unload stackgrow.ko under load"
echo 2 > $P/need
sleep 0.2
udp 2 > /tmp/udp &
sleep 0.5
rmmod stackgrow || exit 1
wait $! || exit 1
rmmod deep kdetour || exit 1

echo "step compare the whole kernel text"
cat $D/textsum > /tmp/sum
if grep -q ' changed 0 ' /tmp/sum; then echo "demo.restored=1"; else echo "demo.restored=0"; fi
