# guest: cpus=2 kernels=6.1,6.12 timeout=200
# Modules that go while they are detoured, or while their own detours are attached.
. /lib/kdetour.sh
load_modules textsum kdetour
P=/sys/module/forgetful/parameters
lines() { wc -l < $D/kdetour/detours; }

# A client forgets its detour of a kernel function.
check "a client attaches" insmod /modules/forgetful.ko target=version_proc_show
same "it is listed" 2 "$(lines)"
check "the client goes without detaching" rmmod forgetful
same "its detour went with it" 1 "$(lines)"
check "the function works" grep -q Linux /proc/version
text_is_whole "text after a forgetful client"

# Its init fails after attaching.
deny "an init that fails" insmod /modules/forgetful.ko target=version_proc_show fail=1
same "its detour went with it, too" 1 "$(lines)"
check "the function works" grep -q Linux /proc/version

# A detour of a function in another module, which goes first.
load_modules victim
check "attach to the module" insmod /modules/forgetful.ko target=victim_function
check "call" sh -c "echo 1 > /sys/module/victim/parameters/call"
same "the detour is called" 1 "$(cat $P/calls)"
check "the target's module goes" rmmod victim
same "the detour went with it" 1 "$(lines)"
load_modules victim
check "a new one is called" sh -c "echo 1 > /sys/module/victim/parameters/call"
same "and not detoured" 1 "$(cat $P/calls)"
check "the client goes" rmmod forgetful
check "the module goes" rmmod victim

# One of a set goes with its target's module. The client's exit detaches the other one, and hears of that one.
load_modules victim
check "attach to both" insmod /modules/forgetful.ko target=victim_function also=version_proc_show
same "they are listed" 3 "$(lines)"
check "the target's module goes" rmmod victim
same "the other one stays" 2 "$(lines)"
check "the client goes" rmmod forgetful
same "nothing is attached" 1 "$(lines)"
check "it was told" sh -c "dmesg | grep -q 'forgetful: 0 of the set: this detour is not attached any more'"
deny "it has detached the other one itself" sh -c "dmesg | grep -A9 'forgetful: 0 of the set' | grep -q 'forgetful goes'"
check "the function works" grep -q Linux /proc/version

# A client that has planned, and goes: what it has written itself is taken back, whether it has told or not.
check "a client plans" insmod /modules/forgetful.ko target=version_proc_show plan=1
check "it is listed" grep -q 'version_proc_show .*planned *forgetful' $D/kdetour/detours
check "the client goes" rmmod forgetful
same "its plan went with it" 1 "$(lines)"
load_modules victim
check "a client writes its plan" insmod /modules/forgetful.ko target=victim_function plan=1 write=1
check "call" sh -c "echo 1 > /sys/module/victim/parameters/call"
same "the detour is called" 1 "$(cat $P/calls)"
check "it is listed as a plan" grep -q 'victim_function .*planned *forgetful' $D/kdetour/detours
check "the client goes" rmmod forgetful
same "its detour went with it" 1 "$(lines)"
check "it was detached" sh -c "dmesg | tail -n 3 | grep -q 'forgetful goes: detached 1'"
check "the function works" sh -c "echo 1 > /sys/module/victim/parameters/call"
for write in 0 1; do
	check "a client plans, write=$write" insmod /modules/forgetful.ko target=victim_function plan=1 write=$write
	check "the target's module goes" rmmod victim
	same "the plan went with it" 1 "$(lines)"
	check "the client goes" rmmod forgetful
	load_modules victim
	check "the function of a new one works" sh -c "echo 1 > /sys/module/victim/parameters/call"
done
check "the module goes" rmmod victim
text_is_whole "text after plans"

# A client that the kernel does not know for one, since it has looked the functions up.
check "attach" insmod /modules/getter.ko
deny "kdetour.ko stays" rmmod kdetour
check "the client goes" rmmod getter
same "nothing is attached" 1 "$(lines)"

# A detour in a module that is being loaded: before its init runs, and gone with it if that fails.
load_modules eager
E=/sys/module/eager/parameters
load_modules victim
same "attached while the module comes" 0 "$(cat $E/came)"
same "its init's call was detoured" 1 "$(cat $E/calls)"
same "its init itself cannot be" -1 "$(cat $E/init_text)"
check "the module goes" rmmod victim
same "its detour went with it" 1 "$(lines)"
same "nobody attaches to what goes" -1 "$(cat $E/went)"
# busybox' insmod tries more than once.
deny "a module whose init fails" insmod /modules/victim.ko fail=1
check "its init's call was detoured" [ "$(cat $E/calls)" -ge 2 ]
same "its detour went with it" 1 "$(lines)"
check "the client goes, and cannot attach in its exit" rmmod eager

# The same with a kprobe on the jump, which the kernel drops without putting the byte back.
load_modules victim
check "attach to the module" insmod /modules/forgetful.ko target=victim_function
window=$(awk '$1 == "window" { print $2; exit }' $D/kdetour/patches)
target=$(awk '$1 == "target" { print $2; exit }' $D/kdetour/patches)
echo "p:kdt/dying victim_function+$((window - target))" > $T/kprobe_events
echo 1 > $T/events/kdt/dying/enable
rmmod victim &
unloader=$!
sleep 2
[ -d /proc/$unloader ] && fail "rmmod victim hangs" || ok "the module goes, kprobe or not"
same "its detour went with it" 1 "$(lines)"
echo 0 > $T/events/kdt/dying/enable
echo > $T/kprobe_events
check "the client goes" rmmod forgetful

# Its own function, detoured by itself.
check "attach to its own function" insmod /modules/forgetful.ko
check "call" sh -c "echo 1 > $P/call"
same "the detour is called" 1 "$(cat $P/calls)"
check "it goes" rmmod forgetful
same "nothing is left" 1 "$(lines)"

# Somebody's kprobe stands on the jump: the module waits until it is gone.
insmod /modules/hello.ko
echo vfs_read > $D/kdetour/survey
window=$(awk '$1 == "window" && found { print $2 } /vfs_read/ { found = 1 }' $D/kdetour/patches | head -n 1)
target=$(awk '/ vfs_read/ { print $1; exit }' $D/kdetour/detours)
echo "p:kdt/late vfs_read+$((window - target))" > $T/kprobe_events
echo 1 > $T/events/kdt/late/enable
rmmod hello &
unloader=$!
sleep 2
[ -d /proc/$unloader ] && ok "rmmod waits for the kprobe on the jump" || fail "rmmod did not wait"
check "and says so" sh -c "dmesg | grep -q 'waiting to detach vfs_read.*remove the other probe'"
check "the function works" grep -q Linux /proc/version
echo 0 > $T/events/kdt/late/enable
echo > $T/kprobe_events
wait $unloader && ok "rmmod ends once the kprobe has gone" || fail "rmmod gave $?"
text_is_whole "text"
check "rmmod" rmmod kdetour
finish
