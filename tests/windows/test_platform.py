"""What only a Windows Python can show: hansa imports there, finds the DLLs where Windows has them, and works."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.hns_double import Counter, Double, double

import hansa
from hansa.errors import DataplaneError
from hansa.hns.api import HnsKind
from hansa.hns.client import HnsClient
from hansa.hns.emulator.server import serve
from hansa.hns.emulator.service import Emulator
from hansa.hns.native import NativeHns

if sys.platform != "win32":
    pytest.skip("needs a Windows Python: make test-windows", allow_module_level=True)

# Modules about the Linux kernel; everything else is for every system.
LINUX_ONLY = ("hansa.netlink", "hansa.dataplanes.nftables")


# What hansa[kpng] and hansa[shell] bring: optional, and not among the packages that are installed for these tests.
EXTRAS = frozenset({"grpc", "grpc_health", "grpc_reflection", "google", "textual"})


def module_names() -> list[str]:
    """All modules of hansa, by their files."""
    return sorted(module.name for module in pkgutil.walk_packages(hansa.__path__, "hansa.", onerror=lambda _: None))


def test_this_is_windows() -> None:
    assert (sys.platform, os.name, os.sep) == ("win32", "nt", "\\")


@pytest.mark.parametrize("name", [name for name in module_names() if not name.startswith(LINUX_ONLY)])
def test_every_module_imports(name: str) -> None:
    if name.endswith("__main__"):
        return
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRAS:
            raise
        pytest.skip(f"the extra that brings {error.name} is not installed here")


@pytest.fixture
def dll() -> Iterator[Double]:
    library = double()
    yield library
    library.connect("")


def test_hansa_finds_the_dlls_of_the_system(dll: Double) -> None:
    """By name only, from system32: the way of a real node. Both DLLs, and ole32's CoTaskMemFree."""
    emulator = Emulator()
    with serve(emulator, "127.0.0.1:0") as server:
        dll.connect(server.address)
        client = HnsClient(NativeHns())
        assert client.version() == emulator.build.version
        document = json.dumps({"Name": "Brücke 🐋", "Type": "L2Bridge"})
        made = json.loads(client.create(HnsKind.NETWORK, document))
        assert made["Name"] == "Brücke 🐋"
        assert len(client.list_ids(HnsKind.NETWORK)) == 1
        assert dll.count(Counter.HANDLES_OPEN) == 0
        dll.connect("")
    assert emulator.bad_closes == 0


def test_a_dll_in_the_working_directory_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with the right name in the wrong place must not run with a node agent's rights."""
    system = Path(os.environ["SYSTEMROOT"]) / "system32" / "computenetwork.dll"
    planted = tmp_path / "planted.dll"
    shutil.copy(system, planted)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataplaneError, match=r"cannot load planted\.dll"):
        NativeHns("planted.dll")
    NativeHns(planted)
