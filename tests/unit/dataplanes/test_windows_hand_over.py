"""A node changes hands, from kube-proxy to hansa and back: equals are kept, leftovers wait, others are left alone."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from tests.hns_double.route import through
from tests.unit.dataplanes.windows_node import WindowsNode, local, make_config, make_rule, name_of, remote

from hansa.config import make_config as read_config
from hansa.dataplanes.base import HostState, SyncReport
from hansa.dataplanes.windows import cleanup
from hansa.dataplanes.windows.apply import GRACE_AUDITS, WindowsDataplane
from hansa.hns.api import ZERO_GUID, HnsKind, HnsVerb
from hansa.hns.client import HnsClient
from hansa.hns.dumps import DumpFile, emulate, read_dumps
from hansa.hns.emulator import WS2019, Call, Emulator, l2bridge_node
from hansa.hns.schema import HnsLoadBalancer, PortMapping
from hansa.net import parse_address
from hansa.pipeline import Pipeline
from hansa.rules.model import RuleChanges
from hansa.sources.files import read_once

RECORDED = Path(__file__).parent.parent.parent / "recorded" / "ws2019-l2bridge"
STALE, HELD_BY_OTHERS = "172.21.30.99:80/tcp", "10.40.3.200:9100/tcp"
WRITES = {HnsVerb.CREATE, HnsVerb.MODIFY, HnsVerb.DELETE}


class KubeProxysNode:
    """The constructed listing of a node of kube-proxy, and hansa started on it."""

    def __init__(self, **settings: object) -> None:
        names = ("network.txt", "endpoint.txt", "policy.txt")
        dump = read_dumps(DumpFile(name, (RECORDED / name).read_bytes()) for name in names)
        self.emulator: Emulator = emulate(dump, WS2019)
        for balancer in dump.load_balancers:  # a degraded one cannot be deleted at all: not the matter here
            self.emulator.alter(HnsKind.LOAD_BALANCER, balancer.guid, state=2)
        self.writes: list[Call] = []
        self.emulator.watch(lambda call: self.writes.append(call) if call.verb in WRITES else None)
        self.config = read_config(settings, node_name="win-1")
        self.plane = WindowsDataplane(
            HnsClient(through(self.emulator)),
            self.config,
            mac_of=lambda _: None,
            rng=random.Random(1),
            clock=lambda: 0.0,
        )
        pipeline = Pipeline(self.config, frozenset(self.emulator.host_addresses))
        pipeline.apply(read_once(str(RECORDED / "cluster.yaml")))
        message = pipeline.take()
        assert message is not None
        self.message = message
        self.now = 0.0

    def sync(self, changes: RuleChanges | None = None, *, audit: bool = False) -> SyncReport:
        self.now += 60.0
        told = RuleChanges({}, self.message.surroundings) if changes is None else changes
        return self.plane.sync(told, now=self.now, audit=audit)

    def places(self) -> set[str]:
        return {name_of(each) for each in self.emulator.load_balancers() if len(each.frontend_vips) < 2}


def test_nothing_is_written_before_the_api_state_is_complete() -> None:
    node = KubeProxysNode()
    part = RuleChanges(dict(list(node.message.rules.items())[:2]), node.message.surroundings)
    for audit in (False, True, True, True, True):
        assert node.sync(part, audit=audit).state is HostState.WAITING
    assert node.writes == []


def test_a_node_of_kube_proxy_is_put_right_and_its_leftovers_wait_for_two_audits() -> None:
    node = KubeProxysNode()
    locals_before = [each for each in node.emulator.endpoints() if not each.remote]
    others = [each for each in node.emulator.load_balancers() if len(each.frontend_vips) > 1]
    assert others
    node.sync(node.message)
    wanted = {
        "172.21.0.1:443/tcp",
        "172.21.0.10:53/udp",
        "172.21.0.10:53/tcp",
        "172.21.30.7:80/tcp",
        "172.21.30.8:8080/tcp",
        "172.21.30.9:443/tcp",
        "172.21.30.13:80/tcp",
        "198.51.100.40:80/tcp",
        "node:30480/tcp",
    }
    assert wanted <= node.places(), "what the cluster wants is there after the first pass"
    assert STALE in node.places(), "a leftover is not deleted at first sight"
    for _ in range(GRACE_AUDITS):
        node.sync(audit=True)
        assert STALE in node.places()
    node.sync(audit=True)
    assert STALE not in node.places()
    assert "172.21.30.12:80/tcp" not in node.places(), "a service without endpoints"
    assert [each for each in node.emulator.endpoints() if not each.remote] == locals_before
    assert [each for each in node.emulator.load_balancers() if len(each.frontend_vips) > 1] == others
    health_check = "198.51.100.40:10256/tcp"  # neither in a ServiceCIDR nor a node port: it may be anybody's
    assert health_check in node.places()
    for _ in range(3):
        node.writes.clear()
        node.sync(audit=True)
    assert node.writes == []


def test_without_takeover_a_leftover_of_kube_proxy_stays_for_good() -> None:
    node = KubeProxysNode(takeover=False)
    node.sync(node.message)
    for _ in range(GRACE_AUDITS + 3):
        node.sync(audit=True)
    assert STALE in node.places()
    stand_ins = {str(each.addresses[0]) for each in node.emulator.endpoints() if each.remote}
    assert "10.40.2.77" in stand_ins


def test_load_balancers_of_kube_proxy_that_are_as_desired_are_adopted_without_a_call() -> None:
    node = of_kube_proxy()
    before = {each.guid for each in node.emulator.load_balancers()}
    node.start()
    node.forget()
    assert node.sync().ok
    assert node.writes() == []
    assert {each.guid for each in node.emulator.load_balancers()} == before


def of_kube_proxy(**windows: object) -> WindowsNode:
    """As desired to the last field, but with nothing of hansa on it."""
    node = WindowsNode(l2bridge_node(), make_config(**windows))
    node.emulator.add_pod("10.40.3.14")
    node.want(make_rule("10.96.0.7:80", (*local("10.40.3.14:8080"), *remote("10.40.4.9:8080"))))
    node.settle()
    (balancer,) = node.emulator.load_balancers()
    stand_in = next(each for each in node.emulator.endpoints() if each.remote)
    node.emulator.remove(HnsKind.LOAD_BALANCER, balancer.guid)
    node.emulator.remove(HnsKind.ENDPOINT, stand_in.guid)
    made = node.emulator.add(msgspec.structs.replace(stand_in, guid=ZERO_GUID, owner=""))
    endpoints = tuple(made if guid == stand_in.guid else guid for guid in balancer.endpoints)
    node.emulator.add(msgspec.structs.replace(balancer, guid=ZERO_GUID, owner="", endpoints=endpoints))
    return node


@pytest.mark.parametrize("takeover", [True, False])
def test_what_was_adopted_is_handed_back_as_ours_if_it_was_taken_over(tmp_path: Path, takeover: bool) -> None:
    """The journal remembers adoption, so cleanup leaves nothing of a node that hansa has run alone."""
    node = of_kube_proxy(journal_path=str(tmp_path / "journal"), takeover=takeover)
    (tmp_path / "journal").unlink()
    node.start()
    node.settle()
    node.config = cleanup.cleanup_config(node.config)
    node.start()
    node.forget()
    seen = cleanup.preview(node.dataplane, node.config, now=node.now)
    assert node.writes() == []
    results = cleanup.clean(node.dataplane, node.config, now=node.now)
    assert [each.change.key for each in results] == [each.key for each in seen.changes]
    left = node.emulator.load_balancers()
    assert not left
    remotes = [each for each in node.emulator.endpoints() if each.remote]
    assert bool(remotes) is not takeover, "an endpoint without mark is ours only by takeover"
    assert any(not each.remote for each in node.emulator.endpoints())


def test_cleanup_never_takes_over_whatever_the_settings_say() -> None:
    node = of_kube_proxy()
    stray = node.emulator.add(
        HnsLoadBalancer(
            endpoints=node.emulator.load_balancers()[0].endpoints,
            frontend_vips=(parse_address("10.96.0.99"),),
            port_mappings=(PortMapping(protocol=6, internal_port=80, external_port=80),),
        )
    )
    node.config = cleanup.cleanup_config(make_config(takeover=True))
    node.start()
    for _ in range(GRACE_AUDITS + 2):
        assert cleanup.clean(node.dataplane, node.config, now=node.now) == ()
    assert stray in {each.guid for each in node.emulator.load_balancers()}
    kept = cleanup.preview(node.dataplane, node.config, now=node.now).kept
    assert {each.why for each in kept} == {"not made by hansa"}
