"""Wrong plans, each of which must be found out: a test that cannot fail proves nothing.

Every entry is a right plan and what is wrong in a second one. The right one must pass.
"""

import json
import random

from check import Checker
from record import Record

WINDOW, SLOT, DETOUR, CAVE = 0x401000, 0x500000, 0x600000, 0x400FF0
HIGH = 0x7F00_0000_1000


def rel32(at, target):
    """The displacement whose last byte lies in front of `at`."""
    return ((target - at) & 0xFFFF_FFFF).to_bytes(4, "little").hex()


def jump(at, target):
    return "e9" + rel32(at + 5, target)


def plan(displaced, slot, mode=64, window=WINDOW, slot_at=SLOT, shape="Jump5", patch=None, cave=None, detour=DETOUR):
    """`displaced`: instructions as hex. `slot`: pairs (hex or a function of the address, whether it is the next
    instruction's copy); the last marked piece is the way back."""
    old, at = [], window
    for one in displaced:
        old.append(at)
        at += len(one) // 2
    ends = at
    boundaries = iter(old + [ends])
    pairs, code, at = [], "", slot_at
    for piece, is_copy in slot:
        piece = piece(at) if callable(piece) else piece
        if is_copy:
            pairs.append([hex(next(boundaries)), hex(at)])
        code += piece
        at += len(piece) // 2
    new = patch if patch is not None else jump(window, detour)
    text = "".join(displaced)
    return {
        "accepted": True,
        "name": "self-test",
        "mode": mode,
        "entry": hex(window),
        "detour": hex(detour),
        "shape": shape,
        "window": {"address": hex(window), "len": len(new) // 2},
        "displaced": [
            {"address": hex(address), "bytes": one, "text": ""} for address, one in zip(old, displaced, strict=True)
        ],
        "slot": {"address": hex(slot_at), "bytes": code, "trampoline_offset": int(pairs[0][1], 16) - slot_at},
        "patch": {"address": hex(window), "expected": text.ljust(len(new), "9"), "new": new},
        "cave": cave,
        "ip_map": pairs,
    }


def back(to):
    return (lambda at: jump(at, to)), True


def copies(*pieces):
    return [(piece, True) for piece in pieces]


def extra(piece):
    return piece, False


PLAIN = ["55", "4889e5", "4157"]  # push rbp / mov rbp, rsp / push r15


def cases():
    """(what is wrong, a right plan, the wrong one)"""
    right = plan(PLAIN, [*copies(*PLAIN), back(WINDOW + 6)])
    plain32 = ["55", "89e5", "57", "56"]
    right32 = plan(plain32, [*copies(*plain32), back(WINDOW + 5)], mode=32)

    def worse(*pieces):
        return plan(PLAIN, [*copies(*PLAIN), *pieces, back(WINDOW + 6)])

    yield "flags clobbered (cmc)", right, worse(extra("f5"))
    yield "a register clobbered (lea r11, [r11+1])", right, worse(extra("4d8d5b01"))
    yield "xmm clobbered (xorps xmm0, xmm0)", right, worse(extra("0f57c0"))
    yield "x87 clobbered (fincstp)", right, worse(extra("d9f7"))
    yield "a write below the stack pointer (mov [rsp-8], rax)", right, worse(extra("48894424f8"))
    yield "a push and a pop in the way back", right, worse(extra("5058"))
    yield "the stack pointer moved (lea rsp, [rsp+8])", right, worse(extra("488d642408"))
    yield "back to one byte too far", right, plan(PLAIN, [*copies(*PLAIN), back(WINDOW + 7)])
    yield "back into the window", right, plan(PLAIN, [*copies(*PLAIN), back(WINDOW + 4)])
    yield "an instruction lost", right, plan(PLAIN, [("55", True), ("", True), ("4157", True), back(WINDOW + 6)])
    yield "32 bits of a 64-bit move", right, plan(PLAIN, [*copies("55", "89e5", "4157"), back(WINDOW + 6)])
    yield "the patch jumps elsewhere", right, plan(
        PLAIN, [*copies(*PLAIN), back(WINDOW + 6)], patch=jump(WINDOW, DETOUR + 1)
    )
    yield "a boundary that the map sends elsewhere", right, {
        **right,
        "ip_map": [right["ip_map"][0], [right["ip_map"][1][0], hex(SLOT + 4)], [right["ip_map"][2][0], hex(SLOT + 1)],
                   right["ip_map"][3]],
    }
    yield "32-bit: a register clobbered (lea ecx, [ecx+1])", right32, plan(
        plain32, [*copies(*plain32), extra("8d4901"), back(WINDOW + 5)], mode=32
    )

    compare = ["81fe00400000"]  # cmp esi, 0x4000: states hardly tell it from another number
    yield "an immediate changed", plan(compare, [*copies(*compare), back(WINDOW + 6)]), plan(
        compare, [*copies("81fe00480000"), back(WINDOW + 6)]
    )

    # Relays: the patch leads through them.
    far = 0x5500_0000_0000
    relay = SLOT + 11
    relayed = [*copies(*PLAIN), back(WINDOW + 6)]
    good_relay = plan(
        PLAIN, [*relayed, extra("ff2500000000" + far.to_bytes(8, "little").hex())], patch=jump(WINDOW, relay), detour=far
    )
    pushes = "68" + (far & 0xFFFF_FFFF).to_bytes(4, "little").hex() + "c7442404" + (far >> 32).to_bytes(4, "little").hex()
    moves = "49bb" + far.to_bytes(8, "little").hex() + "41ffe3"
    for what, bad in (("push, mov, ret", pushes + "c3"), ("mov r11, imm64; jmp r11", moves)):
        yield f"a relay by {what}", good_relay, plan(
            PLAIN, [*relayed, extra(bad)], patch=jump(WINDOW, relay), detour=far
        )

    # Operands relative to the instruction pointer.
    load = ["488b05" + rel32(WINDOW + 7, 0x402000)]  # mov rax, [0x402000]

    def loading(address):
        return plan(load, [((lambda at: "488b05" + rel32(at + 7, address)), True), back(WINDOW + 7)])

    yield "a displacement off by one", loading(0x402000), loading(0x402001)
    yield "a displacement copied blindly", loading(0x402000), plan(load, [*copies(*load), back(WINDOW + 7)])
    store = ["c705" + rel32(WINDOW + 10, 0x402000) + "11223344"]  # mov dword [0x402000], imm32
    yield "a displacement that forgets the immediate", plan(
        store, [((lambda at: "c705" + rel32(at + 10, 0x402000) + "11223344"), True), back(WINDOW + 10)]
    ), plan(store, [((lambda at: "c705" + rel32(at + 6, 0x402000) + "11223344"), True), back(WINDOW + 10)])
    wide = ["62f17c481005" + rel32(WINDOW + 10, 0x402000)]  # vmovups zmm0, [0x402000]: the emulator does not know it
    yield "EVEX, not executed, copied blindly", plan(
        wide, [((lambda at: "62f17c481005" + rel32(at + 10, 0x402000)), True), back(WINDOW + 10)]
    ), plan(wide, [*copies(*wide), back(WINDOW + 10)])

    # Branches.
    short = ["85ff", "7410", "90"]  # test edi, edi / je +0x10 / nop
    to = WINDOW + 4 + 0x10
    wide_je = (lambda at: "0f84" + rel32(at + 6, to)), True
    good = plan(short, [("85ff", True), wide_je, ("90", True), back(WINDOW + 5)])
    yield "rel8 copied blindly", good, plan(short, [*copies(*short), back(WINDOW + 5)])
    yield "the condition turned round", good, plan(
        short, [("85ff", True), ((lambda at: "0f85" + rel32(at + 6, to)), True), ("90", True), back(WINDOW + 5)]
    )
    looping = ["ffc8", "75fc", "90"]  # 1: dec eax / jne 1b / nop
    inside = ("75fc", True)
    yield "a loop in the window leads back into the patched bytes", plan(
        looping, [("ffc8", True), inside, ("90", True), back(WINDOW + 5)]
    ), plan(looping, [("ffc8", True), ((lambda at: "0f85" + rel32(at + 6, WINDOW)), True), ("90", True), back(WINDOW + 5)])
    counted = ["89c8", "e210", "90"]  # mov eax, ecx / loop +0x10 / nop
    yield "loop taken for jcc, as safetyhook does", plan(
        counted, [("89c8", True), ((lambda at: "e202eb05" + jump(at + 4, to)), True), ("90", True), back(WINDOW + 5)]
    ), plan(counted, [("89c8", True), ((lambda at: "0f85" + rel32(at + 6, to)), True), ("90", True), back(WINDOW + 5)])

    # Calls.
    for name, window, push in (
        ("low", WINDOW, "68" + (WINDOW + 5).to_bytes(4, "little").hex()),
        ("high", HIGH, "68" + (HIGH + 5 & 0xFFFF_FFFF).to_bytes(4, "little").hex() + "c7442404007f0000"),
    ):
        call = ["e8" + rel32(window + 5, window + 0x3000)]
        slot_at = window + 0x100000
        common = {"window": window, "slot_at": slot_at, "shape": "WholeInstruction", "detour": window + 0x200000}
        emulated = (lambda at, push=push, window=window: push + jump(at + len(push) // 2, window + 0x3000)), True
        copied = (lambda at, window=window: "e8" + rel32(at + 5, window + 0x3000)), True
        good = plan(call, [emulated, back(window + 5)], **common)
        yield f"{name}: a return address in the slot", good, plan(call, [copied, back(window + 5)], **common)
        off = push.replace(push[2:4], f"{(window + 6) & 0xFF:02x}", 1)
        bad = (lambda at, push=off, window=window: push + jump(at + len(push) // 2, window + 0x3000)), True
        yield f"{name}: another way back behind the call", good, plan(call, [emulated, back(window + 6)], **common)
        yield f"{name}: a return address off by one", good, plan(call, [bad, back(window + 5)], **common)
    thunk = ["e800000000", "5b"]  # call $+5 / pop ebx
    common = {"mode": 32, "shape": "WholeInstruction"}
    pushed = "68" + (WINDOW + 5).to_bytes(4, "little").hex()
    yield "32-bit: call $+5 reads the slot's address", plan(
        thunk[:1], [(pushed, True), back(WINDOW + 5)], **common
    ), plan(thunk[:1], [("e800000000", True), back(WINDOW + 5)], **common)
    segment = ["658b0d14000000"]  # mov ecx, gs:[0x14]
    yield "32-bit: a segment prefix lost", plan(segment, [*copies(*segment), back(WINDOW + 7)], **common), plan(
        segment, [*copies("8b0d14000000"), back(WINDOW + 7)], **common
    )
    trap = ["0f0b", "90", "90", "90"]
    yield "an exception lost", plan(trap, [*copies(*trap), back(WINDOW + 5)]), plan(
        trap, [*copies("90", "90", "90", "90"), back(WINDOW + 5)]
    )

    # Shapes.
    kept = {"shape": "Jump5Kept"}
    at = (WINDOW + 5 + int.from_bytes(bytes.fromhex("4889e541"), "little")) & 0xFFFF_FFFF
    near = plan(PLAIN, [*copies(*PLAIN), back(WINDOW + 6)], slot_at=at - 0x40, detour=at, patch="e94889e541", **kept)
    yield "kept bytes that are not kept", near, {
        **plan(PLAIN, [*copies(*PLAIN), back(WINDOW + 6)], slot_at=at - 0x40, detour=at + 0x10000, **kept)
    }
    for what, patch in (("no INT3 on a boundary", "e9cc0000cd"), ("no INT3 on another", "e9cd0000cc")):
        both = []
        for new in ("e9cc0000cc", patch):
            to = HIGH + 5 + int.from_bytes(bytes.fromhex(new[2:]), "little", signed=True)
            common = {"window": HIGH, "shape": "Jump5Trapped", "slot_at": to + 0x40, "detour": to}
            both.append(plan(PLAIN, [*copies(*PLAIN), back(HIGH + 6)], patch=new, **common))
        yield what, *both
    one = {"shape": "Breakpoint"}
    yield "a breakpoint that is none", plan(
        ["55"], [("55", True), back(WINDOW + 1)], patch="cc", **one
    ), plan(["55"], [("55", True), back(WINDOW + 1)], patch="90", **one)

    def hollow(new, where=CAVE, first="ebee"):
        cave = {"address": hex(where), "expected": "9090909090", "new": new}
        two = ["89f8", "c3"]  # mov eax, edi
        return plan(two[:1], [("89f8", True), back(WINDOW + 2)], shape="ShortJump", patch=first, cave=cave)

    yield "a cave that jumps elsewhere", hollow(jump(CAVE, DETOUR)), hollow(jump(CAVE, DETOUR + 16))
    yield "a short jump that misses the cave", hollow(jump(CAVE, DETOUR)), hollow(jump(CAVE, DETOUR), first="ebed")


def main(seed):
    checker = Checker(seed, 6)
    failures = total = 0
    for what, right, wrong in cases():
        for given, expected in ((right, False), (wrong, True)):
            total += 1
            record = Record(given)
            result = checker.check(record)
            if bool(result.differences) != expected:
                failures += 1
                which = "the wrong plan passes" if expected else "the right plan fails"
                print(f"FAIL {what}: {which}: {result.differences[:3]}")
        if result.differences:
            print(f"ok {what}: {result.differences[0][2][:110]}")
    print(f"{total - failures} passed, {failures} failed")
    return 1 if failures else 0


def flips(lines, seed):
    """Turns one bit of each record's slot round; each must be found out."""
    checker = Checker(seed, 6)
    rng = random.Random(f"flips {seed}")
    failures = 0
    for line in lines:
        given = json.loads(line)
        code = bytearray.fromhex(given["slot"]["bytes"])
        at, bit = rng.randrange(len(code)), rng.randrange(8)
        code[at] ^= 1 << bit
        given["slot"]["bytes"] = code.hex()
        if not checker.check(Record(given)).differences:
            failures += 1
            print(f"FAIL bit {bit} of byte {at} of the slot may be anything: {line.strip()}")
    print(f"{len(lines) - failures} passed, {failures} failed")
    return 1 if failures or not lines else 0
