# guest: cpus=2 kernels=6.12 screen=efi timeout=400
# popup.ko over a linear framebuffer, the firmware's: what is drawn in pixels, and that they are as they were.
. /lib/kdetour.sh
P=$D/popup
figure() { awk -v name="$1" '$1 == name { print $2 }' $P/figures; }
outside() { n=$1; shift; check "$n" host "$@"; }

load_modules textsum kdetour video video_panel calls popup
what=$(dd if=/dev/kdetour_video bs=256 count=1 2>/dev/null)
check "video knows it: $what" test "$(echo "$what" | awk '{ print $2, $3 }')" = "pixels EFI_VGA"
deny "its address is known" sh -c "echo '$what' | grep -q base=0x0"
printf '\033[?25l\033[2J\033[H' > /dev/tty1
seq 100 199 | tr '\n' ' ' > /dev/tty1
cat /proc/cpuinfo > /dev/tty1
start_load 2>/dev/null
sleep 1
outside "the screen is taken" shot before
outside "the panel comes and goes" keys ctrl-alt-k , unlike panel before , keys tab , unlike list panel , keys tab , unlike panel list , keys esc
same "it has been shown" 1 "$(figure opened)"
cp $P/panel /tmp/panel
echo "host: panel panel $(head -n 1 /tmp/panel)"
tail -n +2 /tmp/panel
check "its text is on the screen" host_answers
check "the title" grep -q 'kdetour popup  *CPU [01], 1 more parked' /tmp/panel
check "the registers" grep -q '^ r15    [0-9a-f]\{16\}  flags  [0-9a-f]\{16\}' /tmp/panel
check "without kdetour_words.ko, instructions by their bytes" grep -q '^ > [0-9a-f]\{16\}  [0-9a-f]\{2,30\} ' /tmp/panel
outside "every pixel is as it was" shot after , same before after
# Not judged: the host may be busy.
echo "first pixel after $(figure first_pixel_ns) ns"
stop_load 2>/dev/null
check "rmmod" rmmod popup calls video_panel video kdetour
text_is_whole "text after popup"
finish
