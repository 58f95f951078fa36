#!/usr/bin/env python3
"""Fuzz every target by coverage, with atheris: bytes that reach new code are kept and bent further.

    fuzz/run.py [--seconds S] [--only NAME]     S for each target, default 30; NAME: one of fuzz/targets.py
    fuzz/run.py --try NAME FILE...              what a target makes of files, in this process

What is learnt is kept in .cache/fuzz/NAME and used the next time. An input that shows a bug is written to
fuzz/cases/NAME, where the tests find it, and this ends with 1. Without atheris (it has wheels for x86_64 Linux) it says
so and ends with 2; `make test` feeds the same targets by chance on every system.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / ".cache" / "fuzz"
CASES = ROOT / "fuzz" / "cases"
LONGEST_INPUT_BYTES = 4096
SLOWEST_S = 10  # for one input: anything longer is a bug of its own
MEMORY_MB = 2048


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--only", default="")
    parser.add_argument("--try", dest="trial", nargs="+", default=None)
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    if asked.trial:
        return try_files(asked.trial[0], asked.trial[1:])
    if find_spec("atheris") is None:
        print(
            "hansa: atheris is not installed; it has wheels for x86_64 Linux and Python 3.11 to 3.13", file=sys.stderr
        )
        return 2
    if asked.inside:
        fuzz_one(asked.inside, asked.seconds)
    return fuzz_all(asked.only, asked.seconds)


def fuzz_all(only: str, seconds: int) -> int:
    from fuzz.targets import TARGETS

    names = [each.name for each in TARGETS if only in ("", each.name)]
    if not names:
        print(f"hansa: no target is called {only!r}", file=sys.stderr)
        return 2
    broken = []
    for name in names:
        # A process for each: libFuzzer ends the one that it runs in.
        command = [sys.executable, __file__, "--inside", name, "--seconds", str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        with suppress(OSError):
            (CASES / name).rmdir()  # empty, unless there is a case
        said = done.stderr.splitlines()
        state = next((line for line in reversed(said) if "cov:" in line), "")
        print(f"{name:16} {'well' if done.returncode == 0 else 'BROKEN':7} {' '.join(state.split()[1:8])}", flush=True)
        if done.returncode:
            broken.append(name)
            print("\n".join(said[-40:]), flush=True)
    print(f"{len(names) - len(broken)} targets well, {len(broken)} broken")
    return 1 if broken else 0


def fuzz_one(name: str, seconds: int) -> None:
    """Does not return."""
    import atheris

    with atheris.instrument_imports(include=["hansa"], enable_loader_override=False):
        from fuzz.targets import target

        one = target(name)
    corpus, cases = CORPUS / name, CASES / name
    for folder in (corpus, cases):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(one.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = {
        "max_total_time": seconds,
        "max_len": LONGEST_INPUT_BYTES,
        "timeout": SLOWEST_S,
        "rss_limit_mb": MEMORY_MB,
        "artifact_prefix": f"{cases}/",
    }
    atheris.Setup([name, *(f"-{key}={value}" for key, value in options.items()), str(corpus)], one.try_input)
    atheris.Fuzz()


def try_files(name: str, files: list[str]) -> int:
    from fuzz.targets import target

    for file in files:
        target(name).try_input(Path(file).read_bytes())
        print(f"{file}: well")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
