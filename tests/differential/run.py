#!/usr/bin/env python3
"""Differential execution: the code that a plan displaces, and its copy, do the same from random states.

    kdetour scan FILE... --plans plans.jsonl
    python3 tests/differential/run.py plans.jsonl [--states 3] [--sample N] [--jobs 2] [--seed N]
    python3 tests/differential/run.py --self-test

Reads plan records, one JSON object a line (README.md beside this folder tells the fields), from files or standard
input. Needs unicorn 2.1.4 and nothing else. Exit code 1 if anything differs; the last line is `summary {...}`.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter

sys.dont_write_bytecode = True  # nothing is left in the source tree

from check import Checker
from record import Record

CHUNK = 64
WORKER = {}


def start_worker(seed, states):
    WORKER["checker"] = Checker(seed, states)
    WORKER["seed"] = seed


def examine(lines):
    """A chunk of lines: counts, and what differs."""
    counts, not_run, reports, shapes = Counter(), Counter(), [], Counter()
    checker = WORKER["checker"]
    for line in lines:
        counts["records"] += 1
        try:
            given = json.loads(line)
            if not given["accepted"]:
                counts["refused"] += 1
                continue
            record = Record(given)
        except (ValueError, KeyError, TypeError) as error:
            counts["unreadable"] += 1
            reports.append(f"UNREADABLE {error!r} in {line[:300]}")
            continue
        counts["accepted"] += 1
        shapes[f"{record.mode} {record.shape}"] += 1
        try:
            result = checker.check(record)
        except Exception as error:  # noqa: BLE001  one bad record must not hide the others
            counts["failed"] += 1
            reports.append(f"FAILED {record.name}: {error!r}\n  {line.strip()}")
            checker.machines.clear()
            continue
        counts["runs"] += result.runs
        counts["states"] += result.states
        counts["one_way"] += result.one_way
        counts["single_stepped"] += result.single_stepped
        counts["flags_unknown"] += result.flags_unknown
        counts["writes_code"] += result.writes_code
        counts["reenters"] += result.reenters > 0
        counts["x87_ip"] += result.x87_ip > 0
        counts["unproven"] += result.unproven
        counts["whole" if not result.not_run else "partly"] += 1
        for why, data, text in result.not_run:
            mnemonic = text.split()[0] if text else data.hex()
            not_run[f"{why}: {mnemonic}"] += 1
        if result.differences:
            counts["different"] += 1
            counts["differences"] += len(result.differences)
            reports.append(report(record, result, line))
    return counts, not_run, shapes, reports


def report(record, result, line):
    """What somebody needs to see it again."""
    lines = [f"DIFFERENT {record.name} {record.mode}-bit {record.shape} at {record.window:#x}"]
    for address, data, text in record.displaced:
        copy = record.to_slot.get(address)
        where = f"{copy:#x}" if copy is not None else "nowhere"
        lines.append(f"  {address:#x} {data.hex():30} {text:40} copy at {where}")
    lines.append(f"  slot {record.slot:#x} {record.slot_bytes.hex()}")
    lines.append(f"  patch {record.patch.address:#x} {record.patch.expected.hex()} -> {record.patch.new.hex()}")
    for where, state, why in result.differences[:6]:
        lines.append(f"  {where}, state {state}: {why}")
    states = [state for _, state, _ in result.differences if state is not None]
    if states:
        machine = WORKER["checker"].machine(record.mode)
        machine.uc.context_restore(machine.bank[states[0]])
        named = machine.registers.named(machine.registers.read(machine.uc))
        shown = [f"{name}={value:#x}" for name, value in named.items() if not name.startswith(("XMM", "FP", "MX"))]
        lines.append(f"  state {states[0]} of seed {WORKER['seed']}: {' '.join(shown)}")
    lines.append(f"  again: run.py --seed {WORKER['seed']} --line '{line.strip()}'")
    return "\n".join(lines)


def lines_of(files):
    for name in files or ["-"]:
        with sys.stdin if name == "-" else open(name, encoding="utf-8") as file:
            yield from file


def sampled(lines, count):
    """The same `count` accepted records each time, spread over all of them."""
    accepted = [line for line in lines if '"accepted":true' in line or '"accepted": true' in line]
    if len(accepted) <= count:
        return accepted
    return [accepted[at * len(accepted) // count] for at in range(count)]


def chunks(lines):
    chunk = []
    for line in lines:
        if line.strip():
            chunk.append(line)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="plan records, one JSON object a line; none: standard input")
    parser.add_argument("--states", type=int, default=3, help="random states for each record (default 3)")
    parser.add_argument("--sample", type=int, metavar="N", help="only N accepted records, the same ones each time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seed", type=int, default=20261122, help="of states and of memory")
    parser.add_argument("--reports", type=int, default=12, help="differences that are printed (default 12)")
    parser.add_argument("--line", help="one record, given here")
    parser.add_argument("--self-test", action="store_true", help="wrong records must be found out")
    parser.add_argument("--flips", type=int, metavar="N", help="turn a bit round in N records; each must be found out")
    options = parser.parse_args()
    if options.self_test:
        import selftest

        return selftest.main(options.seed)

    if options.flips is not None:
        import selftest

        return selftest.flips(sampled(lines_of(options.files), options.flips), options.seed)

    started = time.monotonic()
    print(f"seed {options.seed}, {options.states} states a record, {options.jobs} processes", flush=True)
    lines = [options.line] if options.line else lines_of(options.files)
    if options.sample is not None:
        lines = sampled(lines, options.sample)
    totals, not_run, shapes, printed = Counter(), Counter(), Counter(), 0
    with multiprocessing.Pool(options.jobs, start_worker, (options.seed, options.states), 400) as pool:
        for counts, left_out, seen, reports in pool.imap_unordered(examine, chunks(lines)):
            totals += counts
            not_run += left_out
            shapes += seen
            for text in reports:
                if printed < options.reports:
                    print(text, flush=True)
                printed += 1
    if printed > options.reports:
        print(f"... and {printed - options.reports} more")
    for what, count in not_run.most_common():
        print(f"not run: {what} x {count}")
    bad = totals["different"] + totals["failed"] + totals["unreadable"]
    names = ("records", "refused", "accepted", "whole", "partly", "states", "runs", "one_way", "single_stepped", "x87_ip", "reenters", "flags_unknown",
             "writes_code")
    names += ("unproven", "different", "differences", "failed", "unreadable")
    summary = {name: totals[name] for name in names}
    summary.update(not_run=sum(not_run.values()), shapes=dict(sorted(shapes.items())), seed=options.seed)
    summary["seconds"] = round(time.monotonic() - started, 1)
    if not totals["accepted"]:
        print("no accepted record: nothing was tested")
        bad += 1
    print("summary " + json.dumps(summary))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
