# guest: cpus=2 append="i8042.nokbd" kernels=6.1,6.12 screen=vga timeout=300
# video.ko knows the screen, and of each change of its mode: VGA text, and a framebuffer that comes, changes and goes. There is no
# keyboard, so popup.ko is refused.
. /lib/kdetour.sh
V=/dev/kdetour_video
mode() { dd if=$V bs=256 count=1 2>/dev/null; }
# field NAME: of the mode as it is now
field() { mode | tr ' ' '\n' | awk -F= -v name="$1" '$1 == name { print $2 }'; }
# what it is: kind, driver, width x height x bits
what() { mode | awk '{ split($7, w, "="); split($8, h, "="); split($9, b, "="); print $2, $3, w[2] "x" h[2] "x" b[2] }'; }
# becomes NAME WANTED: soon, since subscribers are told by a task
becomes() { for i in 1 2 3 4 5 6 7 8 9 10; do [ "$(what)" = "$2" ] && break; sleep 0.2; done; same "$1" "$2" "$(what)"; }
# heard NAME: the reader that sleeps in the device has got something since it was asked last
heard() { for i in 1 2 3 4 5 6 7 8 9 10; do [ -s /tmp/heard ] && break; sleep 0.2; done; check "$1" test -s /tmp/heard; : > /tmp/heard; }

load_modules textsum kdetour video
becomes "text is told" "text vgacon 80x25x16"
same "where it is" 0xb8000 "$(field base)"
deny "a second load is refused" insmod /modules/video.ko

cat $V >> /tmp/heard &
reader=$!
heard "a reader is told what there is"
check "the console's width is set" stty -F /dev/tty1 cols 40
becomes "another width of text is noticed" "text vgacon 40x25x16"
heard "a reader hears of it"
check "it is set back" stty -F /dev/tty1 cols 80
becomes "and set back" "text vgacon 80x25x16"
heard "a reader hears of that"

check "a framebuffer comes" insmod /modules/frame.ko
becomes "it is noticed" "pixels frame 800x600x32"
heard "a reader hears of the framebuffer"
same "its rows" 3200 "$(field pitch)"
same "its size" $((3200 * 600)) "$(field size)"
same "its colours" "16:8 8:8 0:8" "$(field red) $(field green) $(field blue)"
check "its mode is set" setmode 640 480 16
becomes "16 bits are noticed" "pixels frame 640x480x16"
heard "a reader hears of the mode"
same "the colours of 16 bits" "11:5 5:6 0:5" "$(field red) $(field green) $(field blue)"
check "24 bits are set" setmode 640 400 24
becomes "24 bits are noticed" "pixels frame 640x400x24"
check "a palette is set" setmode 640 480 8
becomes "a palette is no known format" "unknown frame 640x480x8"
deny "a mode that the driver refuses is not set" setmode 9000 9000 32
becomes "and the old one is told" "unknown frame 640x480x8"
check "32 bits are set again" setmode 1024 768 32
becomes "32 bits are noticed again" "pixels frame 1024x768x32"

# The text console comes back when the framebuffer goes, where the kernel has it come back.
echo 0 > /sys/class/vtconsole/vtcon1/bind 2>/dev/null
check "the framebuffer goes" rmmod frame
for i in 1 2 3 4 5 6 7 8 9 10; do case "$(what)" in *frame*) sleep 0.2 ;; *) break ;; esac; done
case "$(what)" in *frame*) fail "it has gone: $(what)" ;; *) ok "it has gone: $(what)" ;; esac

check "a framebuffer with a shadow comes" insmod /modules/frame.ko shadow=1
becomes "it is told" "pixels frame 800x600x32"
same "and nothing of where it is" 0x0 "$(field base)"
echo 0 > /sys/class/vtconsole/vtcon1/bind 2>/dev/null
check "it goes" rmmod frame
kill $reader

# Sixteen have the device open; the next one has no place.
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 1000 < $V & done
sleep 1
deny "the 17th subscriber is refused" sh -c "exec 3<$V"
check "and told what to do" sh -c "dmesg | grep -q '16 subscribers are the most: close'"
deny "video stays while it is read" rmmod video
killall sleep
sleep 1
deny "popup.ko does without a keyboard" insmod /modules/popup.ko
check "the log says what it needs" sh -c "dmesg | grep -q 'popup: there is no PS/2 keyboard'"
check "there is room again" sh -c "exec 3<$V"
check "rmmod" rmmod video kdetour
text_is_whole "text after video"
finish
