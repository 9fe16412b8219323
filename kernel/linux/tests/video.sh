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
# heard, unheard NAME: the reader that sleeps in the device has got something since it was asked last, or nothing
unheard() { sleep 1; same "$1" "" "$(cat /tmp/heard)"; }
heard() { for i in 1 2 3 4 5 6 7 8 9 10; do [ -s /tmp/heard ] && break; sleep 0.2; done; check "$1" test -s /tmp/heard; : > /tmp/heard; }

load_modules textsum kdetour video
becomes "text is told" "text vgacon 80x25x16"
same "where it is" 0xb8000 "$(field base)"
deny "a second load is refused" insmod /modules/video.ko
same "its device is root's" 400 "$(stat -c %a $V)"

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
heard "a reader hears of that, too"
check "the same mode is set" setmode 640 400 24
unheard "that is no change"
check "a palette is set" setmode 640 480 8
becomes "a palette is no known format" "unknown frame 640x480x8"
deny "a mode that the driver refuses is not set" setmode 9000 9000 32
becomes "and the old one is told" "unknown frame 640x480x8"
heard "a reader has heard of the palette"
deny "it is refused again" setmode 9000 9000 32
unheard "and tells nobody anything"
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

# Two tasks that read by one open file: each line is read by one of them.
exec 3< $V
deny "a line is read whole" dd bs=10 count=1 <&3
check "or not at all" sh -c "dd bs=256 count=1 <&3 2>/dev/null | grep -q '^[0-9]* text '"
dd bs=256 count=1 <&3 >> /tmp/both 2>/dev/null &
dd bs=256 count=1 <&3 >> /tmp/both 2>/dev/null &
sleep 0.5
check "the width is set" stty -F /dev/tty1 cols 40
sleep 1
same "one of two has a line" 1 "$(wc -l < /tmp/both)"
check "the width is set back" stty -F /dev/tty1 cols 80
sleep 1
same "then the other" 2 "$(wc -l < /tmp/both)"
exec 3<&-

# Subscribers in the kernel.
load_modules hearer
H=/sys/module/hearer/parameters
hear() { echo "$*" > $H/do; cat $H/result; }
calls() { cut -d, -f$(($1 + 1)) $H/calls; }
columns=80
changes() { columns=$((120 - columns)); stty -F /dev/tty1 cols $columns; sleep 0.5; }
same "one subscribes" 0 "$(hear sub 0 plain)"
same "and cannot twice" -17 "$(hear sub 0 plain)"
changes
same "it was told at first and then" 2 "$(calls 0)"
same "one that does not subscribe leaves" 0 "$(hear unsub 9)"
same "it leaves" 0 "$(hear unsub 0)"
same "and again" 0 "$(hear unsub 0)"
changes
same "it is not told any more" 2 "$(calls 0)"
same "one that will leave when it is told" 0 "$(hear sub 1 leave)"
same "one behind it" 0 "$(hear sub 2 plain)"
changes
changes
same "the first has left" 2 "$(calls 1)"
same "the other one has heard of both" 3 "$(calls 2)"
same "one that will have others leave and come" 0 "$(hear sub 3 swap)"
same "it is the next that will leave" 0 "$(hear sub 4 plain)"
changes
same "others came" 0 "$(cat $H/result)"
same "who left was not told" 1 "$(calls 4)"
same "who came was told once" 1 "$(calls 5)"
same "one that sleeps" 0 "$(hear sub 6 sleep)"
columns=$((120 - columns)); stty -F /dev/tty1 cols $columns
for i in 1 2 3 4 5 6 7 8 9 10; do [ "$(calls 6)" = 2 ] && break; sleep 0.1; done
same "nobody is in it when it has left" 0 "$(hear unsub 6)"
same "it was told" 2 "$(calls 6)"
(while :; do stty -F /dev/tty1 cols 40; stty -F /dev/tty1 cols 80; done) &
changing=$!
same "they come and go while modes change" 0 "$(hear churn 7 20000)"
kill $changing
wait $changing 2>/dev/null
check "they go" rmmod hearer
load_modules hearer
for i in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do same "subscriber $i" 0 "$(hear sub $i plain)"; done
same "the 17th" -28 "$(hear sub 16 plain)"
deny "nor has a reader a place" sh -c "exec 3<$V"
same "one goes" 0 "$(hear unsub 3)"
same "there is a place" 0 "$(hear sub 16 plain)"
deny "video stays while they are there" rmmod video
check "they all go" rmmod hearer

# Sixteen have the device open; the next one has no place.
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 1000 < $V & done
sleep 1
deny "the 17th subscriber is refused" sh -c "exec 3<$V"
check "and told what to do" sh -c "dmesg | grep -q '16 subscribers are the most: close'"
deny "video stays while it is read" rmmod video
killall sleep
sleep 1
load_modules video_panel calls
deny "popup.ko does without a keyboard" insmod /modules/popup.ko
check "the log says what it needs" sh -c "dmesg | grep -q 'popup: there is no PS/2 keyboard'"
check "there is room again" sh -c "exec 3<$V"
check "rmmod" rmmod calls video_panel video kdetour
text_is_whole "text after video"
finish
