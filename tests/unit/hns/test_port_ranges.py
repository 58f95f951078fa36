"""What netsh prints about ports, whatever language Windows speaks."""

from __future__ import annotations

import doctest
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.hns import port_ranges
from hansa.hns.port_ranges import PortRange, parse_dynamic, parse_excluded, read_taken_ports
from hansa.net import IPFamily, Protocol

# The layout is that of Microsoft's documentation of netsh; the second one is what a German Windows prints.
DYNAMIC = """
Protocol tcp Dynamic Port Range
---------------------------------
Start Port      : 49152
Number of Ports : 16384

"""
DYNAMIC_GERMAN = """
Protokoll tcp - Dynamischer Portbereich
---------------------------------
Startport       : 1024
Anzahl von Ports: 64511
"""
EXCLUDED = """
Protocol tcp Port Exclusion Ranges

Start Port    End Port
----------    --------
        80          80
      5357        5357
     49722       49785
     50000       50059     *

* - Administered port exclusions.

"""


def test_the_dynamic_range() -> None:
    assert parse_dynamic(DYNAMIC) == PortRange(49152, 65535)
    assert parse_dynamic(DYNAMIC.replace("\n", "\r\n")) == PortRange(49152, 65535)
    assert parse_dynamic(DYNAMIC_GERMAN) == PortRange(1024, 65534)


@pytest.mark.parametrize(
    "text", ["", "The following command was not found.\n", "Start Port : 49152\n", "1 : 1\n2\n3\n"]
)
def test_something_else_is_no_dynamic_range(text: str) -> None:
    assert parse_dynamic(text) is None


def test_excluded_ranges() -> None:
    found = parse_excluded(EXCLUDED)
    assert [str(one) for one in found] == ["80", "5357", "49722-49785", "50000-50059"]
    assert parse_excluded(EXCLUDED.replace("\n", "\r\n")) == found
    assert parse_excluded("") == ()


@given(st.text())
def test_no_text_is_too_strange(text: str) -> None:
    parse_dynamic(text)
    assert all(1 <= one.first <= one.last <= 65535 for one in parse_excluded(text))


@given(st.tuples(st.integers(1, 99), st.integers(0, 9)), st.tuples(st.integers(1, 99), st.integers(0, 9)))
def test_ranges_overlap_where_they_have_a_port_in_common(one: tuple[int, int], other: tuple[int, int]) -> None:
    first, second = (PortRange(start, start + more) for start, more in (one, other))
    common = set(range(first.first, first.last + 1)) & set(range(second.first, second.last + 1))
    assert first.overlaps(second) == second.overlaps(first) == bool(common)
    assert all(port in first and port in second for port in common)


def test_the_examples_in_the_docstrings_hold() -> None:
    found = doctest.testmod(port_ranges)
    assert (found.failed, found.attempted) == (0, 2)


def test_netsh_is_asked_by_its_full_path_for_each_family_and_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program itself is Windows' own; what is asked, and how, is the same everywhere."""
    asked: list[tuple[str, ...]] = []

    def run(command: list[Any], **_: Any) -> subprocess.CompletedProcess[bytes]:
        asked.append(tuple(map(str, command)))
        text = DYNAMIC if "dynamicport" in command else EXCLUDED
        return subprocess.CompletedProcess(command, 0, text.encode(), b"")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("SYSTEMROOT", "/windows")
    found = read_taken_ports()
    assert {(one.family, one.protocol) for one in found} == {
        (family, protocol) for family in IPFamily for protocol in (Protocol.TCP, Protocol.UDP)
    }
    assert all(one.dynamic == PortRange(49152, 65535) and len(one.excluded) == 4 for one in found)
    assert len(asked) == 8
    assert all(command[0].replace("\\", "/") == "/windows/System32/netsh.exe" for command in asked)
    assert asked[0][1:] == ("interface", "ipv4", "show", "dynamicport", "tcp")
    assert asked[-1][1:] == ("interface", "ipv6", "show", "excludedportrange", "protocol=udp")


def test_a_netsh_that_hangs_is_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[Any], **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, 5)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(OSError, match="netsh gives no answer within 5 s"):
        read_taken_ports()


@pytest.mark.skipif(sys.platform == "win32", reason="there it is")
def test_elsewhere_there_is_no_netsh() -> None:
    with pytest.raises(FileNotFoundError):
        read_taken_ports()
