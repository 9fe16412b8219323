"""An emulated processor whose whole memory exists, and which tells what a piece of code did.

Unicorn translates addresses through a hook here, so a page comes into being when it is first touched, at any address
of the address space. Its contents follow from its address alone: two runs that read the same address read the same.
All pages lie in one buffer of this process, so nothing has to be mapped, unmapped or copied between runs.
"""

import ctypes
import random

from unicorn import UC_ARCH_X86, UC_MODE_32, UC_MODE_64, Uc, UcError
from unicorn import unicorn_const as C
from unicorn import x86_const as X
from unicorn.unicorn_py3.unicorn import uclib

PAGE = 4096
# Pages of code, which keep their place while a record is examined; then pages of data, given out anew in each run.
CODE_PAGES = 48
DATA_PAGES = 208
# What is not overlaid by a record's bytes. A page is a cut from this, at an offset that follows from its address.
NOISE_LEN = 1 << 16
# The fill behind code: HLT ends a translation block.
HLT = b"\xf4" * 16

FETCH = C.UC_MEM_FETCH

FLAG_STATUS = 0x8D5  # CF PF AF ZF SF OF
FLAG_DIRECTION = 0x400

GDT = 0x00001000  # 32-bit: where the descriptors of FS and GS lie
FS_BASE_32, GS_BASE_32 = 0x31415000, 0x27182000


def general(mode):
    names = "AX BX CX DX SI DI BP SP".split()
    if mode == 32:
        return ["E" + name for name in names]
    return ["R" + name for name in names] + [f"R{n}" for n in range(8, 16)]


