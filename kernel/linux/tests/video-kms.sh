# guest: cpus=2 kernels=6.1-rt long-kernels=6.12-rt screen=vga drivers=drm,drm_kms_helper,ttm,drm_ttm_helper,drm_vram_helper,bochs timeout=600
# video.ko with video_drm.ko hears of modes that a program sets by DRM's own interface, one line for each and none for what changes no
# mode; and of the console's when the program has gone.
. /lib/kdetour.sh
V=/dev/kdetour_video
drivers="drm drm_kms_helper ttm drm_ttm_helper drm_vram_helper bochs"
detours() { tail -n +2 $D/kdetour/detours | wc -l; }

# The reader's lines that have come since they were last asked for: kind, driver, size, pitch, format; ; between them
new() { tail -n +$((seen + 1)) /tmp/heard | awk '{ for (i = 4; i <= NF; i++) { split($i, f, "="); v[f[1]] = f[2] } printf "%s%s %s %sx%sx%s %s %s", n++ ? ";" : "", $2, $3, v["width"], v["height"], v["bits"], v["pitch"], v["format"] }'; }
serial() { tail -n 1 /tmp/heard | cut -d' ' -f1; }
# expect NAME LINES: these, and no change beside them
expect() {
	for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do [ "$(new)" = "$2" ] && break; sleep 0.2; done
	sleep 0.5
	same "$1" "$2" "$(new)"
	lines=$(wc -l < /tmp/heard)
	same "$1: as many changes as lines" $((lines - seen)) $(($(serial) - before))
	seen=$lines before=$(serial)
}
# at_last NAME LINE: this one last; what was between, if the reader has seen it, was off
at_last() {
	for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do case "$(new)" in *"$2") break ;; esac; sleep 0.2; done
	sleep 0.5
	same "$1" "$2" "$(new | sed 's/^none off 0x0x0 0 -;//')"
	seen=$(wc -l < /tmp/heard) before=$(serial)
}
start() { rm -f /tmp/in /tmp/out; mkfifo /tmp/in /tmp/out; kms < /tmp/in > /tmp/out & program=$!; exec 3> /tmp/in 4< /tmp/out; }
# says NAME ANSWER COMMAND
says() { echo "$3" >&3; answer=nothing; read -r answer <&4; same "$1" "$2" "$answer"; }
dies() { kill -9 $program; wait $program 2>/dev/null; exec 3>&- 4<&-; }
load() { for driver in $drivers; do check "insmod $driver" insmod /modules/$driver.ko; done; }
# unload, the console first
unload() {
	for console in /sys/class/vtconsole/vtcon*; do grep -q frame $console/name && echo 0 > $console/bind; done
	for driver in bochs drm_vram_helper drm_ttm_helper ttm drm_kms_helper drm; do check "rmmod $driver" rmmod $driver; done
}

load_modules textsum kdetour
deny "video_drm needs video" insmod /modules/video_drm.ko
load_modules video
check "video_drm comes before DRM" insmod /modules/video_drm.ko
check "and says so" sh -c "dmesg | grep -q 'video_drm: there is no DRM yet: load the driver'"
deny "a second load is refused" insmod /modules/video_drm.ko
others=$(detours)
cat $V > /tmp/heard &
reader=$!
load
same "DRM's functions are detoured when they come" $((others + 2)) "$(detours)"
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do grep -q bochs /tmp/heard && break; sleep 1; done
sleep 1
seen=0
console=$(new | tr ';' '\n' | tail -n 1)
case "$console" in "pixels bochs"*) ok "the console's mode is told by its framebuffer: $console" ;; *) fail "the console's mode is told: $console" ;; esac
seen=$(wc -l < /tmp/heard) before=$(serial)

