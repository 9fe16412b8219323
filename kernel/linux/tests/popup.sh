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

load_modules textsum kdetour kdetour_words video video_panel calls
# What is no key, or cannot be pressed together with Ctrl and Alt.
for code in 0 0x1d 0x38 0xa5; do
	dmesg -c > /dev/null
	deny "key=$code" insmod /modules/popup.ko key=$code
	log_has "key=$code: the log says what to do" 'popup: key=.* is not the scan code of a key .*, as in key=0x25'
done
load_modules popup
deny "kdetour_words.ko stays while it is used" rmmod kdetour_words
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

# The code around, in words. On a busy machine it is the kernel that is interrupted; a program is tried again.
load_modules kdetour_test
for i in 1 2 3 4 5 6 7 8; do
	outside "the code is looked at ($i)" keys ctrl-alt-k , unlike panel before , keys esc
	tail -n +2 $P/panel > /tmp/panel
	shows "what was interrupted, in words" '^ > [0-9a-f]\{16\}  [a-z][a-z0-9]*\( .*\|\)$'
	grep -q 'in the kernel' /tmp/panel && break
done
# What is told of the same instruction without a panel. Addresses have names there.
plain() { sed 's/[A-Za-z0-9_.]*+0x[0-9a-f]*\/0x[0-9a-f]*\( \[[a-z0-9_]*\]\)*/@/; s/0x[0-9a-f]\{9,16\}/@/'; }
sed -n '12,16s/^ [> ] //p' /tmp/panel > /tmp/code
while read -r at words; do
	echo "tell $at" > $D/kdetour_test
	told=$(sed -n "s/^ok words: told $at [0-9a-f]* //p" $D/kdetour_test)
	same "it is told at $at: $words" "$(echo "$told" | plain)" "$(echo "$words" | plain)"
done < /tmp/code
same "as many instructions" 5 "$(wc -l < /tmp/code)"
rmmod kdetour_test

# Chosen, detoured, listed, released. On a busy machine it is the kernel that is interrupted; a program is tried again.
for i in 1 2 3 4 5 6 7 8; do
	outside "a function is chosen ($i)" keys ctrl-alt-k , unlike panel before , keys d , wait 300 , keys esc
	sleep 1
	dmesg | grep -q 'calls: detoured' && break
done
log_has "it is detoured" 'calls: detoured'
name=$(dmesg | sed -n 's/.*calls: detoured //p' | tail -n 1)
outside "the list" keys ctrl-alt-k , unlike panel before , keys tab , unlike list panel , keys esc
text "the list's text is on the screen" list
shows "it has $name" "^ $name  *jump .*calls  *[0-9]* calls"
shows "and others" '^ i8042_interrupt  *jump .* popup'
down=$(awk '/^ detour of/ { first = NR } / calls *$/ { print NR - first - 1; exit }' /tmp/panel)
steps=$(for i in $(seq "$down"); do printf 'keys down , wait 300 , '; done)
outside "it is released" keys ctrl-alt-k , unlike panel before , keys tab , unlike list panel , $steps keys r , wait 500 , keys esc
sleep 2
log_has "it is released, and was called" "calls: released $name after [1-9]"

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

# Pause is bytes that no other key has: the kernel gets none of them.
kept=$(figure kept)
outside "pause" keys ctrl-alt-k , unlike panel before , keys pause , wait 300 , keys esc , wait 300
sleep 1
same "Ctrl and Alt are released, and that is all" $((kept + 2)) "$(figure kept)"
# Not stop_load, which would wait for the typist, too.
killall dd
outside "keys after" keys b , wait 300 , keys ret
sleep 1
kill $typist
same "what was typed has come, and nothing else" ab "$(tr -cd 'a-z' < /tmp/typed)"

