"""The zip for Windows nodes, unpacked, starts with a Windows Python that finds nothing but what is in the folder.

Run by `make test-windows`. python.org's embeddable package cannot be fetched everywhere, so the Python of the test-bed
takes its place: the same DLL, but the standard library lies in folders, which the `._pth` file is told.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.windows.test_daemon import on_windows

from hansa import __version__
from hansa.demo import cluster_manifests

ROOT = Path(__file__).parents[2]
TOOL = os.environ.get("HANSA_TEST_WINDOWS", "")
PYTHON = ROOT / ".cache" / "windows" / "python"

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not TOOL, reason="starts Windows processes: make test-windows"
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as an administrator has it after unpacking."""
    made = subprocess.run(
        [sys.executable, ROOT / "tools/make_dist.py", "--windows"], check=True, capture_output=True, text=True
    )
    target = tmp_path_factory.mktemp("C")
    with zipfile.ZipFile(made.stdout.splitlines()[-1]) as archive:
        archive.extractall(target)
    folder = target / "hansa"
    for file in (*PYTHON.glob("*.dll"), *PYTHON.glob("*.exe")):
        shutil.copy(file, folder)
    (paths,) = folder.glob("python3*._pth")
    library = "".join(f"{on_windows(PYTHON / name)}\n" for name in ("DLLs", "Lib"))
    paths.write_text(paths.read_text(encoding="ascii") + library, encoding="ascii")
    return folder


def hansa(node: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOL, "--wine", str(node / "python.exe"), "-I", "-X", "utf8", "-m", "hansa", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def test_it_says_its_version(node: Path) -> None:
    done = hansa(node, "--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"hansa {__version__}"), done


def test_it_works_on_manifests_and_an_emulated_node(node: Path) -> None:
    """Extension modules (msgspec, yaml, psutil) are found, and so is the demo's own data file."""
    cluster = node / "cluster.yaml"
    cluster.write_text(cluster_manifests(), encoding="utf-8")
    done = hansa(node, "plan", "--source", on_windows(cluster), "--node-name", "win-1", "--hns", "emulator")
    assert done.returncode == 0, done
    assert "create" in done.stdout
    assert "default/web:http" in done.stdout


def test_modules_come_from_the_folder_alone(node: Path) -> None:
    command = "import hansa, msgspec._core, sys; print(hansa.__file__); print(msgspec._core.__file__); print(sys.path)"
    run = [sys.executable, TOOL, "--wine", str(node / "python.exe"), "-I", "-c", command]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    own, extension, path = done.stdout.splitlines()
    inside = on_windows(node / "packages").lower()
    assert own.lower().startswith(inside), done
    assert extension.lower().startswith(inside), done
    assert str(ROOT / "src").replace("/", "\\\\").lower() not in path.lower()
