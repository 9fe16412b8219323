# guest: cpus=2 kernels=6.1,6.12 timeout=300
# Several clients of one target: they come and leave in every order, under load, with calls asleep in each of them.
. /lib/kdetour.sh
load_modules textsum kdetour kdetour_test
echo 1 > /sys/module/kdetour/parameters/quiet
lines() { wc -l < $D/kdetour/detours; }
# digits LINK...: with the last one first, as they are called
digits() { d=; for l in "$@"; do d=$l$d; done; echo "${d:-0}"; }
# quietly CHECK...: says only what failed
quietly() { echo "$*" > $D/kdetour_test; if grep -q ^FAIL $D/kdetour_test; then fail "$*: $(cat $D/kdetour_test)"; return 1; fi; }

run chain two
# Every order of leaving, with orders of attaching that put each of them in every place.
for orders in '1 2 3:1 2 3' '1 2 3:1 3 2' '1 2 3:2 1 3' '2 3 1:2 1 3' '2 3 1:1 3 2' '3 1 2:3 2 1'; do
	come=${orders%:*}
	leave=${orders#*:}
	name="attached $come, left $leave"
	before=$failed
	quietly chain start "$(digits $come)"
	for link in $come; do insmod /modules/link$link.ko || fail "$name: insmod link$link"; done
	quietly chain is "$(digits $come)"
	[ "$(grep -c attached $D/kdetour/detours)" = 3 ] || fail "$name: the list has $(cat $D/kdetour/detours)"
	first=${come##* }
	grep -q " 1/3 .* link$first$" $D/kdetour/detours || fail "$name: link$first is not the first: $(cat $D/kdetour/detours)"
	left=$come
	for link in $leave; do
		rmmod link$link || fail "$name: rmmod link$link"
		rest=
		for l in $left; do [ $l = $link ] || rest="$rest $l"; done
		left=$rest
		quietly chain is "$(digits $left)"
	done
	quietly chain stop
	[ $failed = $before ] && ok "$name: $(cat $D/kdetour_test)"
done

# All at once, while calls sleep in each of them in front of its original: some leave it to the kernel's notifier.
for forget in '' '2' '1 2 3'; do
	before=$failed
	quietly chain start 321
	for link in 1 2 3; do insmod /modules/link$link.ko || fail "insmod link$link"; done
	for link in $forget; do echo 1 > /sys/module/link$link/parameters/forget; done
	sleep 0.2
	for link in 3 2 1; do rmmod link$link & done
	wait
	same "all at once, forgetting ${forget:-none}: nothing is left" 1 "$(lines)"
	quietly chain stop
	[ $failed = $before ] && ok "all at once, forgetting ${forget:-none}: $(cat $D/kdetour_test)"
done
deny "no client is left" grep -q '^link' /proc/modules

# A call sleeps in a link that drains; the neighbour that it was going to call leaves, code and all, before it goes on.
for forget in 0 1; do
	load_modules link1 link2
	echo 1 > /sys/module/link2/parameters/hold
	echo $forget > /sys/module/link2/parameters/forget
	run chain nap
	sleep 0.3
	rmmod link2 &
	unloader=$!
	sleep 0.5
	check "forget=$forget: the neighbour of a call that sleeps goes" rmmod link1
	deny "forget=$forget: it has gone" grep -q '^link1 ' /proc/modules
	[ -d /proc/$unloader ] && ok "forget=$forget: rmmod waits for the call" || fail "forget=$forget: rmmod did not wait"
	echo 0 > /sys/module/link2/parameters/hold
	wait $unloader && ok "forget=$forget: rmmod ends when the call has come back" || fail "rmmod gave $?"
	run chain napped 2
done

# The target goes first, with three detours in it.
run chain start 321
load_modules link1 link2 link3
run chain stop
check "the target's module goes" rmmod kdetour_test
same "its detours went with it" 1 "$(lines)"
check "the clients go" rmmod link2 link1 link3
check "rmmod" rmmod kdetour
text_is_whole "text"
finish
