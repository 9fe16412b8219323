# guest: cpus=2 append="vga=0x344" kernels=6.1-rt screen=vga drivers=drm,drm_kms_helper,ttm,drm_ttm_helper,drm_vram_helper,bochs timeout=300
# video.ko from the firmware's framebuffer to a DRM driver's: vesafb goes, bochs comes, and its modes are set by its emulation.
. /lib/kdetour.sh
V=/dev/kdetour_video
what() { dd if=$V bs=256 count=1 2>/dev/null | awk '{ for (i = 4; i <= NF; i++) { split($i, f, "="); v[f[1]] = f[2] } print $2, $3, v["width"] "x" v["height"] "x" v["bits"], v["base"] == "0x0" ? "shadow" : "there" }'; }
becomes() { for i in 1 2 3 4 5 6 7 8 9 10; do [ "$(what)" = "$2" ] && break; sleep 0.3; done; same "$1" "$2" "$(what)"; }

load_modules textsum kdetour video
becomes "vesafb is known" "pixels VESA_VGA 1024x768x32 there"
cat $V > /tmp/heard &
reader=$!
for driver in drm drm_kms_helper ttm drm_ttm_helper drm_vram_helper bochs; do check "insmod $driver" insmod /modules/$driver.ko; done
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do case "$(what)" in *bochs*) break ;; *) sleep 1 ;; esac; done
what=$(what)
case "$what" in "pixels bochs"*shadow) ok "the driver is noticed: $what" ;; *) fail "the driver is noticed: $what" ;; esac
check "its mode is set" setmode 800 600 32
becomes "that is noticed" "$(echo "$what" | sed 's/[0-9]*x[0-9]*x/800x600x/')"
sleep 1
kill $reader
check "a reader has heard of both" sh -c "grep -q VESA /tmp/heard && grep -q bochs /tmp/heard"
check "rmmod" rmmod video kdetour
text_is_whole "text after video"
finish
