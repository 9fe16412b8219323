# guest: cpus=2 kernels=6.1-rt long-kernels=6.12-rt screen=vga timeout=600 qemu="-device virtio-gpu-pci,max_outputs=2" drivers=drm,drm_kms_helper,drm_shmem_helper,virtio_ring,virtio,virtio_pci_legacy_dev,virtio_pci_modern_dev,virtio_pci,virtio_dma_buf,virtio-gpu,ttm,drm_ttm_helper,drm_vram_helper,bochs
# video_drm.ko where there are two cards, and two CRTCs on the first one: it is the first one that is on that is told.
. /lib/kdetour.sh
V=/dev/kdetour_video
what() { dd if=$V bs=256 count=1 2>/dev/null | awk '{ for (i = 4; i <= NF; i++) { split($i, f, "="); v[f[1]] = f[2] } print $2, $3, v["width"] "x" v["height"] "x" v["bits"] }'; }
becomes() { for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do [ "$(what)" = "$2" ] && break; sleep 0.3; done; same "$1" "$2" "$(what)"; }
stays() { sleep 1; same "$1" "$2" "$(what)"; }
# start N CARD; says N NAME COMMAND: the program with that number
start() { rm -f /tmp/in$1 /tmp/out$1; mkfifo /tmp/in$1 /tmp/out$1; kms /dev/dri/card$2 < /tmp/in$1 > /tmp/out$1 & eval "program$1=$!"; if [ $1 = 0 ]; then exec 3> /tmp/in0 4< /tmp/out0; else exec 5> /tmp/in1 6< /tmp/out1; fi; }
says() { if [ $1 = 0 ]; then echo "$3" >&3; read -r answer <&4; else echo "$3" >&5; read -r answer <&6; fi; same "$2" ok "$answer"; }

load_modules textsum kdetour video video_drm
for driver in drm drm_kms_helper drm_shmem_helper virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_dma_buf virtio-gpu; do
	# Some may be part of the kernel.
	[ ! -e /modules/$driver.ko ] || check "insmod $driver" insmod /modules/$driver.ko
done
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do case "$(what)" in *virtio*) break ;; esac; sleep 1; done
console=$(what)
case "$console" in "pixels virtio"*) ok "the first card has the console: $console" ;; *) fail "the first card has the console: $console" ;; esac
for status in /sys/class/drm/card0-*/status; do echo on > $status; done
sleep 2
for driver in ttm drm_ttm_helper drm_vram_helper bochs; do check "insmod $driver" insmod /modules/$driver.ko; done
sleep 3
start 0 0
start 1 1
says 1 "a mode of the second card" "set 800 600 XR24"
stays "it is not told while the first is on" "$console"
says 0 "a mode of the first CRTC" "set 1024 768 XR24"
becomes "it is told" "pixels virtio_gpu 1024x768x32"
says 0 "the second CRTC" "use 1"
says 0 "a mode of it" "set 640 480 XR24"
stays "it is not told while the first is on" "pixels virtio_gpu 1024x768x32"
says 0 "the first CRTC" "use 0"
says 0 "it is off" "active off"
becomes "the second is told" "pixels virtio_gpu 640x480x32"
says 0 "the second CRTC" "use 1"
says 0 "it is off, too" "active off"
becomes "the second card is told" "pixels bochs-drm 800x600x32"
says 1 "that is off" "active off"
becomes "nothing is on" "none off 0x0x0"
says 1 "it is on" "active on"
becomes "it is told again" "pixels bochs-drm 800x600x32"
says 0 "the second CRTC is on" "active on"
becomes "it comes before the other card" "pixels virtio_gpu 640x480x32"
check "video_drm goes" rmmod video_drm
check "and comes" insmod /modules/video_drm.ko
becomes "it learns which is the first" "pixels virtio_gpu 640x480x32"
kill -9 $program0
becomes "the console is back" "$console"
kill -9 $program1
sleep 2
stays "the second card's does not matter" "$console"
check "rmmod" rmmod video_drm video kdetour
text_is_whole "text after video_drm"
finish
