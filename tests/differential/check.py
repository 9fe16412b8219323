"""Compares what the original code of a window does with what its plan does, in an emulator."""

from unicorn import unicorn_const as C

from machine import HLT, Machine
from record import (
    NEVER_GO_ON,
    conditional,
    for_a_system,
    is_branch,
    is_call,
    opcode,
    pushes_flags,
    repeated,
    stores_x87_environment,
)

# Instructions of one run; a loop is compared where it then stands.
LIMIT = 48
# More states, at most, for a window with a conditional branch that has not gone both ways yet.
MORE_STATES = 40
BANK = 96
UD = (b"\x0f\x0b", b"\x0f\xb9", b"\x0f\xff")


class Result:
    """What came of one record."""

    def __init__(self):
        self.differences = []
        self.not_run = []  # (reason, bytes) of instructions that were left out
        self.unproven = 0  # of these, copies whose bytes could not be compared either
        self.runs = 0
        self.states = 0
        self.single_stepped = 0
        self.x87_ip = 0
        self.flags_unknown = False
        self.writes_code = False
        self.reenters = 0  # runs that left to the target itself
        self.one_way = False  # a conditional branch never went both ways


class Checker:
    def __init__(self, seed, states):
        self.seed, self.states = seed, states
        self.machines = {}

    def machine(self, mode):
        if mode not in self.machines:
            self.machines[mode] = Machine(mode, self.seed, BANK)
        return self.machines[mode]

    def check(self, record, only_state=None):
        """Everything that is asked of a record."""
        result = Result()
        wrong = record.faults()
        if wrong:
            result.differences += [("record", None, why) for why in wrong]
            return result
        machine = self.machine(record.mode)
        one = One(machine, record, result)
        first = (record.entry * 0x9E3779B1 >> 7) % BANK
        states = [(first + at) % BANK for at in range(self.states)] if only_state is None else [only_state]
        branches = any(conditional(data, record.mode) for _, data, _ in record.displaced)
        paths = set()
        for state in states:
            paths.add(one.whole(state))
        if branches and only_state is None:
            for more in range(MORE_STATES):
                if len(paths) > 1:
                    break
                paths.add(one.whole((first + self.states + more) % BANK))
        one.patched(states[0])
        one.way_back(states[0])
        for old, data, _ in record.displaced[1:]:
            one.resumed(states[0], old)
            if conditional(data, record.mode):
                one.both_ways(first, old)
            if old < record.window + record.window_len:
                if record.shape == "Jump5Kept":
                    one.kept(states[-1], old)
                if record.shape == "Jump5Trapped":
                    one.trapped(states[-1], old)
        return result


