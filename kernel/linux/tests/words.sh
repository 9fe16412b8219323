# guest: cpus=2 kernels=6.1,6.12 timeout=200
# kdetour_words.ko: instructions in words, for tasks and interrupts on all processors. calls.ko, for modules.
. /lib/kdetour.sh
# By itself, and again: what it allocated is given back.
load_modules textsum
used() { awk '$1 == "VmallocUsed:" { print $2 }' /proc/meminfo; }
check "it comes" insmod /modules/kdetour_words.ko
check "and goes" rmmod kdetour_words
before=$(used)
for i in 1 2 3 4 5 6 7 8; do insmod /modules/kdetour_words.ko && rmmod kdetour_words || fail "it comes and goes $i times"; done
sleep 1
[ $(($(used) - before)) -lt 448 ] && ok "nothing is left behind" || fail "$(($(used) - before)) KiB are left behind"
load_modules kdetour kdetour_test
echo words > $D/kdetour_test
check "whoever can do without it is told" grep -q 'FAIL words: kdetour_words.ko is there' $D/kdetour_test
load_modules kdetour_words
start_load
run words
stop_load
run tell $(awk '$3 == "vfs_read" { print $1 }' /proc/kallsyms)
load_modules calls
run calls
check "rmmod" rmmod kdetour_test calls kdetour kdetour_words
text_is_whole "text"
finish
