"""hansa's locked dependencies as a 64-bit Windows node needs them, gathered on any system."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


def locked(wanted: Mapping[str, Collection[str] | None]) -> str:
    """Locked versions and hashes out of requirements/NAME.txt, by NAME; None = everything that is in it.

    Without the conditions on the platform: pip would answer them for this one.
    """
    chosen: dict[str, str] = {}
    for file, names in wanted.items():
        text = (ROOT / "requirements" / f"{file}.txt").read_text(encoding="utf-8")
        for entry in re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]:
            name = entry.partition("==")[0]
            if names is None or name in names:
                chosen[name] = re.sub(r"^(\S+) ;.*?( \\)?$", r"\1\2", entry, count=1, flags=re.MULTILINE)
    return "".join(chosen.values())


def platform_options() -> tuple[str, ...]:
    """What makes pip take wheels for Windows, of this Python's minor version."""
    return ("--platform", "win_amd64", "--python-version", MINOR, "--only-binary=:all:")


def install(requirements: Path, folder: Path) -> None:
    """Put locked packages into a folder, or end with what went wrong."""
    pip("install", "--no-deps", "--no-compile", "--require-hashes", *platform_options(), "--target", str(folder),
        "-r", str(requirements))  # fmt: skip


def pip(*arguments: str) -> None:
    environment = os.environ | {"PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-m", "pip", "-qq", "--no-input", *arguments]
    if subprocess.run(command, env=environment, check=False).returncode != 0:
        sys.exit(f"hansa: {' '.join(command)} failed (see above): packages come from PyPI, which must be reachable "
                 "(PIP_INDEX_URL names a mirror)")  # fmt: skip
