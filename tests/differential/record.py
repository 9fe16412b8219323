"""A plan as `kdetour scan --plans` and `kdetour inspect --json` write it."""

SHAPES = ("WholeInstruction", "Jump5Kept", "Jump5Trapped", "ShortJump", "Jump5", "Jump14", "Breakpoint")


def number(value):
    return value if isinstance(value, int) else int(value, 16)


class Patch:
    def __init__(self, given):
        self.address = number(given["address"])
        self.expected = bytes.fromhex(given["expected"])
        self.new = bytes.fromhex(given["new"])


class Record:
    """One accepted plan. `old` and `new` are the boundaries of the displaced instructions and of their copies."""

    def __init__(self, given):
        self.name = given.get("name") or "?"
        self.file = given.get("file") or ""
        self.mode = int(given.get("mode", 64))
        self.shape = given["shape"]
        self.window = number(given["window"]["address"])
        self.window_len = int(given["window"]["len"])
        self.entry = number(given.get("entry", self.window))
        self.detour = number(given["detour"])
        self.displaced = [
            (number(one["address"]), bytes.fromhex(one["bytes"]), one.get("text", "")) for one in given["displaced"]
        ]
        self.slot = number(given["slot"]["address"])
        self.slot_bytes = bytes.fromhex(given["slot"]["bytes"])
        self.trampoline = self.slot + int(given["slot"]["trampoline_offset"])
        self.patch = Patch(given["patch"])
        self.cave = Patch(given["cave"]) if given.get("cave") else None
        pairs = [(number(old), number(new)) for old, new in given["ip_map"]]
        self.to_slot = dict(pairs)
        self.to_old = {new: old for old, new in pairs}
        self.pairs = pairs
        self.old = [address for address, _, _ in self.displaced]
        self.text = b"".join(data for _, data, _ in self.displaced)
        self.end = self.window + len(self.text)

    def jump_len(self):
        """Bytes of the jump, or of what stands for it, at the window."""
        return {"ShortJump": 2, "Jump14": 14, "Breakpoint": 1}.get(self.shape, 5)

    def patched_text(self):
        """The displaced bytes, and the window's padding behind them, once the patch is there."""
        return self.patch.new + self.text[len(self.patch.new) :]

    def faults(self):
        """What is wrong with the record itself, before anything is run."""
        patch, wrong = self.patch, []
        if self.shape not in SHAPES:
            wrong.append(f"no such shape: {self.shape}")
        if patch.address != self.window or len(patch.new) != self.window_len:
            wrong.append("the patch is not the window")
        # A kept jump over a first instruction of one byte may change that byte alone.
        if len(patch.new) != self.jump_len() and not (self.shape == "Jump5Kept" and len(patch.new) == 1):
            wrong.append(f"a patch of {len(patch.new)} bytes for {self.shape}")
        if len(patch.expected) < len(patch.new):
            wrong.append("the patch expects fewer bytes than it writes")
        common = min(len(patch.expected), len(self.text))
        if patch.expected[:common] != self.text[:common]:
            wrong.append("the patch expects other bytes than those displaced")
        at = self.window
        for address, data, _ in self.displaced:
            if address != at or not data:
                wrong.append("the displaced instructions do not follow one another")
                break
            at += len(data)
        if not self.displaced:
            wrong.append("nothing is displaced")
        elif self.old[-1] >= self.window + self.window_len:
            wrong.append("an instruction behind the window is displaced")
        missing = [address for address in self.old if address not in self.to_slot]
        if missing:
            wrong.append(f"the map has no copy of {missing[0]:#x}")
        if len(self.to_old) != len(self.pairs) or len(self.to_slot) != len(self.pairs):
            wrong.append("the map is not one to one")
        if any(not self.slot <= new < self.slot + len(self.slot_bytes) for _, new in self.pairs):
            wrong.append("the map leads out of the slot")
        patched_end = max(self.end, self.window + len(patch.new))
        if self.slot < patched_end and self.window < self.slot + len(self.slot_bytes):
            wrong.append("the slot lies on the window")
        if (self.shape == "ShortJump") != (self.cave is not None):
            wrong.append("a cave belongs to a ShortJump, and to nothing else")
        if self.cave:
            cave = self.cave
            if len(cave.new) != 5 or len(cave.expected) != 5:
                wrong.append("a cave has five bytes")
            if cave.address < patched_end and self.window < cave.address + 5:
                wrong.append("the cave lies on the window")
        wrong += self.interior_faults()
        return wrong

    def traps(self):
        """What a byte must be to trap: INT3; in 64-bit code also an opcode that is invalid there."""
        invalid = b"\x06\x07\x0e\x16\x17\x1e\x1f\x27\x2f\x37\x3f\x60\x61\x82\x9a\xce\xd4\xd5\xea"
        return b"\xcc" + (invalid if self.mode == 64 else b"")

    def interior_faults(self):
        """What a thread finds that was parked on an interior boundary."""
        patch, wrong = self.patch.new, []
        for address in self.old[1:]:
            at = address - self.window
            if at >= len(patch):
                continue
            if self.shape == "Jump5Trapped" and patch[at] not in self.traps():
                wrong.append(f"nothing traps at the interior boundary {address:#x}")
            if self.shape == "Jump5Kept" and patch[at:] != self.patch.expected[at : len(patch)]:
                wrong.append(f"the bytes at the interior boundary {address:#x} are not kept")
            if self.shape == "ShortJump":
                wrong.append(f"a ShortJump overwrites the interior boundary {address:#x}")
            if self.shape == "WholeInstruction":
                wrong.append(f"a WholeInstruction has the interior boundary {address:#x}")
        return wrong


PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))


def opcode(data, mode):
    """The map (1, 2 = 0F, 3 = 0F38, 4 = 0F3A, 0 = VEX/EVEX) and opcode of an instruction, its ModRM byte if there is
    one behind it, and its prefixes."""
    at = 0
    while at < len(data) and (data[at] in PREFIXES or mode == 64 and 0x40 <= data[at] <= 0x4F):
        at += 1
    prefixes, rest = data[:at], data[at:] + b"\0\0\0"
    if rest[0] == 0x0F:
        return (2, rest[1], rest[2], prefixes) if rest[1] not in (0x38, 0x3A) else (3, rest[2], rest[3], prefixes)
    if rest[0] in (0xC4, 0xC5, 0x62) and (mode == 64 or rest[1] >= 0xC0):
        return 0, rest[0], rest[1], prefixes
    return 1, rest[0], rest[1], prefixes


def conditional(data, mode):
    """Whether an instruction is jcc, loop or jcxz: both ways should be gone."""
    table, code, _, _ = opcode(data, mode)
    return table == 1 and (0x70 <= code <= 0x7F or 0xE0 <= code <= 0xE3) or table == 2 and 0x80 <= code <= 0x8F


def repeated(data, mode):
    """Whether an instruction is a string instruction with REP."""
    table, code, _, prefixes = opcode(data, mode)
    return table == 1 and (0xA4 <= code <= 0xA7 or 0xAA <= code <= 0xAF) and (0xF2 in prefixes or 0xF3 in prefixes)


def stores_x87_environment(data, mode):
    """Whether an instruction writes where the last x87 instruction stood: fnstenv, fnsave, fxsave."""
    table, code, modrm, _ = opcode(data, mode)
    memory = modrm < 0xC0
    if table == 1:
        return code in (0xD9, 0xDD) and modrm >> 3 & 7 == 6 and memory
    return table == 2 and code == 0xAE and modrm >> 3 & 7 == 0 and memory


def is_call(data, mode):
    """Whether an instruction is a near call."""
    table, code, modrm, _ = opcode(data, mode)
    return table == 1 and (code == 0xE8 or code == 0xFF and modrm >> 3 & 7 == 2)


def is_branch(data, mode):
    """Whether an instruction is a near branch, which is copied in its own way."""
    table, code, modrm, _ = opcode(data, mode)
    transaction = table == 1 and code == 0xC7 and modrm == 0xF8
    return conditional(data, mode) or is_call(data, mode) or table == 1 and code in (0xE9, 0xEB) or transaction


def pushes_flags(data, mode):
    """Whether an instruction is PUSHF."""
    return opcode(data, mode)[:2] == (1, 0x9C)


NEVER_GO_ON = ("far return", "far jump", "system return")


def for_a_system(data, mode):
    """Why an instruction is not executed here: it needs a system around it, or does not do the same thing twice."""
    table, code, modrm, _ = opcode(data, mode)
    if table == 1:
        if code in (0x6C, 0x6D, 0x6E, 0x6F, 0xE4, 0xE5, 0xE6, 0xE7, 0xEC, 0xED, 0xEE, 0xEF):
            return "in/out"
        if code == 0xF4:
            return "hlt"
        if code in (0xC6, 0xC7) and modrm == 0xF8:
            return "transaction"  # the emulator takes it for MOV
        if code in (0xCA, 0xCB, 0xCF):
            return "far return"
        if code == 0x8E or mode == 32 and code in (0x07, 0x17, 0x1F):
            return "segment register"
        if mode == 32 and code in (0x9A, 0xC4, 0xC5) or code == 0xFF and modrm >> 3 & 7 == 3:
            return "far pointer"
        if mode == 32 and code == 0xEA or code == 0xFF and modrm >> 3 & 7 == 5:
            return "far jump"
    if table == 2:
        if code in (0x05, 0x34):
            return "system call"
        if code in (0x07, 0x35):
            return "system return"
        if code in (0x06, 0x08, 0x09, 0x30, 0x32, 0x33) or 0x20 <= code <= 0x23:
            return "system register"
        if code == 0x00 or code == 0x01 and modrm not in (0xCA, 0xCB):
            return "system register"
        if code in (0xA1, 0xA9, 0xB2, 0xB4, 0xB5):
            return "segment register"
        if code == 0x31 or code == 0xC7 and modrm >= 0xF0:
            return "time or random numbers"
        if code == 0xAE and modrm >> 3 & 7 in (1, 4, 5, 6) and modrm < 0xC0:
            return "xsave area"
    return None
