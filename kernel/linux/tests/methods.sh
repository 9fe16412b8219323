# guest: cpus=4 extent=long kernels=6.1,6.12 timeout=400
# Breakpoints and debug registers in place of a jump: on every processor, in chains, under load, and while processors come and go.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_test
echo 1 > /sys/module/kdetour/parameters/quiet
# stat NAME: what a counter says
stat() { awk -v name="$1" '$1 == name { print $2 }' $D/kdetour/stats; }
run methods int3
run methods register
run methods limits
check "breakpoints were answered" test "$(stat breakpoint_hits)" -gt 100
check "debug registers were answered" test "$(stat register_hits)" -gt 100
check "who asked for a fifth is counted" test "$(stat failed_no_debug_register)" -ge 2
start_load
run toggle live 10 int3
run toggle live 10 register
stop_load
text_is_whole "text"
run methods hold
check "the list names the method" grep -q "methods_0 .* DebugRegister " $D/kdetour/detours
same "no byte is written" "" "$(awk '$1 == "window" && $3 != $4' $D/kdetour/patches)"
text_is_whole "text with a debug register"
echo 0 > /sys/devices/system/cpu/cpu3/online
echo 0 > /sys/devices/system/cpu/cpu1/online
run methods held
echo 1 > /sys/devices/system/cpu/cpu1/online
echo 1 > /sys/devices/system/cpu/cpu3/online
same "all processors are back" 4 "$(nproc)"
run methods held
run methods off
same "nothing is attached" 1 "$(wc -l < $D/kdetour/detours)"
check "rmmod" rmmod kdetour_test kdetour
text_is_whole "text after unloading"
finish
