#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Loads a driver in the emulator speakeasy, runs DriverEntry and DriverUnload, and prints what the driver prints.

    emulate.py DRIVER.sys

What the emulator lacks of NT is here: one processor, and a kernel whose only function is the one that the drivers detour. Text is written
through the mapping that MmMapLockedPagesSpecifyCache gives, which is one of the same memory; a write to the text itself fails. Calls are
asked for their IRQL. At the end memory has been given back, and the text is what it was. Then it prints how many instructions are executed
between each `cli` and the `sti` behind it: how long interrupts are off, and other processors would be parked. An instruction with `rep`
counts more than once. The last line says how many bytes of the stack were used, of the 24 KB that a thread of the kernel has, or of 12.

It ends with 0 if nothing was wrong, else with 1 behind lines with FAIL.
"""

import json
import logging
import struct
import sys
import traceback
from pathlib import Path

import capstone
import pefile
import speakeasy
import unicorn
from speakeasy import Speakeasy
from speakeasy.binemu import BinaryEmulator

PAGE = 4096
POOL = 16 << 20
PASSIVE, APC, DISPATCH = 0, 1, 2
CLI, STI = 0xFA, 0xFB
# What the stack is full of before the driver runs.
PAINT = b"\xa7"

# The kernel's image: headers, and behind them one function. mov eax, 156250 / ret, and the padding of a function's end.
KERNEL_CODE = b"\xb8\x5a\x62\x02\x00\xc3" + b"\xcc" * 26


def kernel_image(machine, base):
    """A loaded ntoskrnl.exe: its headers tell one section, .text."""
    wide = machine == 0x8664
    image = bytearray(2 * PAGE)
    image[0:2] = b"MZ"
    struct.pack_into("<I", image, 0x3C, 0x80)
    optional = 0xF0 if wide else 0xE0
    struct.pack_into("<4sHHIIIHH", image, 0x80, b"PE\0\0", machine, 1, 0, 0, 0, optional, 0x22 if wide else 0x102)
    at = 0x98
    if wide:
        struct.pack_into("<HBBIIIIIQII", image, at, 0x20B, 0, 0, PAGE, 0, 0, PAGE, PAGE, base, PAGE, 0x200)
    else:
        struct.pack_into("<HBBIIIIIIIII", image, at, 0x10B, 0, 0, PAGE, 0, 0, PAGE, PAGE, 0, base, PAGE, 0x200)
    struct.pack_into("<II", image, at + 56, 2 * PAGE, PAGE)
    struct.pack_into("<I", image, at + (108 if wide else 92), 16)
    # Code that can be executed and read, and stays.
    struct.pack_into("<8sIIIIIIHHI", image, at + optional, b".text", len(KERNEL_CODE), PAGE, PAGE, PAGE, 0, 0, 0, 0, 0x60000020)
    image[PAGE : PAGE + len(KERNEL_CODE)] = KERNEL_CODE
    return bytes(image)


class Nt:
    """What is asked of NT, for one driver."""

    def __init__(self, path):
        logger = logging.getLogger("emulate")
        logger.setLevel(logging.CRITICAL)
        self.pe = pefile.PE(path, fast_load=False)
        self.machine = self.pe.FILE_HEADER.Machine
        self.wide = self.machine == 0x8664
        # As much of a stack as a thread of the kernel has.
        stack = (24 if self.wide else 12) << 10
        self.stack_size, self.stack_end, self.stack_start = stack, 0, 0

        def alloc_stack(emu, size, alloc=BinaryEmulator.alloc_stack):
            self.stack_end, pointer = alloc(emu, stack)
            return self.stack_end, pointer

        BinaryEmulator.alloc_stack = alloc_stack
        config = json.loads((Path(speakeasy.__file__).parent / "configs/default.json").read_text())
        config["timeout"] = 600
        self.se = Speakeasy(config=config, logger=logger)
        self.module = self.se.load_module(path)
        self.pointer = 8 if self.wide else 4
        self.base = self.module.get_base()
        self.size = self.pe.OPTIONAL_HEADER.SizeOfImage
        self.high, self.ipi = (15, 14) if self.wide else (31, 29)
        self.clock = 0
        self.pool, self.mdls, self.aliases = {}, {}, {}
        self.threads, self.waiting, self.handles = {}, [], 0x400
        self.parked, self.counting, self.failures = [], None, []
        self.decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64 if self.wide else capstone.CS_MODE_32)
        self.decoder.detail = True
        self.driver_object = None
        self.kernel = self.se.mem_alloc(2 * PAGE, base=self.base + 0x100000)
        self.se.mem_write(self.kernel, kernel_image(self.machine, self.kernel))
        self.room = self.se.mem_alloc(POOL, tag="pool") + 15 & ~15
        self.end_of_pool = self.room + POOL - 16
        engine = self.se.emu.emu_eng.emu
        self.calls = self.all_calls()
        self.link_kernel(engine)
        engine.hook_add(unicorn.UC_HOOK_BLOCK, self.on_block)
        entry = self.base + self.pe.OPTIONAL_HEADER.AddressOfEntryPoint
        engine.hook_add(unicorn.UC_HOOK_CODE, self.on_entry, None, entry, entry)
        text = [s for s in self.pe.sections if s.Characteristics & 0x20000000]
        for section in text:
            start = self.base + section.VirtualAddress
            code = bytes(self.se.mem_read(start, section.Misc_VirtualSize))
            for at in (at for at, byte in enumerate(code) if byte in (CLI, STI)):
                # Called where an instruction begins alone: then it is one of these.
                engine.hook_add(unicorn.UC_HOOK_CODE, self.on_mask, None, start + at, start + at)
            self.se.add_mem_write_hook(self.on_write_to_text, start, start + section.Misc_VirtualSize - 1)
        self.se.add_mem_write_hook(self.on_write_to_text, self.kernel, self.kernel + 2 * PAGE - 1)
        self.text = [(self.base + s.VirtualAddress, s.Misc_VirtualSize) for s in text if b"kdslot" not in s.Name]
        self.text.append((self.kernel, 2 * PAGE))

    def link_kernel(self, engine):
        """Every import leads to code: that of the kernel's one function, of the level, which is called thousands of times, and of a
        return, before which the call is done here. The emulator's own way, an address where nothing is, takes a hundred times longer."""
        code = self.se.mem_alloc(2 * PAGE, tag="calls")
        self.level = code + 0x100
        self.put(self.level, PASSIVE, 1)
        self.places, at = {"KeQueryTimeIncrement": self.kernel + PAGE}, code

        def variable(end):
            return (self.level - end if self.wide else self.level).to_bytes(4, "little")

        # mov al, cl / xchg [level], al / movzx eax, al / ret
        raising = lambda at: b"\x88\xc8\x86\x05" + variable(at + 8) + b"\x0f\xb6\xc0\xc3"
        # mov [level], cl / ret
        lowering = lambda at: b"\x88\x0d" + variable(at + 6) + b"\xc3"
        # movzx eax, byte [level] / ret
        telling = lambda at: b"\x0f\xb6\x05" + variable(at + 7) + b"\xc3"
        routines = [("KfRaiseIrql", raising), ("KeLowerIrql", lowering), ("KfLowerIrql", lowering), ("KeGetCurrentIrql", telling)]
        for name, routine in routines:
            self.se.mem_write(at, routine(at))
            self.places[name] = at
            at += 16
        at = code + PAGE
        self.returns = {}
        for name, (count, _, is_cdecl) in self.calls.items():
            # ret, or ret with what the caller has pushed
            taken = 0 if self.wide or is_cdecl else 4 * count
            self.se.mem_write(at, b"\xc2" + taken.to_bytes(2, "little"))
            self.places[name], self.returns[at] = at, name
            at += 16
        engine.hook_add(unicorn.UC_HOOK_CODE, self.on_call, None, code + PAGE, at)
        for library in self.pe.DIRECTORY_ENTRY_IMPORT:
            for one in library.imports:
                place = one.address - self.pe.OPTIONAL_HEADER.ImageBase + self.base
                name = one.name.decode() if one.name else f"number {one.ordinal}"
                if name not in self.places:
                    sys.exit(f"FAIL it imports {name} of {library.dll.decode()}, which the emulator does not have: add it to all_calls")
                self.put(place, self.places[name])

    def on_call(self, engine, address, size, context):
        name = self.returns[address]
        count, call, _ = self.calls[name]
        try:
            answer = call(*self.arguments(count))
            if answer is not None:
                wide = self.wide
                self.se.reg_write("rax" if wide else "eax", int(answer) & (1 << (64 if wide else 32)) - 1)
        except Exception:
            self.fail(f"{name}: {traceback.format_exc()}")
            engine.emu_stop()

    @property
    def irql(self):
        return self.word(self.level, 1)

    # Memory and registers.
    def word(self, address, size=None):
        return int.from_bytes(self.se.mem_read(address, size or self.pointer), "little")

    def put(self, address, value, size=None):
        self.se.mem_write(address, (value & (1 << 8 * (size or self.pointer)) - 1).to_bytes(size or self.pointer, "little"))

    def text_now(self):
        return [bytes(self.se.mem_read(start, size)) for start, size in self.text]

    def at_most(self, most, call):
        if self.irql > most:
            self.fail(f"IRQL: {call} at {self.irql}")

    def fail(self, why):
        self.failures.append(why)
        print(f"KD: FAIL {why}")

    # What runs.
    def on_entry(self, engine, address, size, context):
        self.se.reg_write("eflags", self.se.reg_read("eflags") | 0x200)
        if self.driver_object is None:
            self.stack_start = self.se.get_stack_ptr()
            bottom = self.stack_end - self.stack_size
            self.se.mem_write(bottom, PAINT * (self.stack_start - bottom))
            self.driver_object = self.se.reg_read("rcx") if self.wide else self.word(self.se.get_stack_ptr() + 4)

    def on_block(self, engine, address, size, context):
        if self.counting is not None:
            self.counting.append((address, size))

    def on_mask(self, engine, address, size, context):
        """Interrupts go off, or on again: what is between is made of blocks, of which the last ends here."""
        if engine.mem_read(address, 1)[0] == CLI:
            self.counting = [self.rest(address + 1)]
        elif self.counting is not None:
            start, _ = self.counting.pop()
            self.counting.append((start, address - start))
            self.parked.append(sum(self.disassembled(*block) for block in self.counting))
            self.counting = None

    def rest(self, address):
        """What is left of the block there: up to a branch. The emulator begins none behind an instruction in the middle."""
        for one in self.decoder.disasm(bytes(self.se.mem_read(address, 256)), address):
            if {capstone.CS_GRP_JUMP, capstone.CS_GRP_CALL, capstone.CS_GRP_RET} & set(one.groups):
                return address, one.address + one.size - address
        return address, 0

    def disassembled(self, address, size):
        return sum(1 for _ in self.decoder.disasm(bytes(self.se.mem_read(address, size)), address))

    def on_write_to_text(self, emu, access, address, size, value, context=None):
        self.fail(f"a write to the text itself, at {address:#x}")
        return True

    def on_write_to_alias(self, emu, access, address, size, value, context=None):
        for start, (length, to) in self.aliases.items():
            if start <= address < start + length:
                self.put(to + address - start, value, size)
                return True
        return True

    # NT's calls.
    def all_calls(self):
        """By name: how many arguments a call is done with, what does it, and whether its caller takes them from the stack."""
        calls = {}

        def add(name, count, call, is_cdecl=False):
            calls[name] = (count, call, is_cdecl)

        add("DbgPrint", 0, self.print, is_cdecl=True)
        add("ExAllocatePoolWithTag", 3, self.allocate)
        add("ExFreePoolWithTag", 2, self.free)
        add("PsGetVersion", 4, self.version)
        add("RtlGetVersion", 1, lambda to: (self.put(to + 4, 5, 4), self.put(to + 8, 2, 4), 0)[2])
        add("IoAllocateMdl", 5, self.allocate_mdl)
        add("IoFreeMdl", 1, lambda mdl: self.mdls.pop(mdl) and 0)
        add("MmProbeAndLockPages", 3, lambda mdl, mode, operation: self.at_most(APC, "MmProbeAndLockPages"))
        add("MmUnlockPages", 1, lambda mdl: self.at_most(DISPATCH, "MmUnlockPages"))
        add("MmMapLockedPagesSpecifyCache", 6, self.map)
        add("MmProtectMdlSystemAddress", 2, lambda mdl, protection: 0 if protection == 4 else 0xC000000D)
        add("MmUnmapLockedPages", 2, lambda address, mdl: self.aliases.pop(address & ~(PAGE - 1)) and 0)
        add("MmIsAddressValid", 1, lambda address: int(self.se.is_address_valid(address)))
        add("MmGetSystemRoutineAddress", 1, self.routine)
        add("KdRefreshDebuggerNotPresent", 0, lambda: 0)
        add("KeIpiGenericCall", 2, self.broadcast)
        add("KeInitializeDpc", 3, lambda *_: 0)
        for name, count in [("KeSetImportanceDpc", 2), ("KeSetTargetProcessorDpc", 2), ("KeInsertQueueDpc", 3), ("KeRemoveQueueDpc", 1)]:
            # There is no other processor.
            add(name, count, lambda *_: self.fail("a DPC on a machine with one processor"))
        add("KeQueryActiveProcessors", 0, lambda: 1)
        add("KeSetSystemAffinityThread", 1, lambda mask: self.at_most(APC, "KeSetSystemAffinityThread"))
        add("KeRevertToUserAffinityThread", 0, lambda: self.at_most(APC, "KeRevertToUserAffinityThread"))
        add("KeGetCurrentThread", 0, lambda: 0x1000 + len(self.waiting))
        add("KeSetPriorityThread", 2, lambda thread, priority: 8)
        add("KeQueryPriorityThread", 1, lambda thread: 1)
        add("KeEnterCriticalRegion", 0, lambda: self.at_most(APC, "KeEnterCriticalRegion"))
        add("KeLeaveCriticalRegion", 0, lambda: self.at_most(DISPATCH, "KeLeaveCriticalRegion"))
        add("KeDelayExecutionThread", 3, self.sleep)
        add("KeQueryPerformanceCounter", 1, self.counter)
        add("PsCreateSystemThread", 7, self.create_thread)
        add("ZwWaitForSingleObject", 3, self.wait)
        add("PsTerminateSystemThread", 1, self.terminate)
        add("ZwClose", 1, lambda handle: 0)
        add("ZwQuerySystemInformation", 4, self.information)
        add("memcpy", 3, self.copy, is_cdecl=True)
        add("memmove", 3, self.copy, is_cdecl=True)
        add("memset", 3, self.set, is_cdecl=True)
        add("memcmp", 3, self.compare, is_cdecl=True)
        add("strlen", 1, lambda text: len(self.string(text)), is_cdecl=True)
        return calls

    def string(self, address):
        text = b""
        while (byte := bytes(self.se.mem_read(address + len(text), 1))) != b"\0":
            text += byte
        return text

    def arguments(self, count):
        """The first arguments of a function that takes as many as it is given."""
        stack = self.se.get_stack_ptr()
        if not self.wide:
            return [self.word(stack + 4 + 4 * index) for index in range(count)]
        registers = [self.se.reg_read(name) for name in ("rcx", "rdx", "r8", "r9")]
        return (registers + [self.word(stack + 0x28 + 8 * index) for index in range(count)])[:count]

    def print(self):
        format, *values = self.arguments(6)
        out, text = "", self.string(format).decode()
        while "%" in text:
            before, text = text.split("%", 1)
            kind = next(at for at, letter in enumerate(text) if letter in "sdxu")
            value = values.pop(0)
            shown = {"s": lambda: self.string(value).decode(), "x": lambda: f"{value & 0xFFFFFFFF:08x}"}
            out += before + shown.get(text[kind], lambda: str(value & 0xFFFFFFFF))()
            text = text[kind + 1 :]
        sys.stdout.write(out + text)
        return 0

    def allocate(self, pool, size, tag):
        self.at_most(DISPATCH, "ExAllocatePoolWithTag")
        # One after the other, with something between, and never anew: the emulator takes long to find room.
        address, self.room = self.room, self.room + size + 31 & ~15
        if self.room > self.end_of_pool:
            return 0
        self.pool[address] = size
        return address

    def free(self, address, tag):
        self.at_most(DISPATCH, "ExFreePoolWithTag")
        # Whoever uses it afterwards finds nothing of his own.
        self.se.mem_write(address, b"\xdd" * self.pool.pop(address))

    def version(self, major, minor, build, service_pack):
        for place, value in [(major, 5), (minor, 2), (build, 3790)]:
            if place:
                self.put(place, value, 4)
        return 1

    def allocate_mdl(self, address, length, *_):
        self.at_most(DISPATCH, "IoAllocateMdl")
        mdl = self.se.mem_alloc(64, tag="mdl")
        self.mdls[mdl] = (address, length & 0xFFFFFFFF)
        return mdl

    def map(self, mdl, mode, cache, at, bug_check, priority):
        self.at_most(DISPATCH, "MmMapLockedPagesSpecifyCache")
        address, length = self.mdls[mdl]
        first = address & ~(PAGE - 1)
        pages = (address + length - first + PAGE - 1) // PAGE * PAGE
        alias = self.se.mem_alloc(pages + PAGE, tag="alias") + PAGE - 1 & ~(PAGE - 1)
        self.se.mem_write(alias, bytes(self.se.mem_read(first, pages)))
        self.aliases[alias] = (pages, first)
        self.se.add_mem_write_hook(self.on_write_to_alias, alias, alias + pages - 1)
        return alias + address - first

    def routine(self, name):
        self.at_most(PASSIVE, "MmGetSystemRoutineAddress")
        length = self.word(name, 2)
        text = bytes(self.se.mem_read(self.word(name + self.pointer), length)).decode("utf-16-le")
        if text in ("KeQueryTimeIncrement", "KeIpiGenericCall", "KdRefreshDebuggerNotPresent", "DbgPrint"):
            return self.places[text]
        return 0

    def broadcast(self, routine, argument):
        """On one processor: the caller calls the routine, and gets its answer."""
        self.at_most(self.ipi - 1, "KeIpiGenericCall")
        if self.wide:
            self.se.reg_write("rcx", argument)
        else:
            # Of its two arguments the second is the routine's own.
            stack = self.se.get_stack_ptr()
            self.put(stack + 4, self.word(stack))
            self.se.set_stack_ptr(stack + 4)
        self.se.set_pc(routine)

    def sleep(self, mode, alertable, interval):
        self.at_most(APC, "KeDelayExecutionThread")
        self.clock += 100_000
        return 0

    def counter(self, frequency):
        if frequency:
            self.put(frequency, 10_000_000, 8)
        self.clock += 10
        if not self.wide:
            self.se.reg_write("edx", self.clock >> 32)
        return self.clock

    def create_thread(self, handle, access, attributes, process, client, routine, context):
        self.at_most(PASSIVE, "PsCreateSystemThread")
        self.handles += 4
        self.threads[self.handles] = (routine, context)
        self.put(handle, self.handles)
        return 0

    def wait(self, handle, alertable, timeout):
        """The thread that is waited for runs now, on a stack of its own."""
        self.at_most(PASSIVE, "ZwWaitForSingleObject")
        if handle not in self.threads:
            return 0
        routine, context = self.threads.pop(handle)
        stack = self.se.get_stack_ptr()
        kept = ("rbx", "rbp", "rsi", "rdi", "r12", "r13", "r14", "r15") if self.wide else ("ebx", "ebp", "esi", "edi")
        self.waiting.append((self.word(stack), stack, {name: self.se.reg_read(name) for name in kept}))
        own = self.se.mem_alloc(16 * PAGE, tag="stack") + 16 * PAGE - 0x108
        self.put(own, 0)
        if self.wide:
            self.se.reg_write("rcx", context)
        else:
            self.put(own + 4, context)
        self.se.set_stack_ptr(own)
        self.se.set_pc(routine)

    def terminate(self, status):
        """Whoever waited for the thread goes on."""
        self.at_most(PASSIVE, "PsTerminateSystemThread")
        back, stack, kept = self.waiting.pop()
        for name, value in kept.items():
            self.se.reg_write(name, value)
        self.se.reg_write("rax" if self.wide else "eax", 0)
        self.se.set_stack_ptr(stack + (8 if self.wide else 16))
        self.se.set_pc(back)

    def information(self, kind, to, length, needed):
        self.at_most(PASSIVE, "ZwQuerySystemInformation")
        if kind != 11:
            return 0xC0000003
        images = [(self.kernel, 2 * PAGE, b"\\SystemRoot\\ntoskrnl.exe"), (self.base, self.size, b"\\SystemRoot\\driver.sys")]
        answer = len(images).to_bytes(self.pointer, "little")
        for base, size, path in images:
            name = path.rindex(b"\\") + 1
            answer += b"\0" * 2 * self.pointer + base.to_bytes(self.pointer, "little")
            answer += struct.pack("<IIHHHH256s", size, 0, 0, 0, 1, name, path)
        if needed:
            self.put(needed, len(answer), 4)
        if length & 0xFFFFFFFF < len(answer):
            return 0xC0000004
        self.se.mem_write(to, answer)
        return 0

    def copy(self, to, start, size):
        self.se.mem_write(to, bytes(self.se.mem_read(start, size)))
        return to

    def set(self, to, byte, size):
        self.se.mem_write(to, bytes([byte & 0xFF]) * size)
        return to

    def compare(self, one, other, size):
        one, other = bytes(self.se.mem_read(one, size)), bytes(self.se.mem_read(other, size))
        return (one > other) - (one < other)

    # A driver's life.
    def live(self):
        before = self.text_now()
        self.se.run_module(self.module, all_entrypoints=False)
        entry = self.outcome()
        if entry is None:
            return
        # To see the end of a call the emulator hooks every instruction, and does not stop: all is slow then, and blocks are told in part.
        if self.se.emu.tmp_code_hook:
            self.se.emu.emu_eng.emu.hook_del(self.se.emu.tmp_code_hook.handle)
            self.se.emu.tmp_code_hook = None
        unload = self.word(self.driver_object + (0x68 if self.wide else 0x34))
        if not unload:
            self.fail("there is no DriverUnload")
            return
        self.se.call(unload, [self.driver_object])
        if self.outcome() is None:
            return
        if self.text_now() != before:
            self.fail("the text is not what it was")
        if self.pool or self.aliases or self.mdls:
            self.fail(f"not given back: {len(self.pool)} of pool, {len(self.aliases)} mappings, {len(self.mdls)} MDLs")
        if self.irql != PASSIVE or self.counting is not None:
            self.fail(f"left at IRQL {self.irql}")

    def stack_used(self):
        """How far down the paint is gone."""
        bottom = self.stack_end - self.stack_size
        found = bytes(self.se.mem_read(bottom, self.stack_start - bottom))
        return len(found.lstrip(PAINT))

    def outcome(self):
        """What the last call ended with; none if it did not end."""
        last = self.se.get_report()["entry_points"][-1]
        if last.get("error"):
            error = last["error"]
            self.fail(f"the driver stopped: {error.get('type')} at {error.get('pc')}, {error.get('instr')}")
            return None
        return last.get("ret_val")


def main():
    nt = Nt(sys.argv[1])
    nt.live()
    print("parked", *nt.parked)
    print("stack", nt.stack_used())
    sys.exit(bool(nt.failures))


if __name__ == "__main__":
    main()