start
says "the first mode" ok "set 800 600 XR24"
expect "a mode set by SETCRTC" "pixels bochs-drm 800x600x32 3200 XR24"
says "another buffer" ok "flip"
says "another one, that nobody waits for" ok "swap"
says "the same mode again" ok "set 800 600 XR24"
expect "flips change no mode" ""
says "a wider buffer" ok "set 800 600 XR24 1024 600"
expect "the pitch is a change" "pixels bochs-drm 800x600x32 4096 XR24"
says "too small a buffer" ENOSPC "set 1024 768 XR24 640 480"
says "a test" ok "commit 640 480 XR24 test"
says "a commit that the driver refuses" EINVAL "commit 640 480 XR24 left"
says "a mode that there is not" ENOENT "set 801 601 XR24"
expect "what was not set is not told" ""
says "an atomic commit" ok "commit 640 480 XR24"
expect "it is told" "pixels bochs-drm 640x480x32 2560 XR24"
says "one that nobody waits for" ok "commit 1024 768 XR24 nonblock"
expect "it is told, too" "pixels bochs-drm 1024x768x32 4096 XR24"
same "where it is is not known" "base=0x0" "$(tail -n 1 /tmp/heard | cut -d' ' -f4)"
says "another format" ok "commit 1024 768 BX24"
expect "the format is a change" "pixels bochs-drm 1024x768x32 4096 BX24"
check "its colours" sh -c "tail -n 1 /tmp/heard | grep -q 'red=8:8 green=16:8 blue=24:8'"
for what in dpms active; do
	says "off by $what" ok "$what off"
	expect "the screen is off" "none off 0x0x0 0 -"
	says "on by $what" ok "$what on"
	expect "it is on again" "pixels bochs-drm 1024x768x32 4096 BX24"
done

# What is shown is learnt, when video_drm comes later.
check "rmmod video_drm" rmmod video_drm
same "its detours have gone" $others "$(detours)"
expect "without it the console is all that is known" "$console"
says "a mode that nobody sees" ok "set 640 480 XR24"
expect "nothing is told" ""
check "insmod video_drm" insmod /modules/video_drm.ko
expect "it learns what is shown" "pixels bochs-drm 640x480x32 2560 XR24"
dies
at_last "the console is back when the program has died" "$console"
check "the console's mode is set" setmode 800 600 32
expect "that is told as ever" "$(echo "$console" | sed 's/[0-9]*x[0-9]*x/800x600x/')"
console=$(tail -n 1 /tmp/heard | awk '{ print $3 }')
sed 's/^/heard /' /tmp/heard

# It goes and comes while modes are set.
start
echo loop >&3
for round in 1 2 3 4 5 6; do
	check "rmmod while modes are set" rmmod video_drm
	check "insmod while modes are set" insmod /modules/video_drm.ko
	sleep 0.3
done
check "modes are set all the time" kill -0 $program
check "and are told" sh -c "tail -n 3 /tmp/heard | grep -q 'bochs-drm '"
kill $reader
wait $reader 2>/dev/null
check "rmmod video, too" rmmod video_drm video
load_modules video video_drm
dies
cat $V > /tmp/heard &
reader=$!
sleep 2
check "the console is there" sh -c "tail -n 1 /tmp/heard | grep -q '$console '"

# The card goes while a program shows its mode, then DRM; and both come again, while video_drm stays.
start
says "a mode" ok "set 640 480 XR24"
sleep 1
check "it is told" sh -c "tail -n 1 /tmp/heard | grep -q ' pixels bochs-drm '"
check "the card goes" sh -c "cd /sys/bus/pci/drivers/bochs-drm && echo 0000:* > unbind"
sleep 2
check "a reader has heard of the end" sh -c "tail -n 1 /tmp/heard | grep -q ' none gone '"
dies
unload
same "no detour is left in it" $others "$(detours)"
load
same "they are back" $((others + 2)) "$(detours)"
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do tail -n 1 /tmp/heard | grep -q "$console " && break; sleep 1; done
sleep 1
seen=$(wc -l < /tmp/heard) before=$(serial)
start
says "a mode" ok "set 640 480 XR24"
expect "modes of the new one are told" "pixels bochs-drm 640x480x32 2560 XR24"
dies
kill $reader
wait $reader 2>/dev/null
check "rmmod" rmmod video_drm video kdetour
text_is_whole "text after video_drm"
finish
