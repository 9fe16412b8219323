# guest: cpus=4 kernels=6.1,6.12 timeout=300
# Pointers in read-only data of the kernel and of modules lead to detours and back, while every processor calls through them.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_test
echo 1 > /sys/module/kdetour/parameters/quiet
run pointer bad
run pointer chain
run pointer changed
run pointer inside
run failed 60
start_load
if [ -n "$kdetour_long" ]; then rounds=2000; else rounds=200; fi
run pointer toggle $rounds
stop_load
text_is_whole "text"

# The module that has the pointer goes first.
load_modules victim
run pointer victim
check "the list names it" grep -q 'call_ops .*Pointer .*attached kdetour_test' $D/kdetour/detours
check "call" sh -c "echo 1 > /sys/module/victim/parameters/call"
check "its bytes are told" grep -qE '^window 0x[0-9a-f]{16} [0-9a-f]{16} [0-9a-f]{16}$' $D/kdetour/patches
check "the pointer's module goes" rmmod victim
same "its detour went with it" 1 "$(wc -l < $D/kdetour/detours)"
run pointer victim-gone
same "nothing is attached" 1 "$(wc -l < $D/kdetour/detours)"
text_is_whole "text"
check "rmmod" rmmod kdetour_test kdetour
finish
