#!/usr/bin/env python3
"""Runs every command that these pages show, and puts its output below it.

    docs/refresh.py [--check] [FOLDER]

Commands are the lines that begin with `$ ` in blocks marked `console`; `kdetour` has to be in the path. Those of
pictures/README.md write the pictures. Commands that name libc.so.6 or vmlinuz need FOLDER, where these are;
without it they are left as they are. --check changes no page: it says which blocks differ, and ends with 1 if any does.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
FILES = ("libc.so.6", "vmlinuz")
BLOCK = re.compile(r"(^```console\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)


def commands(block):
    """The commands of a block, each as it is written, over several lines where they end in a backslash."""
    found, lines = [], iter(block.splitlines())
    for line in lines:
        if line.startswith("$ "):
            command = [line]
            while command[-1].endswith("\\"):
                command.append(next(lines))
            found.append("\n".join(command))
    return found


def output(command, folder):
    """What a command prints, errors included."""
    ran = subprocess.run(
        ["bash", "-c", command[2:]], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return "".join(line.rstrip() + "\n" for line in ran.stdout.splitlines())


def main():
    parser = argparse.ArgumentParser(description="Runs every command that these pages show, and puts its output below it.")
    parser.add_argument("--check", action="store_true", help="change nothing; end with 1 if any block differs")
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="where libc.so.6 and vmlinuz are")
    arguments = parser.parse_args()
    check = arguments.check
    files = arguments.folder.resolve() if arguments.folder else None
    if shutil.which("kdetour") is None:
        sys.exit("kdetour is not in the path: build it, and put target/release there")
    if files and not all((files / name).is_file() for name in FILES):
        sys.exit(f"{files} does not hold {' and '.join(FILES)}")
    differs = 0
    for page in sorted(DOCS.rglob("*.md")):
        def fresh(match, page=page):
            nonlocal differs
            shown = commands(match[2])
            named = any(name in command for command in shown for name in FILES)
            if named and files is None:
                return match[0]
            folder = files if named else DOCS / "pictures"
            new = "".join(f"{command}\n{output(command, folder)}" for command in shown)
            if new != match[2]:
                differs += 1
                print(f"{page.relative_to(DOCS)}: {shown[0][:100]}")
            return match[1] + new + match[3]

        text = page.read_text()
        made = BLOCK.sub(fresh, text)
        if made != text and not check:
            page.write_text(made)
    sys.exit(1 if check and differs else 0)


if __name__ == "__main__":
    main()
