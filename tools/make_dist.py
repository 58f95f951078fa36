#!/usr/bin/env python3
"""Make what is given to nodes, in dist/.

    tools/make_dist.py                      wheel and source archive
    tools/make_dist.py --windows [ZIP]      hansa-VERSION-windows-amd64.zip: a folder that runs without installation

ZIP is python.org's embeddable package for amd64 (python-3.X.Y-embed-amd64.zip); its minor version must be that of the
Python that runs this, since the extension modules are made for it. Without ZIP the folder lacks Python and says so.
The folder is laid out in dist/windows/hansa too, where deploy/docker/windows takes it from. It is made on any system;
nothing is compiled.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from windows_packages import MINOR, ROOT, install, locked, pip

DIST = ROOT / "dist"
SHORT = MINOR.replace(".", "")
# Where that Python looks for modules, whatever the environment says. The first two lines are the embeddable package's.
PATHS = f"python{SHORT}.zip\n.\npackages\n"
COMMAND = '@"%~dp0python.exe" -I -X utf8 -m hansa %*\r\n'
ABOUT = """hansa {version} for Windows nodes, 64-bit.

    hansa.cmd --help
    hansa.cmd doctor --source kubernetes --kubeconfig C:\\k\\config

{python}
How to install: docs/howto/install-windows.md of hansa's repository.
To remove it: `hansa.cmd cleanup`, then delete the folder.
"""
WITH_PYTHON = "Python {minor} is in this folder; nothing has to be installed."
WITHOUT_PYTHON = (
    "Python is missing here: unpack python-{minor}.*-embed-amd64.zip of python.org into this folder, keeping\n"
    "python{short}._pth as it is."
)


def make_wheel(folder: Path) -> Path:
    """Wheel and source archive; returns the wheel."""
    hatchling = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run([*hatchling, "-t", "sdist", "-t", "wheel"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("hansa-*.whl")
    return wheel


def lay_out(folder: Path, embeddable: Path | None) -> str:
    """The Windows folder; returns hansa's version."""
    shutil.rmtree(folder, ignore_errors=True)
    packages = folder / "packages"
    packages.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(locked({"run": None}), encoding="utf-8")
        install(requirements, packages)
        wheel = make_wheel(Path(scratch))
        pip("install", "--no-deps", "--no-compile", "--upgrade", "--target", str(packages), str(wheel))
        version = wheel.name.split("-")[1]
    shutil.rmtree(packages / "bin", ignore_errors=True)  # scripts for the system that this ran on
    check_windows_only(packages)
    if embeddable is not None:
        unpack(embeddable, folder)
    (folder / f"python{SHORT}._pth").write_text(PATHS, encoding="ascii")
    (folder / "hansa.cmd").write_text(COMMAND, encoding="ascii", newline="")
    python = (WITH_PYTHON if embeddable else WITHOUT_PYTHON).format(minor=MINOR, short=SHORT)
    (folder / "README.txt").write_text(ABOUT.format(version=version, python=python), encoding="ascii")
    return version


def check_windows_only(packages: Path) -> None:
    foreign = sorted(str(each.relative_to(packages)) for each in packages.rglob("*.so"))
    if foreign:
        sys.exit(f"hansa: not for Windows: {', '.join(foreign)}")


def unpack(embeddable: Path, folder: Path) -> None:
    with zipfile.ZipFile(embeddable) as archive:
        if f"python{SHORT}.dll" not in archive.namelist():
            found = [name for name in archive.namelist() if re.fullmatch(r"python3\d+\.dll", name)]
            sys.exit(f"hansa: {embeddable} has {found or 'no Python'}; the packages are made for Python {MINOR}")
        archive.extractall(folder)


def archive(folder: Path, target: Path) -> None:
    """The same folder always gives the same file: sorted, and without times."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            info = zipfile.ZipInfo(f"hansa/{path.relative_to(folder).as_posix()}", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            made.writestr(info, path.read_bytes())


def main(arguments: list[str]) -> None:
    DIST.mkdir(exist_ok=True)
    match arguments:
        case []:
            for old in DIST.glob("hansa-*"):
                if old.suffix in (".whl", ".gz"):
                    old.unlink()
            print(make_wheel(DIST))
        case ["--windows", *rest] if len(rest) <= 1:
            folder = DIST / "windows" / "hansa"
            version = lay_out(folder, Path(rest[0]) if rest else None)
            target = DIST / f"hansa-{version}-windows-amd64.zip"
            archive(folder, target)
            print(target)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
