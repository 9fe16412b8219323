# guest: cpus=2 kernels=6.1,6.12 screen=vga timeout=600
# popup.ko over VGA text: real keys, the screen as it is seen from outside, and a machine that goes on as if nothing had been.
. /lib/kdetour.sh
P=$D/popup
figure() { awk -v name="$1" '$1 == name { print $2 }' $P/figures; }
# text NAME SHOT: whether the panel that was drawn last is in the picture
text() {
	cp $P/panel /tmp/panel
	echo "host: panel $2 $(head -n 1 /tmp/panel)"
	tail -n +2 /tmp/panel
	if host_answers > /tmp/answer; then ok "$1: $(cat /tmp/answer)"; else fail "$1: $(cat /tmp/answer)"; fi
}
shows() { if grep -q -- "$2" /tmp/panel; then ok "$1"; else fail "$1: nothing like $2"; cat /tmp/panel; fi; }
# outside NAME COMMANDS
outside() { n=$1; shift; check "$n" host "$@"; }
log_has() { check "$1" sh -c "dmesg | grep -q '$2'"; }

load_modules textsum kdetour video popup
deny "a second load is refused" insmod /modules/popup.ko
printf '\033[?25l\033[2J\033[H' > /dev/tty1
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do echo "line $i of what is on the screen, as long as the panel is wide or so" > /dev/tty1; done
# Keys that are pressed go where they always went.
cat /dev/tty1 > /tmp/typed &
typist=$!
start_load 2>/dev/null
outside "keys before" keys a
sleep 2
outside "the screen is taken" shot before

calls=$(awk '$1 == "LOC:" { print $2 }' /proc/interrupts)
outside "the panel comes and goes" keys ctrl-alt-k , unlike panel before , keys esc
same "it has been shown" 1 "$(figure opened)"
text "the panel's text is on the screen" panel
shows "the title" 'kdetour popup  *CPU [01], 1 more parked'
shows "the task" '^ task   .*, pid [0-9]*, in the '
shows "the registers" '^ r15    [0-9a-f]\{16\}  flags  [0-9a-f]\{16\}'
outside "the screen is as it was" shot after , same before after
# Not judged: the host may be busy.
echo "first pixel after $(figure first_pixel_ns) ns"
sleep 1
check "processors go on" test "$(awk '$1 == "LOC:" { print $2 }' /proc/interrupts)" -gt "$calls"
check "the load goes on" pidof dd

# Chosen, detoured, listed, released. On a busy machine it is the kernel that is interrupted; a program is tried again.
for i in 1 2 3 4 5 6 7 8; do
	outside "a function is chosen ($i)" keys ctrl-alt-k , unlike panel before , keys d , wait 300 , keys esc
	sleep 1
	dmesg | grep -q 'popup: detoured' && break
done
log_has "it is detoured" 'popup: detoured'
name=$(dmesg | sed -n 's/.*popup: detoured //p' | tail -n 1)
outside "the list" keys ctrl-alt-k , unlike panel before , keys tab , unlike list panel , keys esc
text "the list's text is on the screen" list
shows "it has $name" "^ $name  *jump .*popup  *[0-9]* calls"
shows "and others" '^ i8042_interrupt  *jump .* popup'
down=$(awk '/^ detour of/ { first = NR } / calls *$/ { print NR - first - 1; exit }' /tmp/panel)
steps=$(for i in $(seq "$down"); do printf 'keys down , wait 300 , '; done)
outside "it is released" keys ctrl-alt-k , unlike panel before , keys tab , unlike list panel , $steps keys r , wait 500 , keys esc
sleep 2
log_has "it is released, and was called" "popup: released $name after [1-9]"

# A hotkey that is held down repeats itself: one panel, which the next press closes.
opened=$(figure opened)
outside "the hotkey is held down" press ctrl , press alt , press k , unlike held before , press k , press k , press k , press k , release k , press k , wait 300 , release k , release alt , release ctrl
same "one panel" $((opened + 1)) "$(figure opened)"
outside "pixels are as they were" shot after , same before after
opened=$(figure opened)
outside "esc closes, and the held key repeats itself" press ctrl , press alt , press k , unlike held before , keys esc , wait 1000 , press k , press k , press k , press k , press k , press k , press k , press k , press k , release k , release alt , release ctrl
sleep 1
same "no second panel" $((opened + 1)) "$(figure opened)"
log_has "and the log says why" 'the hotkey is held down'

# Not stop_load, which would wait for the typist, too.
killall dd
outside "keys after" keys b , wait 300 , keys ret
sleep 1
kill $typist
same "what was typed has come, and nothing else" ab "$(tr -cd 'a-z' < /tmp/typed)"

# A screen that it cannot draw on.
refused=$(figure refused)
check "a framebuffer comes" insmod /modules/frame.ko
check "with a palette" setmode 640 480 8
outside "the hotkey" keys ctrl-alt-k
sleep 2
same "nothing is shown" $((refused + 1)) "$(figure refused)"
log_has "the log says what to do" 'popup: not shown: .*set a mode of 16, 24 or 32 bits'
check "too small a mode" setmode 320 200 32
outside "the hotkey again" keys ctrl-alt-k
sleep 2
same "nothing is shown there" $((refused + 2)) "$(figure refused)"
log_has "too small" 'popup: not shown: the screen is too small'
# 24 bits, in memory: what was drawn has to be away again.
check "24 bits" setmode 800 600 24
opened=$(figure opened)
cp /dev/fb0 /tmp/pixels
outside "a panel that only the guest sees" keys ctrl-alt-k , wait 3000 , keys esc
sleep 1
same "it has been drawn" $((opened + 1)) "$(figure opened)"
same "so much was compared" 1440000 "$(head -c 1440000 /dev/fb0 | cmp -n 1440000 - /tmp/pixels && head -c 1440000 /tmp/pixels | wc -c)"
echo 0 > /sys/class/vtconsole/vtcon1/bind 2>/dev/null
check "the framebuffer goes" rmmod frame

check "rmmod" rmmod popup video kdetour
text_is_whole "text after popup"
finish