class One:
    """One record on one machine."""

    def __init__(self, machine, record, result):
        self.machine, self.record, self.result = machine, record, result
        self.skips = {}
        self.pushes_flags = any(pushes_flags(data, record.mode) for _, data, _ in record.displaced)
        self.tells_ip = any(stores_x87_environment(data, record.mode) for _, data, _ in record.displaced)
        self.copies = {record.to_slot[old] for old in record.old}
        self.small_count = any(repeated(data, record.mode) for _, data, _ in record.displaced)
        machine.forget()
        slot = {record.slot: record.slot_bytes + HLT}
        original = {record.window: record.text + record.patch.expected[len(record.text) :] + HLT, **slot}
        # Behind the patch lie what of the displaced instructions it leaves, and bytes that nobody should reach.
        patched = {record.window: record.patched_text() + HLT, **slot}
        if record.cave:
            original[record.cave.address] = record.cave.expected
            patched[record.cave.address] = record.cave.new
        machine.view(original, "original")
        machine.view(patched, "patched")
        self.views = {"original": original, "patched": patched}
        self.window_range = (record.window, record.end)
        self.calls = {at: at + len(data) for at, data, _ in record.displaced if is_call(data, record.mode)}
        self.slot_range = (record.slot, record.slot + len(record.slot_bytes))
        for address, data, _ in record.displaced:
            why = for_a_system(data, record.mode)
            if why:
                self.leave_out(address, why)
            elif opcode(data, record.mode)[0] == 0:
                # The emulator takes 128-bit VEX for SSE; addresses are right, lanes are not.
                self.compare_copy(address, data)
            elif not is_branch(data, record.mode):
                # States do not show every bit of an immediate.
                self.compare_plain(address, data)

    # -- what is not executed ------------------------------------------------------------------------------------

    def leave_out(self, old, why):
        """The displaced instruction at `old` is stepped over in both; its copy's bytes are compared instead."""
        record = self.record
        address, data, text = record.displaced[record.old.index(old)]
        goes_on = why not in NEVER_GO_ON
        self.skips[old] = address + len(data) if goes_on else None
        self.skips[record.to_slot[old]] = self.copy_end(old, len(data)) if goes_on else None
        self.result.not_run.append((why, data, text))
        self.compare_copy(old, data)

    def copy_end(self, old, length):
        """Where the copy of the instruction at `old` ends: at the next one's, or after as many bytes."""
        new = self.record.to_slot[old]
        return min((other for other in self.record.to_old if other > new), default=new + length)

    def compare_copy(self, old, data):
        """The bytes of a copy, where executing it would not tell. Such an instruction is never a branch."""
        record = self.record
        new = record.to_slot[old]
        copy = record.slot_bytes[new - record.slot : self.copy_end(old, len(data)) - record.slot]
        if same_instruction(data, copy, new - old, record.mode) or self.same_transaction(old, data, new, copy):
            return
        if len(copy) == len(data):
            self.differ("copy", None, f"{data.hex()} is copied as {copy.hex()}")
        else:
            self.result.unproven += 1

    def compare_plain(self, old, data):
        """The bytes of a copy that is as long as the original: the same, but for one displacement."""
        new = self.record.to_slot[old]
        copy = self.record.slot_bytes[new - self.record.slot : self.copy_end(old, len(data)) - self.record.slot]
        shifted = self.record.mode == 64 and displacement_shifted(data, copy, new - old)
        if len(copy) == len(data) and copy != data and not shifted:
            self.differ("copy", None, f"{data.hex()} is copied as {copy.hex()}")

    def same_transaction(self, old, data, new, copy):
        """Whether these are two XBEGIN with the same fallback, or with its copy."""
        if len(data) != 6 or len(copy) != 6 or data[:2] != b"\xc7\xf8" or copy[:2] != b"\xc7\xf8":
            return False
        mask = self.machine.mask
        target = old + 6 + int.from_bytes(data[2:], "little", signed=True) & mask
        found = new + 6 + int.from_bytes(copy[2:], "little", signed=True) & mask
        return found == (self.record.to_slot[target] if target in self.record.old else target)

    def unsupported(self, outcome):
        """Whether a run ended at an instruction that the emulator does not know; it is then left out."""
        if outcome.end != "fault" or outcome.error != C.UC_ERR_INSN_INVALID:
            return False
        record = self.record
        old = record.to_old.get(outcome.at, outcome.at)
        if old not in record.old or old in self.skips:
            return False
        _, data, text = record.displaced[record.old.index(old)]
        if data[:2] in UD:
            return False  # this is what it does
        self.leave_out(old, "UC_ERR_INSN_INVALID")
        return True

    # -- runs ----------------------------------------------------------------------------------------------------

    def run(self, view, state, start, ranges, marks, skips=None, calls=None):
        machine = self.machine
        machine.view(self.views[view], view)
        self.result.runs += 1
        skips = self.skips if skips is None else skips
        return machine.run(state, start, ranges, marks, skips, LIMIT, self.small_count, calls)

    def in_original(self, state, start):
        record = self.record
        while True:
            ran = self.run("original", state, start, [self.window_range], record.old, None, self.calls)
            if not self.unsupported(ran):
                return ran

    def in_slot(self, state, start):
        return self.run("original", state, start, [self.slot_range], self.copies)

    def whole(self, state):
        """The window against the trampoline; gives the way that was gone."""
        record = self.record
        self.result.states += 1
        expected = self.in_original(state, record.window)
        self.compare("trampoline", state, expected, self.in_slot(state, record.trampoline))
        return expected.path, expected.end, expected.at

    def resumed(self, state, old):
        """A thread that stood on a boundary, sent to the copy that the map names."""
        expected = self.in_original(state, old)
        self.compare(f"from {old:#x}", state, expected, self.in_slot(state, self.record.to_slot[old]))
        return expected.path, expected.end, expected.at

    def way_back(self, state):
        """What the map names besides copies: the way back, which nobody goes if a call stands in front of it."""
        record = self.record
        for old, new in record.pairs:
            if old in record.old:
                continue
            before = self.run("original", state, new, [(0, 0)], (), {})
            found = self.run("original", state, new, [self.slot_range], (), {})
            if (found.end, found.at) != ("exit", old):
                self.differ("way back", state, f"{found.end} at {found.at:#x} instead of {old:#x}")
            if found.written or found.registers != before.registers:
                self.differ("way back", state, self.shown_registers(before, found))

    def both_ways(self, first, old):
        """A conditional branch by itself, with flags and counters until it has gone both ways."""
        ways = set()
        for more in range(MORE_STATES):
            ways.add(self.resumed((first + more) % BANK, old))
            if len(ways) > 1:
                return
        self.result.one_way = True

    def kept(self, state, old):
        """A thread that stood on a boundary, and goes on in the patched text. The window's start is the target
        again: who jumps there leaves."""
        record = self.record
        behind = [(record.window + 1, record.end)]
        expected = self.run("original", state, old, behind, record.old, None, self.calls)
        found = self.run("patched", state, old, behind, record.old, None, self.calls)
        self.compare(f"kept, from {old:#x}", state, expected, found, mapped=False)

    def trapped(self, state, old):
        """A thread that stood on a boundary, and meets the patched text: it traps, with nothing changed."""
        record = self.record
        before = self.run("patched", state, old, [(0, 0)], (), {})
        found = self.run("patched", state, old, [(record.window, record.end)], (), {})
        traps = (found.end, found.at) == ("interrupt 3", old + 1) or (
            (found.end, found.at, found.error) == ("fault", old, C.UC_ERR_INSN_INVALID)
        )
        if not traps or found.written or found.registers != before.registers:
            self.differ(f"trapped, from {old:#x}", state, f"{found.end} at {found.at:#x}")

    def patched(self, state):
        """From the patch to the detour, and nothing else."""
        record = self.record
        ranges = [(record.window, record.window + record.jump_len()), self.slot_range]
        if record.cave:
            ranges.append((record.cave.address, record.cave.address + 5))
        where = "patch"
        if record.slot <= record.detour < record.slot + len(record.slot_bytes):
            self.differ(where, state, "the detour lies in the slot")
            return
        before = self.run("patched", state, record.window, [(0, 0)], (), {})
        found = self.run("patched", state, record.window, ranges, (), {})
        if record.shape == "Breakpoint":
            if (found.end, found.at) != ("interrupt 3", record.window + 1):
                self.differ(where, state, f"no INT3, but {found.end} at {found.at:#x}")
        elif (found.end, found.at) != ("exit", record.detour):
            self.differ(where, state, f"{found.end} at {found.at:#x} instead of the detour {record.detour:#x}")
        if found.written:
            self.differ(where, state, f"it writes {shown_memory(found.written)}")
        if found.registers != before.registers:
            self.differ(where, state, self.shown_registers(before, found))

    # -- comparing -----------------------------------------------------------------------------------------------

    def compare(self, where, state, expected, found, mapped=True):
        record = self.record
        if "interrupt 1" in (expected.end, found.end):
            self.result.single_stepped += 1  # POPF took the trap flag from random memory
            return
        near = self.writes_near(expected.written)
        if near:
            # Unicorn begins an instruction again that writes to its own page of code, so nothing can be compared.
            self.result.writes_code = True
            inside = [at for at in near if record.window <= at < record.end]
            if inside:
                why = f"the function writes its own displaced instructions, at {inside[0]:#x}: the copy stays as it is"
                self.differ(where, state, why)
            return
        at = found.at
        if mapped and found.end != "exit":
            at = record.to_old.get(at, at)
        wrong = []
        if (expected.end, expected.at, expected.error) != (found.end, at, found.error):
            original = f"{expected.end} at {expected.at:#x}"
            wrong.append(f"the original: {original}; the slot: {found.end} at {found.at:#x}")
        if found.end == "exit" and mapped:
            wrong += self.bad_exit(found.at)
        if self.pushes_flags:
            # Unicorn 2.1.4 loses flags between PUSHF and a jump (sub rsp, 0x18; pushfq; jmp $+2 loses AF, sub; pushf;
            # stc; jmp loses CF), and the copy has a jump behind it. What is pushed is compared all the same.
            self.result.flags_unknown = True
            for outcome in (expected, found):
                outcome.registers = self.machine.registers.without_status(outcome.registers)
        if expected.registers != found.registers:
            wrong.append(self.shown_registers(expected, found))
        if self.tells_ip and expected.written != found.written:
            # FNSTENV tells where the last x87 instruction stood. Its copy's address is there now; nothing that
            # could be written in its place changes what the processor remembers.
            self.result.x87_ip += self.map_x87_ip(expected.written, found.written)
        if expected.written != found.written:
            missing = {key: value for key, value in expected.written.items() if found.written.get(key) != value}
            other = {key: value for key, value in found.written.items() if expected.written.get(key) != value}
            wrong.append(f"memory: the original writes {shown_memory(missing)}; the slot {shown_memory(other)}")
        low, high = self.slot_range
        read = {one for one in found.read if not low <= one[0] < high}
        if expected.read != read:
            some = [f"{sorted(one)[:4]}" for one in (expected.read - read, read - expected.read)]
            wrong.append(f"it reads elsewhere: the original {some[0]}; the slot {some[1]}")
        path = tuple(record.to_old.get(at, at) for at in found.path) if mapped else found.path
        if not wrong and path != expected.path:
            wrong.append("another path through the instructions")
        for why in wrong:
            self.differ(where, state, why)

    def writes_near(self, written):
        """Written addresses in the pages of the displaced instructions."""
        pages = (self.record.window >> 12, self.record.end - 1 >> 12)
        return [at for at in written if at >> 12 in pages]

    def bad_exit(self, at):
        """Whether an exit leads to bytes that the patch has overwritten."""
        record = self.record
        if record.entry <= at <= record.window:
            self.result.reenters += 1
            return []
        if not record.window < at < record.window + len(record.patch.new):
            return []
        if at in record.old and record.shape in ("Jump5Kept", "Jump5Trapped"):
            return []
        return [f"the slot leaves into the patched bytes, to {at:#x}"]

    def map_x87_ip(self, expected, found):
        """Turns the last x87 instruction's address in the slot back into the original's."""
        pairs = [(old.to_bytes(8, "little")[:4], new.to_bytes(8, "little")[:4]) for old, new in self.record.pairs]
        mapped = False
        for start in [address for address in expected if address in found and expected[address] != found[address]]:
            for at in range(start - 3, start + 1):
                before = bytes(expected.get(at + n, 0) for n in range(4))
                after = bytes(found.get(at + n, 0) for n in range(4))
                if before != after and (before, after) in pairs:
                    found.update({at + n: before[n] for n in range(4)})
                    mapped = True
        return mapped

    def shown_registers(self, expected, found):
        named = self.machine.registers.named
        before, after = named(expected.registers), named(found.registers)
        different = [f"{name} {before[name]:#x} became {after[name]:#x}" for name in before if before[name] != after[name]]
        return "registers: " + ", ".join(different)

    def differ(self, where, state, why):
        self.result.differences.append((where, state, why))


