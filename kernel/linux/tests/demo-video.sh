# What `cargo xtask demo video` shows: modes that come and go. Lines `step TEXT`, `tell TEXT`, demo.KEY=VALUE.
. /lib/kdetour.sh
echo "step load kdetour.ko and video.ko"
for module in textsum kdetour video; do insmod /modules/$module.ko || exit 1; done
cat /dev/kdetour_video > /tmp/modes &
reader=$!
sleep 1
host shot video || exit 1
echo "step 40 columns of text, and 80 again"
stty -F /dev/tty1 cols 40
sleep 1
printf '\033[?25l\033[2J\033[Hcat /dev/kdetour_video\n' > /dev/tty1
cat /tmp/modes > /dev/tty1
host shot video-narrow || exit 1
stty -F /dev/tty1 cols 80
sleep 1
echo "step a framebuffer comes, changes its mode, and goes"
insmod /modules/frame.ko || exit 1
sleep 1
setmode 640 480 16 > /dev/null || exit 1
sleep 1
setmode 1024 768 32 > /dev/null || exit 1
sleep 1
echo 0 > /sys/class/vtconsole/vtcon1/bind 2>/dev/null
rmmod frame || exit 1
sleep 1
kill $reader
echo "tell what somebody read who had /dev/kdetour_video open:"
sed 's/^/tell /' /tmp/modes
sleep 1
rmmod video kdetour || exit 1
echo "step compare the whole kernel text"
cat $D/textsum > /tmp/sum
if grep -q ' changed 0 ' /tmp/sum; then echo "demo.restored=1"; else echo "demo.restored=0"; fi
