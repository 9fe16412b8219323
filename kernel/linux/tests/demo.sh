# What `cargo xtask demo` shows: hello.ko on a kernel under load. Lines demo.KEY=VALUE, and `step TEXT`.
. /lib/kdetour.sh
S=vfs_read
# survey KEY: a line of the survey of the function
survey() { echo $S > $D/kdetour/survey; awk -v key="$1" '$1 == key { $1 = ""; sub(/^ /, ""); print; exit }' $D/kdetour/survey; }
# patch KEY N: field N of the function's patch
patch() { awk -v key="$1" -v n="$2" '$1 == "target" { mine = $3 == "'$S'" } mine && $1 == key { print $n; exit }' $D/kdetour/patches; }
reads() { cat /sys/module/hello/parameters/reads; }

echo "step load kdetour.ko"
insmod /modules/textsum.ko || exit 1
insmod /modules/kdetour.ko || exit 1
echo "demo.release=$(uname -r)"
echo "demo.cpus=$(nproc)"
echo "demo.symbol=$S"
echo "demo.target=$(survey target)"
echo "demo.length=$(survey length)"
echo "demo.before=$(survey bytes)"
echo "demo.window_address=$(survey window | cut -d' ' -f1)"
echo "demo.window_len=$(survey window | cut -d' ' -f2)"
echo "demo.version_before=$(cat /proc/version)"

echo "step load every processor"
start_load

echo "step attach: insmod hello.ko"
start=$(cut -d' ' -f1 /proc/uptime)
insmod /modules/hello.ko || exit 1
echo "demo.shape=$(awk '$2 == "'$S'" { print $3 }' $D/kdetour/detours)"
echo "demo.protocol=$(awk '$2 == "'$S'" { print $4 }' $D/kdetour/detours)"
echo "demo.displaced=$(patch window 3)"
echo "demo.slot=$(patch slot 2)"
echo "demo.slot_bytes=$(patch slot 3)"
echo "demo.trampoline=$(patch slot 2)"
echo "demo.detour=$(patch detour 2)"
echo "demo.detour_symbol=$(patch detour 3)"
echo "demo.during=$(survey bytes)"
echo "demo.version_during=$(tr '\n' ' ' < /proc/version)"

echo "step count calls"
sleep 2
echo "demo.calls=$(reads)"

echo "step detach: rmmod hello, under load"
rmmod hello || exit 1
end=$(cut -d' ' -f1 /proc/uptime)
echo "demo.load_seconds=$(awk "BEGIN { print $end - $start }")"
stop_load 2>/dev/null
echo "demo.version_after=$(cat /proc/version)"
echo "demo.after=$(survey bytes)"
rmmod kdetour || exit 1

echo "step compare the whole kernel text"
cat $D/textsum > /tmp/sum
echo "demo.text_bytes=$(awk '$1 == "bytes" { print $2 }' /tmp/sum)"
echo "demo.own_sites=$(awk '$1 == "bytes" { print $4 }' /tmp/sum)"
if grep -q ' changed 0 ' /tmp/sum; then echo "demo.restored=1"; else echo "demo.restored=0"; fi
