# What `cargo xtask demo popup` shows: the panel over a framebuffer, on a machine under load. Lines `step TEXT`, `tell TEXT`, demo.KEY=VALUE.
. /lib/kdetour.sh
P=$D/popup
echo "step load kdetour.ko, kdetour_words.ko, video.ko, video_panel.ko, calls.ko and popup.ko"
for module in textsum kdetour kdetour_words video video_panel calls popup; do insmod /modules/$module.ko || exit 1; done
printf '\033[?25l\033[2J\033[H' > /dev/tty1
cat /proc/cpuinfo > /dev/tty1
echo "step load every processor"
start_load 2>/dev/null
sleep 2
host shot popup-before || exit 1
echo "step Ctrl+Alt+K, tab, Esc"
host keys ctrl-alt-k , unlike popup popup-before , keys tab , unlike popup-list popup , keys tab , unlike popup popup-list , keys esc || exit 1
sed -n '2,$s/^/tell /p' $P/panel
echo "tell the first pixel came $(awk '$1 == "first_pixel_ns" { printf "%.1f", $2 / 1000000 }' $P/figures) ms after the interrupt"
sleep 1
echo "step compare the screen with what it was"
host shot popup-after , same popup-before popup-after || exit 1
echo "tell afterwards every pixel is as it was"
stop_load 2>/dev/null
rmmod popup calls video_panel video kdetour_words kdetour || exit 1
echo "step compare the whole kernel text"
cat $D/textsum > /tmp/sum
if grep -q ' changed 0 ' /tmp/sum; then echo "demo.restored=1"; else echo "demo.restored=0"; fi
