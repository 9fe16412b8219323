# Helpers of the scripts that run in the guest. Lines `ok NAME` and `FAIL NAME: why` are what a suite is judged by.
D=/sys/kernel/debug
T=/sys/kernel/tracing
failed=0

ok() { echo "ok $*"; }
fail() { echo "FAIL $*"; failed=1; }
# check NAME COMMAND...: the command must succeed
check() { n=$1; shift; if "$@" >/tmp/check 2>&1; then ok "$n"; else fail "$n: $* gave $?: $(tail -n 1 /tmp/check)"; fi; }
# deny NAME COMMAND...: the command must fail
deny() { n=$1; shift; if "$@" >/tmp/check 2>&1; then fail "$n: $* succeeded"; else ok "$n"; fi; }
# same NAME WANTED FOUND
same() { if [ "$2" = "$3" ]; then ok "$1"; else fail "$1: wanted '$2', found '$3'"; fi; }

# run TEST ARGUMENT...: a test of kdetour_test.ko
run() { echo "$*" > $D/kdetour_test; cat $D/kdetour_test > /tmp/lines; cat /tmp/lines; if grep -q ^FAIL /tmp/lines; then failed=1; fi; }

# What is loaded already stays: textsum.ko compares with what it saw first.
load_modules() { for m in "$@"; do grep -q "^$m " /proc/modules || check "insmod $m" insmod /modules/$m.ko; done; }

is_real_time() { uname -v | grep -q PREEMPT_RT; }

# The whole kernel text, as it was when textsum.ko was loaded.
text_is_whole() {
	cat $D/textsum > /tmp/sum
	if grep -q ' changed 0 ' /tmp/sum; then ok "$1: $(tail -n 1 /tmp/sum)"; else fail "$1: $(head -n 4 /tmp/sum | tr '\n' ';')"; fi
}

# Keeps every processor in vfs_read and vfs_write: a pipe for each, whose ends also sleep in them.
start_load() {
	for i in $(seq "$(nproc)"); do
		dd if=/dev/zero bs=512 2>/dev/null | dd of=/dev/null bs=512 2>/dev/null &
	done
}
stop_load() { killall dd; wait; }

# host COMMAND...: what the outside does with screen and keys (xtask/src/guest/screen.rs); fails, and prints why
host() { echo "host: $*" > /dev/ttyS1; host_answers; }
host_answers() { read -r answer < /dev/ttyS1; echo "$answer"; case "$answer" in ok*) ;; *) return 1 ;; esac; }

finish() { exit $failed; }
