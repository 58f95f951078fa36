"""`hansa run` on a Linux node, as a process in a network namespace, with manifests in a folder and real connections.

Evidence: windows-proxy F35 and I14 hold for every dataplane: a restart writes nothing; service-semantics I1 to I4.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.host.linux.hansa_node import BOTH, START_LIMIT_S, WEB, Node, lab_of_two, steady_client, until
from tests.host.linux.namespaces import Lab, missing

from hansa.testing import L1, R1, endpoint_slice

WHY_NOT = missing()
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run"),
    pytest.mark.xdist_group("nft-run"),
]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with lab_of_two() as found:
        yield found


@pytest.fixture
def on(lab: Lab, tmp_path: Path) -> Iterator[Node]:
    found = Node(lab, tmp_path)
    try:
        yield found
    finally:
        found.close()


def test_a_whole_life(on: Node) -> None:
    assert "create  table   IPv4 hansa" in on.output("plan", *on.common)
    first = on.start()
    # The chance that so many connections go one way is one in a thousand million.
    assert on.met(30) == BOTH

    on.put(endpoint_slice("web-a", [L1]))
    until(lambda: on.syncs == 2, START_LIMIT_S, lambda: on.log)
    assert on.met(30) == {"10.1.1.11:8080"}

    with steady_client(on.lab) as failures:
        before = on.generation()
        first.kill()
        first.wait()
        assert on.met(12) == {"10.1.1.11:8080"}  # nobody is there, and traffic goes on
        second = on.start()
        assert on.generation() == before, on.log
        assert "Nothing to do" in on.output("plan", *on.common)
        on.put(endpoint_slice("web-a", [L1, R1]))
        until(lambda: on.syncs == 1, START_LIMIT_S, lambda: on.log)
        assert on.met(30) == BOTH
    assert failures == [], failures[:3]

    second.send_signal(signal.SIGTERM)
    assert second.wait() == 128 + signal.SIGTERM
    assert on.met(30) == BOTH
    listed = on.output("cleanup", "--dry-run")
    assert on.met(2) <= BOTH
    assert ("ip hansa" in listed, "ip6 hansa" in listed, "2 would be deleted" in listed) == (True, True, True)
    assert "2 deleted" in on.output("cleanup", "--lock", str(on.folder.parent / "lock"))
    assert on.connect(WEB) == "untouched"
