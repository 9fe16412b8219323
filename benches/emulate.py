#!/usr/bin/env python3
"""Runs trampolines of any library in the emulator of `tests/differential`, and says how wrong each is.

    python3 emulate.py RECORDS.jsonl [--states 3] [--jobs 2]

Prints one JSON object. Each record is in one class, the worst that was seen:
  same               as the original code, in every state
  returns_into_slot  but for the return address that a displaced call's callee sees: it lies in the trampoline
  below_stack        but for bytes below the stack pointer, which it overwrites
  wrong              anything else: other registers, flags, memory or exits

The first two differences can be somebody's choice; the emulator of the tests, which knows kdetour's promises, counts
both as wrong. Needs unicorn.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections import Counter

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "differential"))

from check import Checker, One  # noqa: E402
from record import Record  # noqa: E402

CLASSES = ("same", "returns_into_slot", "below_stack", "wrong")
EXAMPLES = 20
RED_ZONE = 128
SEED = 20261122
OWN_PROMISES = ("an instruction behind the window is displaced", "interior boundary")
WORKER = {}


class Run(One):
    """One record. What differs is put into a class when it is compared."""

    worst = "same"

    def see(self, what):
        self.worst = max(self.worst, what, key=CLASSES.index)

    def differ(self, where, state, why):
        if where == "copy":
            # An instruction that is not executed here, compared by its bytes: an encoder may put prefixes in its
            # own order.
            original, copy = (sorted(bytes.fromhex(one)) for one in why.split(" is copied as "))
            if original == copy:
                return
        self.see("wrong")
        super().differ(where, state, why)

    def compare(self, where, state, expected, found, mapped=True):
        pointers = [self.machine.registers.named(run.registers)["RSP"] for run in (expected, found)]
        if pointers[0] == pointers[1]:
            self.forgive_return(pointers[0], expected, found)
            self.forgive_scratch(pointers[0], state, expected, found)
        super().compare(where, state, expected, found, mapped)

    def forgive_return(self, rsp, expected, found):
        """A callee is entered, and its return address is in the trampoline instead of behind the window's call."""
        low, high = self.slot_range
        cells = [(rsp + at) & self.machine.mask for at in range(8)]
        pushed = [bytes(run.written.get(at, 0) for at in cells) for run in (expected, found)]
        original, copy = (int.from_bytes(one, "little") for one in pushed)
        if original != copy and low <= copy < high and self.record.window < original <= self.record.end:
            self.see("returns_into_slot")
            found.written.update((at, expected.written[at]) for at in cells if at in expected.written)

    def forgive_scratch(self, rsp, state, expected, found):
        """Bytes below the stack pointer, as it was or as it became, that the original does not write."""
        below = range(rsp - RED_ZONE, self.stack_pointer(state))
        extra = {at for at in found.written if at in below and at not in expected.written}
        wrote = set(found.written)
        if extra or any(one not in expected.read and one[0] in wrote for one in found.read):
            self.see("below_stack")
            found.read = {one for one in found.read if one in expected.read or one[0] not in wrote}
            for at in extra:
                del found.written[at]

    def stack_pointer(self, state):
        """When the run began."""
        known = self.machine.__dict__.setdefault("stack_pointers", {})
        if state not in known:
            nothing = self.run("patched", state, self.record.window, [(0, 0)], (), {})
            known[state] = self.machine.registers.named(nothing.registers)["RSP"]
        return known[state]


class Judge(Checker):
    def judge(self, record):
        from check import Result

        result = Result()
        # What only kdetour promises: nobody stands on a boundary that is overwritten.
        faults = [why for why in record.faults() if not any(own in why for own in OWN_PROMISES)]
        if faults:
            return "wrong", faults
        machine = self.machine(record.mode)
        one = Run(machine, record, result)
        first = (record.entry * 0x9E3779B1 >> 7) % len(machine.bank)
        for at in range(self.states):
            one.whole((first + at) % len(machine.bank))
        one.patched(first)
        return one.worst, [why for _, _, why in result.differences]


def start_worker(states):
    WORKER["judge"] = Judge(SEED, states)


def examine(line):
    record = Record(json.loads(line))
    try:
        worst, why = WORKER["judge"].judge(record)
    except Exception as error:  # noqa: BLE001  one bad record must not hide the others
        WORKER["judge"].machines.clear()
        worst, why = "wrong", [repr(error)]
    shown = f"{record.name}: {record.text.hex()} -> {record.slot_bytes.hex()}: {'; '.join(why[:3])}"
    return worst, shown


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records")
    parser.add_argument("--states", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    counts, examples = Counter(), []
    with open(options.records, encoding="utf-8") as file:
        with multiprocessing.Pool(options.jobs, start_worker, (options.states,), 20) as pool:
            for worst, shown in pool.imap(examine, file, 64):
                counts[worst] += 1
                if worst == "wrong" and len(examples) < EXAMPLES:
                    examples.append(shown)
    summary = {name: counts[name] for name in CLASSES}
    print(json.dumps({"records": sum(counts.values()), **summary, "examples": examples}))


if __name__ == "__main__":
    main()
