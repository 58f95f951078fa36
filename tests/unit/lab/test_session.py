"""A lab that somebody plays with: time passes when told, and hansa does what it does on a node."""

from __future__ import annotations

from pathlib import Path

from hansa.lab.cluster import Cluster
from hansa.lab.session import AUDIT_S, Session

LAB = Path(__file__).parents[3] / "examples" / "labs" / "overlay.yaml"


def session() -> Session:
    return Session(Cluster.read(LAB.read_text(encoding="utf-8"), name="overlay"))


def test_what_is_deleted_comes_back_within_one_period_and_without_any_event() -> None:
    one = session()
    before = one.balancers()
    victim = next(row for row in before if row.frontend == "172.21.0.10:53/udp" and row.node == "win-1")
    assert one.do(f"delete {victim.guid} win-1") == [
        f"win-1: load balancer {victim.guid[:8].lower()} of 172.21.0.10:53/udp is gone"
    ]
    assert len(one.balancers()) == len(before) - 1
    assert one.do(f"wait {AUDIT_S}") == ["win-1: create load balancer 172.21.0.10:53/udp, missing"]
    assert one.balancers() == before


def test_an_outage_is_told_and_survived() -> None:
    one = session()
    one.do("kill win-1")
    assert "win-1: HNS is unavailable" in one.do(f"wait {AUDIT_S}")
    one.do("start win-1")
    assert "win-1: HNS is healthy" in one.do("wait 60")
    lost = one.do("crash win-2")[0]
    assert lost.startswith("win-2: HNS has restarted, ")
    assert any("create load balancer" in line for line in one.do("wait 60"))
    assert one.do("audit") == ["everything is as desired"]


def test_a_draining_pod_gets_no_new_connections_and_keeps_those_that_it_has() -> None:
    one = session()
    one.do("trace pod/default/client -> svc/default/news")
    sent = one.take_journey()
    assert sent is not None
    assert sent[1].works
    assert one.take_journey() is None
    one.do("drain default/news-1")
    assert {row.name: row.state for row in one.pods()}["default/news-1"] == "draining"
    one.do("trace pod/default/client -> svc/default/news")
    still = one.take_journey()
    assert still is not None
    assert still[1].works  # it is the only one, and it still serves
    one.do("drain default/web-1")
    one.do("trace pod/default/client -> svc/default/web")
    other = one.take_journey()
    assert other is not None
    assert other[1].endpoint is not None
    assert other[1].endpoint.place == "pod default/web-2"


def test_tables() -> None:
    one = session()
    assert [row.system for row in one.nodes()] == ["windows", "windows", "linux"]
    assert "default/web" in one.services()
    assert one.do("") == []