# What the mouse sends while the panel is there is handed on afterwards: every byte, in order.
B=/sys/module/rodent/parameters/bytes
# How far to the right, how often a button changed, packets of three bytes that do not begin as one has to, bytes of one that is not whole
moved() { awk '{ for (i = 2; i <= NF; i++) { if (i % 3 == 2) { bad += int($i / 8) % 2 != 1; turns += $i % 8 != last; last = $i % 8 } if (i % 3 == 0) x += $i } print x + 0, turns + 0, bad + 0, (NF - 1) % 3 }' $B; }
load_modules rodent
sleep 1
same "the mouse is on" "0 0 0 0" "$(moved)"
outside "the mouse without a panel" move 5 0 , wait 100 , hold left , wait 100 , move 7 0 , wait 100 , let left , wait 300
sleep 1
same "the mouse has been heard" "12 2 0 0" "$(moved)"
# Its bytes are no keys, even if they look like Ctrl, Alt, and K.
opened=$(figure opened)
outside "the mouse moves by 29, 56 and 37" move 29 0 , wait 100 , move 56 0 , wait 100 , move 37 0 , wait 500 , keys esc
sleep 1
same "that is no hotkey" "134 2 0 0 $opened" "$(moved) $(figure opened)"
kept=$(figure kept)
outside "the mouse while the panel is there" shot idle , keys ctrl-alt-k , unlike panel idle , hold left , move 11 0 , wait 50 , move 12 0 , wait 50 , move 13 0 , wait 50 , let left , wait 1000 , keys esc , wait 300
sleep 1
same "and nothing of it is lost" "170 4 0 0" "$(moved)"
[ "$(figure kept)" -ge $((kept + 15)) ] && ok "$(($(figure kept) - kept)) bytes were kept" || fail "$(($(figure kept) - kept)) bytes were kept"
check "rmmod rodent" rmmod rodent

# A function of a module is detoured, once, and then the module goes.
load_modules busy
echo 1 > /proc/irq/1/smp_affinity
check "a function that is always found" sh -c "echo 1 > /sys/module/busy/parameters/spin"
# On a busy machine it is what a timer has begun that is interrupted: it is tried again.
for i in 1 2 3 4 5 6 7 8; do
	outside "it is chosen ($i)" keys ctrl-alt-k , unlike panel idle , keys d , wait 300 , keys esc
	sleep 2
	dmesg | grep -q 'calls: busy_work.* is detoured already' && break
done
log_has "it is detoured" 'calls: detoured busy_work'
log_has "and not a second time" 'calls: busy_work.* is detoured already'
sleep 2
made=$(figure detours)
check "its module goes" rmmod busy
sleep 3
same "and the detour with it" $((made - 1)) "$(figure detours)"

# A processor that has its interrupts off cannot park.
load_modules busy
opened=$(figure opened)
refused=$(figure refused)
host wait 1500 , keys ctrl-alt-k , wait 6000 , keys esc > /tmp/pressed &
presser=$!
sleep 0.5
echo 5000 > /sys/module/busy/parameters/off
wait $presser
sleep 1
same "it is not waited for" "$opened $((refused + 1))" "$(figure opened) $(figure refused)"
log_has "the log says so" 'popup: not shown: a processor did not park in time'
outside "later there is a panel" shot idle , keys ctrl-alt-k , unlike panel idle , keys esc , wait 300 , shot after , same idle after
same "it has been shown" $((opened + 1)) "$(figure opened)"
check "rmmod busy" rmmod busy

# It goes and comes while the keys are pressed, with a detour of its own.
host $(for i in 1 2 3 4 5 6 7 8 9 10 11 12; do printf 'keys ctrl-alt-k , wait 150 , keys d , wait 50 , keys esc , wait 250 , '; done) wait 1 > /tmp/pressed &
presser=$!
for i in 1 2 3 4; do
	check "rmmod while keys are pressed ($i)" rmmod popup
	check "insmod while keys are pressed ($i)" insmod /modules/popup.ko
done
wait $presser
# QEMU has them in a queue.
sleep 3
echo "of the last one: $(tr '\n' ' ' < $P/figures)"
deny "it forgets nothing" sh -c "dmesg | grep 'popup goes: detached'"

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

check "rmmod" rmmod popup calls video_panel video kdetour_words kdetour
text_is_whole "text after popup"
finish