def same_instruction(data, copy, moved, mode):
    """Whether `copy` is `data`, or `data` with one 32-bit displacement made smaller by the distance moved."""
    if copy == data:
        # In 64-bit code this also holds for an operand relative to RIP that was forgotten: see the tests.
        return not relative_to_ip(data, mode)
    return mode == 64 and len(copy) == len(data) and displacement_shifted(data, copy, moved)


def displacement_shifted(data, copy, moved):
    """Whether `copy` is `data` with one 32-bit displacement made smaller by the distance moved."""
    for at in range(1, len(data) - 3):
        if data[:at] == copy[:at] and data[at + 4 :] == copy[at + 4 :]:
            old, new = (int.from_bytes(one[at : at + 4], "little", signed=True) for one in (data, copy))
            if old - new == moved:
                return True
    return False


def relative_to_ip(data, mode):
    """Whether an instruction that the emulator does not know may have an operand relative to RIP."""
    if mode == 32:
        return False
    length = {0xC4: 3, 0xC5: 2, 0x62: 4, 0x8F: 3}.get(data[0])
    if length is None:
        table, _, modrm, prefixes = opcode(data, mode)
        if table == 1 and modrm & 0xC7 != 5:
            return False
        at = len(prefixes) + (1 if table == 1 else 2 if table == 2 else 3)
    else:
        at = length + 1
    return at < len(data) and data[at] & 0xC7 == 5 and len(data) >= at + 5


def shown_memory(cells):
    """Written bytes as runs of consecutive addresses."""
    runs = []
    for address in sorted(cells):
        if runs and runs[-1][0] + len(runs[-1][1]) == address:
            runs[-1][1].append(cells[address])
        else:
            runs.append((address, bytearray([cells[address]])))
    return ", ".join(f"[{address:#x}] = {bytes(data).hex()}" for address, data in runs) or "nothing"
