# guest: cpus=4 kernels=6.1,6.12 timeout=1100
# vfs_read and vfs_write attached and detached 1,000 times under load, by both protocols.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_test
echo 1 > /sys/module/kdetour/parameters/quiet
start_load
run toggle live 1000
text_is_whole "text after live"
run toggle rendezvous 1000
text_is_whole "text after rendezvous"
stop_load
same "nothing is attached" 1 "$(wc -l < $D/kdetour/detours)"
check "rmmod" rmmod kdetour_test kdetour
text_is_whole "text after unloading"
finish
