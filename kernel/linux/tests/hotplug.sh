# guest: cpus=4 extent=long kernels=6.1,6.12,6.1-rt,6.12-rt timeout=400
# Processors come and go while detours do, by both protocols.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_test
echo 1 > /sys/module/kdetour/parameters/quiet
start_load
# Takes processors 1 to 3 away and brings them back, one after the other, again and again.
plug() {
	while [ ! -e /tmp/enough ]; do
		for n in 1 2 3; do
			for to in 0 1; do
				echo $to > /sys/devices/system/cpu/cpu$n/online && echo "$n $to" >> /tmp/plugged
			done
		done
	done
}
plug &
plugging=$!
rounds=15
if is_real_time; then rounds=5; fi
run toggle live $rounds
run toggle mixed $rounds
touch /tmp/enough
wait $plugging
same "all processors are back" 4 "$(nproc)"
changes=$(wc -l < /tmp/plugged)
check "processors came and went meanwhile, $changes times" [ "$changes" -ge 6 ]
stop_load
text_is_whole "text"
check "rmmod" rmmod kdetour_test kdetour
finish
