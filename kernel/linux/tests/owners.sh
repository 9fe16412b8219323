# guest: cpus=2 append="maxcpus=1" kernels=6.1,6.12 timeout=200
# Bytes that belong to others, and places that the kernel comes to in its own ways, at the start of a function. One
# processor of two, since only then the kernel keeps book of lock prefixes.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_test
run owners
text_is_whole "text"
check "rmmod" rmmod kdetour_test kdetour
finish
