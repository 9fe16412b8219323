# guest: cpus=2 kernels=6.1,6.12 extent=all modules=dist timeout=200
# The modules that were built from the archive of `cargo xtask dist`, without Rust.
. /lib/kdetour.sh
same "the archive's modules are here, and what compares the text" "calls.ko hello.ko kdetour.ko kdetour_room.ko kdetour_words.ko popup.ko stackgrow.ko static_trampoline.ko textsum.ko video.ko video_drm.ko video_panel.ko" "$(echo $(ls /modules))"
load_modules textsum kdetour_words
check "kdetour_words.ko needs nobody, and goes" rmmod kdetour_words
load_modules kdetour
reads() { cat /sys/module/hello/parameters/reads; }
start_load
load_modules hello
check "the list names the detour" grep -q 'vfs_read .*Live.*attached.*hello' $D/kdetour/detours
check "detour of /proc/version" grep -q detoured /proc/version
before=$(reads); dd if=/dev/zero of=/dev/null bs=1 count=100 2>/dev/null; after=$(reads)
[ $((after - before)) -ge 100 ] && ok "calls are counted" || fail "calls: $before, then $after"
deny "kdetour.ko stays while it is used" rmmod kdetour
check "rmmod hello" rmmod hello
stop_load
deny "no line of ours" grep -q detoured /proc/version
text_is_whole "text"
check "rmmod kdetour" rmmod kdetour
text_is_whole "text after unloading"
finish