def noise(rng):
    """Memory as tests of it like to find it: zeros and small numbers among wild values."""
    words = []
    for _ in range((NOISE_LEN + PAGE) // 8):
        choice = rng.random()
        if choice < 0.3:
            words.append(bytes(8))
        elif choice < 0.45:
            words.append(rng.randrange(1, 64).to_bytes(8, "little"))
        else:
            words.append(rng.randbytes(8))
    return b"".join(words)


class Registers:
    """The registers that are compared, read by one call into one buffer."""

    def __init__(self, mode):
        word = 4 if mode == 32 else 8
        layout = [(name, word) for name in general(mode)] + [("EFLAGS", 4)]
        if mode == 64:
            layout += [("FS_BASE", 8), ("GS_BASE", 8)]
        layout += [(f"XMM{n}", 16) for n in range(8 if mode == 32 else 16)]
        layout += [("MXCSR", 4), ("FPSW", 2), ("FPCW", 2), ("FPTAG", 2)]
        layout += [(f"FP{n}", 10) for n in range(8)]
        self.layout = []
        at = 0
        for name, size in layout:
            self.layout.append((name, at, size))
            at += 16
        self.buffer = (ctypes.c_uint8 * at)()
        base = ctypes.addressof(self.buffer)
        count = len(layout)
        self.count = count
        self.ids = (ctypes.c_int * count)(*[getattr(X, "UC_X86_REG_" + name) for name, _ in layout])
        self.pointers = (ctypes.c_void_p * count)(*[base + offset for _, offset, _ in self.layout])

    def read(self, uc):
        if uclib.uc_reg_read_batch(uc._uch, self.ids, self.pointers, self.count) != C.UC_ERR_OK:
            raise RuntimeError("registers cannot be read")
        return bytes(self.buffer)

    def without_status(self, blob):
        """The same without the status flags."""
        at = next(at for name, at, _ in self.layout if name == "EFLAGS")
        flags = int.from_bytes(blob[at : at + 4], "little") & ~FLAG_STATUS
        return blob[:at] + flags.to_bytes(4, "little") + blob[at + 4 :]

    def named(self, blob):
        return {
            name: int.from_bytes(blob[at : at + size], "little") for name, at, size in self.layout
        }


class Outcome:
    """What one run did: how it ended and where, registers, every byte that it wrote, and where it read."""

    __slots__ = ("end", "at", "registers", "written", "read", "path", "error")

    def __init__(self, end, at, registers, written, read, path, error=None):
        self.end, self.at, self.registers = end, at, registers
        self.written, self.read, self.path, self.error = written, read, path, error


class Machine:
    def __init__(self, mode, seed, states):
        self.mode = mode
        self.mask = 0xFFFF_FFFF if mode == 32 else 0xFFFF_FFFF_FFFF_FFFF
        self.uc = Uc(UC_ARCH_X86, UC_MODE_32 if mode == 32 else UC_MODE_64)
        self.uc.ctl_set_tlb_mode(C.UC_TLB_VIRTUAL)
        total = (CODE_PAGES + DATA_PAGES) * PAGE
        self.buffer = (ctypes.c_uint8 * total)()
        self.memory = memoryview(self.buffer).cast("B")
        self.uc.mem_map_ptr(0, total, C.UC_PROT_ALL, self.buffer)
        self.noise = noise(random.Random(f"noise {seed}"))
        self.registers = Registers(mode)
        self.ip = X.UC_X86_REG_EIP if mode == 32 else X.UC_X86_REG_RIP
        self.forget()
        self.uc.hook_add(C.UC_HOOK_TLB_FILL, self.on_fill)
        self.uc.hook_add(C.UC_HOOK_CODE, self.on_code)
        self.uc.hook_add(C.UC_HOOK_MEM_WRITE, self.on_write)
        self.uc.hook_add(C.UC_HOOK_MEM_READ, self.on_read)
        self.uc.hook_add(C.UC_HOOK_INTR, self.on_interrupt)
        if mode == 32:
            self.load_segments()
        self.start_state = self.uc.context_save()
        self.bank = [self.make_state(random.Random(f"state {seed} {mode} {n}"), n) for n in range(states)]

    # -- states ------------------------------------------------------------------------------------------------

    def load_segments(self):
        """FS and GS with bases that are not zero, so that a lost prefix shows."""

        def descriptor(base, access):
            return (
                0xFFFF | (base & 0xFFFFFF) << 16 | access << 40 | 0xCF << 48 | (base >> 24) << 56
            ).to_bytes(8, "little")

        table = bytes(8) + descriptor(0, 0x9B) + descriptor(0, 0x93)
        table += descriptor(FS_BASE_32, 0x93) + descriptor(GS_BASE_32, 0x93)
        self.view({GDT: table}, "gdt")
        self.uc.reg_write(X.UC_X86_REG_GDTR, (0, GDT, len(table) - 1, 0))
        for register, selector in (("CS", 8), ("SS", 16), ("DS", 16), ("ES", 16), ("FS", 24), ("GS", 32)):
            self.uc.reg_write(getattr(X, "UC_X86_REG_" + register), selector)
        self.forget()

    def make_state(self, rng, n):
        """State n: 0 mod 3 wild values, 1 mod 3 small and equal ones, 2 mod 3 pointers."""
        uc = self.uc
        uc.context_restore(self.start_state)
        kind = n % 3
        word = self.mask

        def value():
            choice = rng.random()
            if kind == 1 and choice < 0.75:
                return rng.choice((0, 0, 1, 2, 3, 0x7F, 0x80, 0xFF, word, word - 1, word >> 1, (word >> 1) + 1))
            if kind == 2 and choice < 0.75 or choice < 0.2:
                page = rng.choice((0x3_5000, 0x0012_3000, 0x7100_0000, 0x7310_0000))
                if self.mode == 64 and rng.random() < 0.6:
                    page = rng.choice((0x5A5A_1234_5000, 0x7E01_2345_6000, 0xFFFF_8880_1234_0000))
                return page + rng.randrange(0x4000)
            return rng.getrandbits(64) & word

        for name in general(self.mode):
            uc.reg_write(getattr(X, "UC_X86_REG_" + name), value())
        stack = 0x7FFC_1234_0000 if self.mode == 64 else 0xBFFE_0000
        # Aligned as at a function's entry, mostly; sometimes close to a page's end.
        stack += rng.choice((0x808, 0x808, 0x008, 0xFF8, 0x804 + rng.randrange(16)))
        uc.reg_write(X.UC_X86_REG_ESP if self.mode == 32 else X.UC_X86_REG_RSP, stack)
        if kind == 1 or rng.random() < 0.5:
            # Counters: 0 and 1 decide what loop and jecxz do.
            uc.reg_write(X.UC_X86_REG_ECX if self.mode == 32 else X.UC_X86_REG_RCX, rng.choice((0, 1, 2, 5)))
        flags = rng.getrandbits(12) & FLAG_STATUS | 2
        if rng.random() < 0.125:
            flags |= FLAG_DIRECTION
        uc.reg_write(X.UC_X86_REG_EFLAGS, flags)
        if self.mode == 64:
            uc.reg_write(X.UC_X86_REG_FS_BASE, 0x7F12_3456_7000 + rng.randrange(0x1000))
            uc.reg_write(X.UC_X86_REG_GS_BASE, 0xFFFF_8880_0BAD_0000 + rng.randrange(0x1000))
        for number in range(8 if self.mode == 32 else 16):
            lanes = rng.getrandbits(128) if rng.random() < 0.7 else 0x3FF0_0000_0000_0000_4000_0000_3F80_0000
            uc.reg_write(getattr(X, f"UC_X86_REG_XMM{number}"), lanes)
        uc.reg_write(X.UC_X86_REG_MXCSR, 0x1F80)
        uc.reg_write(X.UC_X86_REG_FPCW, 0x37F)
        for number in range(8):
            uc.reg_write(getattr(X, f"UC_X86_REG_FP{number}"), (rng.getrandbits(63) | 1 << 63, 0x3FF0 + number))
        uc.reg_write(X.UC_X86_REG_FPTAG, rng.choice((0xFFFF, 0xFFF0, 0x0000)))
        return uc.context_save()

    # -- memory ------------------------------------------------------------------------------------------------

    def forget(self):
        """A new record: no code page is known, and nothing that was translated counts any more."""
        self.code = {}  # (view, page) -> number
        self.overlay = {}  # page -> [(offset, bytes)] of the current view
        self.views = {}
        self.current = None
        self.pages = {}  # page -> number, of this run
        self.names = [0] * (CODE_PAGES + DATA_PAGES)  # number -> page
        self.next_data = CODE_PAGES
        self.uc.ctl_flush_tb()

    def view(self, pieces, name):
        """Makes {address: bytes} the code that is there."""
        if name not in self.views:
            overlay = {}
            for address, data in pieces.items():
                for at in range(0, len(data)):
                    where = (address + at) & self.mask
                    overlay.setdefault(where & ~0xFFF, {})[where & 0xFFF] = data[at]
            cooked = {}
            for page, cells in overlay.items():
                runs = []
                for offset in sorted(cells):
                    if runs and runs[-1][0] + len(runs[-1][1]) == offset:
                        runs[-1][1].append(cells[offset])
                    else:
                        runs.append((offset, bytearray([cells[offset]])))
                cooked[page] = runs
            self.views[name] = cooked
        self.overlay = self.views[name]
        self.current = name

    def place(self, page):
        runs = self.overlay.get(page)
        if runs is None:
            number = self.next_data
            if number == CODE_PAGES + DATA_PAGES:
                raise RuntimeError("a run touches too many pages")
            self.next_data += 1
        else:
            number = self.code.setdefault((self.current, page), len(self.code))
            if number >= CODE_PAGES:
                raise RuntimeError("a record has too many pages of code")
        mixed = page * 0x9E37_79B9_7F4A_7C15 >> 20
        cut = (mixed ^ mixed >> 17) % NOISE_LEN & ~7
        at = number * PAGE
        memory = self.memory
        memory[at : at + PAGE] = self.noise[cut : cut + PAGE]
        for offset, data in runs or ():
            memory[at + offset : at + offset + len(data)] = data
        self.pages[page] = number
        self.names[number] = page
        return number

    # -- hooks -------------------------------------------------------------------------------------------------

    def on_fill(self, _uc, address, access, result, _data):
        page = address & self.mask & ~0xFFF
        is_code = page in self.overlay
        if access == FETCH and not is_code:
            self.left = True
            return False
        number = self.pages.get(page)
        if number is None:
            number = self.place(page)
        result.paddr = number * PAGE
        result.perms = C.UC_PROT_ALL if is_code else C.UC_PROT_READ | C.UC_PROT_WRITE
        return True

    def on_code(self, uc, address, _size, _data):
        address &= self.mask  # it comes sign-extended where 32-bit code wraps
        if not self.low <= address < self.high and not self.elsewhere(address):
            self.end = ("exit", address)
        elif self.calls and self.path and self.calls.get(self.path[-1], address) != address:
            # What is called is a function, even if it is this one, and begins with what is stepped over.
            self.end = ("exit", address)
        elif address in self.skips:
            self.end = ("skip", address)
        elif address in self.marks:
            if len(self.path) == self.limit:
                self.end = ("limit", address)
            else:
                self.path.append(address)
                return
        elif self.strict:
            self.end = ("exit", address)  # the middle of an instruction
        else:
            self.others += 1
            if self.others <= 16 * self.limit:
                return
            self.end = ("limit", address)
        uc.emu_stop()

    def elsewhere(self, address):
        return any(low <= address < high for low, high in self.more)

    def on_write(self, _uc, _access, address, size, value, _data):
        address = self.names[address >> 12] | address & 0xFFF
        written = self.written
        for at in range(size):
            written[(address + at) & self.mask] = value >> 8 * at & 0xFF

    def on_read(self, _uc, _access, address, size, _value, _data):
        self.read.add((self.names[address >> 12] | address & 0xFFF, size))

    def on_interrupt(self, uc, number, _data):
        self.end = (f"interrupt {number}", None)
        uc.emu_stop()

    # -- running -----------------------------------------------------------------------------------------------

    def run(self, state, start, ranges, marks, skips, limit, small_count=False, calls=None):
        """Runs from `start` until control leaves `ranges`. `marks` are the addresses that count as steps; with
        `calls`, which maps calls to what follows them, nothing else may be executed, and a call leaves. `skips` maps instructions that are not executed to what comes behind them, if they go on there."""
        uc = self.uc
        uc.context_restore(self.bank[state])
        uc.ctl(C.UC_CTL_TLB_FLUSH, C.UC_CTL_IO_WRITE)
        self.pages = {}
        self.next_data = CODE_PAGES
        (self.low, self.high), *self.more = ranges
        self.marks, self.skips, self.limit = marks, skips, limit
        self.calls, self.strict = calls, calls is not None
        self.written, self.read, self.path, self.others, self.left = {}, set(), [], 0, False
        if small_count:
            counter = X.UC_X86_REG_ECX if self.mode == 32 else X.UC_X86_REG_RCX
            uc.reg_write(counter, uc.reg_read(counter) & 7)
        at, error = start, None
        while True:
            self.end = None
            try:
                uc.emu_start(at, 0)
            except UcError as raised:
                if self.end is None:
                    error = raised.errno
            if self.end is None and error is None:
                self.end = ("stopped", None)
            if self.end and self.end[0] == "skip":
                if self.end[1] in marks:
                    self.path.append(self.end[1])
                at = skips[self.end[1]]
                if at is None:
                    self.end = ("left out", self.end[1])
                    break
                if len(self.path) > limit:
                    self.end = ("limit", at)
                    break
                continue
            break
        here = uc.reg_read(self.ip) & self.mask
        if self.left:
            # An address at which nothing of the record's code lies.
            kind, where, error = "exit", here, None
        elif error is not None:
            kind, where = "fault", here
        else:
            kind, where = self.end
            where = here if where is None else where
        return Outcome(kind, where, self.registers.read(uc), self.written, self.read, tuple(self.path), error)
