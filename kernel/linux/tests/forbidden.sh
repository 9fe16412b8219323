# guest: cpus=2 extent=long kernels=6.1,6.12,6.1-rt,6.12-rt timeout=300
# What a breakpoint needs on its way is refused, all of it; and once the kernel is locked down, every attach is.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_test
echo 1 > /sys/module/kdetour/parameters/quiet

# All that kprobes refuse. Of modules only what is no code of kdetour's, which is refused anyway.
awk '{ split($1, range, "-"); print range[1] }' $D/kprobes/blacklist | sort -u > /tmp/blacklist
# Functions in the sections that hold entry code and code where nothing may be instrumented.
functions_between() {
	awk -v first="$1" -v last="$2" '
		$3 == first { low = $1 } $3 == last { high = $1 }
		$2 ~ /^[tTwW]$/ && NF == 3 { address[NR] = $1; name[NR] = $3 }
		END { for (i in address) if (address[i] >= low && address[i] < high) print address[i] }
	' /proc/kallsyms | sort -u
}
functions_between __noinstr_text_start __noinstr_text_end > /tmp/noinstr
functions_between __entry_text_start __entry_text_end > /tmp/entry
for list in blacklist noinstr entry; do
	check "$list has functions" [ "$(wc -l < /tmp/$list)" -gt 50 ]
	run forbidden $list $(cat /tmp/$list)
done

# What really runs between the trap and our hook, as far as the function tracer sees it.
echo 0 > $T/tracing_on
echo function > $T/current_tracer
echo 1 > $T/tracing_on
run path
echo 0 > $T/tracing_on
# Processor by processor: what others do meanwhile is in between otherwise.
cat $T/per_cpu/cpu*/trace | sed -n '/: test_path_begin /,/: test_path_end /s/.*: \([a-zA-Z0-9_.]*\) <-.*/\1/p' |
	grep -v '^test_path_' | sort -u > /tmp/path
echo nop > $T/current_tracer
echo "on the way: $(tr '\n' ' ' < /tmp/path)"
check "the tracer saw the way" grep -q '^__rcu_read_lock$' /tmp/path
check "the other notifiers too" grep -q '^hw_breakpoint_exceptions_notify$' /tmp/path
run forbidden path $(awk 'FILENAME == "/tmp/path" { wanted[$1] = 1; next } $3 in wanted && NF == 3 { print $1 }' /tmp/path /proc/kallsyms)
text_is_whole "text"

# Locked down while it runs. Files of debugfs that can be written are not opened any more then.
exec 8<>$D/kdetour_test
locked() { echo "$*" >&8; cat <&8 > /tmp/lines; cat /tmp/lines; if grep -q ^FAIL /tmp/lines; then failed=1; fi; }
mount -t securityfs securityfs /sys/kernel/security
locked changed attach
locked plan hold
check "lock down" sh -c 'echo confidentiality > /sys/kernel/security/lockdown'
locked lockdown
locked plan locked
check "vfs_llseek is still detoured" grep -q "vfs_llseek .*attached" $D/kdetour/detours
deny "a module that nobody signed" insmod /modules/hello.ko
locked changed detach
same "nothing is attached" 1 "$(wc -l < $D/kdetour/detours)"
text_is_whole "text of a locked kernel"
exec 8>&-
check "rmmod" rmmod kdetour_test kdetour
text_is_whole "text after unloading"
finish
