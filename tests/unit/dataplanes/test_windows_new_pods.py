"""F19, and the everyday case of it: a pod of this node that is new in HNS when a rule first names it."""

from __future__ import annotations

from tests.unit.dataplanes.windows_node import WindowsNode, local, make_rule, remote

from hansa.hns.api import HnsKind, HnsVerb
from hansa.hns.emulator import l2bridge_node

FRONTEND = "10.96.0.10:80"


def started() -> WindowsNode:
    node = WindowsNode(l2bridge_node())
    node.emulator.add_pod("10.40.3.10")
    node.put(make_rule(FRONTEND, local("10.40.3.10:8080")))
    node.audit()
    node.forget()
    return node


def test_a_pod_that_came_since_the_last_look_is_served_at_once() -> None:
    """kube-proxy lists HNS at every sync; here one look is enough, and only where a new pod is asked for."""
    node = started()
    node.emulator.add_pod("10.40.3.11")
    node.put(make_rule(FRONTEND, local("10.40.3.10:8080", "10.40.3.11:8080")))
    report = node.sync()
    assert node.backends("10.96.0.10:80/tcp") == ["10.40.3.10", "10.40.3.11"]
    assert report.ok
    assert report.conditions == ()
    assert not report.drift, "a new pod is nobody's tampering"
    # Network 4, lists 2, the new endpoint 3, and 4 for the load balancer: within H.7's 4V + 9 for V = 1.
    assert report.host_calls == 13


def test_a_pod_that_hns_does_not_have_yet_is_served_within_a_period() -> None:
    node = started()
    node.put(make_rule(FRONTEND, local("10.40.3.10:8080", "10.40.3.11:8080")))
    report = node.sync()
    assert node.backends("10.96.0.10:80/tcp") == ["10.40.3.10"]
    assert report.conditions == ("backends on this node without HNS endpoint, which the CNI makes: 10.40.3.11",)
    node.emulator.add_pod("10.40.3.11")
    node.forget()
    node.sync()
    assert node.count(HnsVerb.ENUMERATE) == 0, "nothing new is asked for, so nothing is looked at"
    node.audit()
    assert node.backends("10.96.0.10:80/tcp") == ["10.40.3.10", "10.40.3.11"]


def test_other_changes_cost_no_look() -> None:
    node = started()
    node.put(make_rule("10.96.0.11:80", (*local("10.40.3.10:8080"), *remote("10.40.4.7:8080")), owner="d/api"))
    node.sync()
    assert node.backends("10.96.0.11:80/tcp") == ["10.40.3.10", "10.40.4.7"]
    assert node.count(HnsVerb.ENUMERATE) == 0
    assert node.count(HnsVerb.OPEN, HnsKind.ENDPOINT) == 0
