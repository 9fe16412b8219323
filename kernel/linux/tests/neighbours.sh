# guest: cpus=2 kernels=6.1,6.12 timeout=300
# Kprobes, kretprobes, ftrace, live patches and fprobes on the function that is detoured, in each order of coming and leaving.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_test
echo 1 > /sys/module/kdetour/parameters/quiet
run neighbours
text_is_whole "text after neighbours"

# BPF programs at the entry, at the return and by a kprobe. with WANTED COMMAND...: they are there while the commands run.
with() {
	wanted=$1
	shift
	bpf int_sqrt ". /lib/kdetour.sh; $*" > /tmp/bpf 2>&1
	grep -E '^(ok|FAIL)' /tmp/bpf
	same "bpf: $*" "fentry $wanted fexit $wanted kprobe $wanted" "$(tail -n 1 /tmp/bpf)"
}
with 100 "run bpf attach; run bpf there"
run bpf there
run bpf detach
with 200 "run bpf attach; run bpf there; run bpf detach; run bpf gone"
run bpf attach
with 100 "run bpf there"
run bpf there
with 200 "run bpf there; run bpf detach; run bpf gone"
run bpf gone
text_is_whole "text after BPF"
check "rmmod" rmmod kdetour_test kdetour
finish
