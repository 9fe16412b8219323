# guest: cpus=4 append="preempt=full" kernels=6.1,6.12,6.1-rt extent=all long-kernels=6.12-rt timeout=900
# Under every condition, in one guest: each part is a script, which runs alone too (`--only kernel-NAME-SERIES`).
. /lib/kdetour.sh
# The last one locks the kernel down.
parts="parked preempt hotplug methods forbidden"
# A kernel with PREEMPT_RT has no guests of its own for what the others test by themselves.
if is_real_time; then
	parts="bad unload $parts"
	load_modules kdetour
	deny "stackgrow is not for PREEMPT_RT" insmod /modules/stackgrow.ko
	check "its log says so" sh -c "dmesg | grep -q 'stackgrow: a kernel with PREEMPT_RT preempts softirqs'"
	# On any machine: this guest has no keyboard.
	load_modules video video_panel calls
	deny "popup is not for PREEMPT_RT" insmod /modules/popup.ko
	check "its log says so" sh -c "dmesg | grep -q 'popup: with PREEMPT_RT an interrupt waits'"
	check "rmmod" rmmod calls video_panel video kdetour
fi
for part in $parts; do
	start=$(cut -d. -f1 /proc/uptime)
	sh /lib/tests/$part.sh || failed=1
	echo "part $part took $(($(cut -d. -f1 /proc/uptime) - start)) s"
done
finish
