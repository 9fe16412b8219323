# guest: cpus=2 kernels=6.1,6.12 timeout=200
# Every bad input is refused by name, and nothing is written.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_test
run bad
run caller
run init
text_is_whole "text after bad input"

# What has a symbol and is no function: a piece that is jumped to, and the padding in front of one.
for name in $(awk '$3 ~ /[.]cold$/ { print $3; exit }' /proc/kallsyms) $(awk '$3 == "__pfx_vfs_read" { print $3 }' /proc/kallsyms); do
	echo $name > $D/kdetour/survey
	cat $D/kdetour/survey > /tmp/survey
	check "$name is no function" grep -q 'reason NotFunction' /tmp/survey
done

# A kprobe is there first: as a breakpoint, and once it is optimised as a jump.
echo vfs_llseek > $D/kdetour/survey
window=$(awk '$1 == "window" { print $2 }' $D/kdetour/survey)
target=$(awk '$1 == "target" { print $2 }' $D/kdetour/survey)
offset=$((window - target))
echo "p:kdt/first vfs_llseek+$offset" > $T/kprobe_events
echo 1 > $T/events/kdt/first/enable
cat $D/kdetour/survey > /tmp/survey
check "a kprobe's breakpoint is refused" grep -q 'error refused: .*belongs to a kprobe' /tmp/survey
sleep 2
cat $D/kdetour/survey > /tmp/survey
check "an optimised kprobe's jump is refused" grep -q 'error refused: .*belongs to a kprobe' /tmp/survey
echo "changed attach" > $D/kdetour_test
deny "attaching fails" grep -q '^ok changed: attach' $D/kdetour_test
echo 0 > $T/events/kdt/first/enable
echo > $T/kprobe_events
sleep 1

# A kprobe on a later instruction of the window: defined and not armed, armed, and optimised.
boundary=$(awk '$1 == "displaced" { n++; if (n == 2) print $2 }' $D/kdetour/survey)
echo "p:kdt/inside vfs_llseek+$((boundary - target))" > $T/kprobe_events
cat $D/kdetour/survey > /tmp/survey
check "a kprobe that is not armed is refused" grep -q 'error refused: .*belongs to a kprobe' /tmp/survey
echo 1 > $T/events/kdt/inside/enable
cat $D/kdetour/survey > /tmp/survey
check "armed, it is refused" grep -q 'error refused: .*belongs to a kprobe' /tmp/survey
sleep 2
cat $D/kdetour/survey > /tmp/survey
check "optimised, it is refused" grep -q 'error refused: .*belongs to a kprobe' /tmp/survey
echo 0 > $T/events/kdt/inside/enable
echo > $T/kprobe_events
sleep 1

# A kprobe is armed on our jump: it works, and detaching notices it.
run changed attach
echo "p:kdt/second vfs_llseek+$offset" > $T/kprobe_events
echo 1 > $T/events/kdt/second/enable
run changed refused
echo 0 > $T/events/kdt/second/enable
echo > $T/kprobe_events
sleep 1
run changed detach
text_is_whole "text after kprobes"
check "rmmod" rmmod kdetour_test kdetour
finish
