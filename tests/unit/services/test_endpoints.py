"""Tables for select_endpoints(): sections 8 and 10, with the standing example's L1, L2, R1 and R2."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hansa.api.objects import Policy, SliceEndpoint
from hansa.net import IPFamily, Protocol
from hansa.services.endpoints import select_endpoints
from hansa.services.model import Endpoint, Reason, Selection, ServicePort, ServicePortName, TopologyMode
from hansa.services.slices import merge_slices
from hansa.testing import CLUSTER_IP, L1, L2, NODE_FACTS, R1, R2, endpoint_slice

NAMES = {one.address: name for one, name in ((L1, "L1"), (L2, "L2"), (R1, "R1"), (R2, "R2"))}
BY_NAME = {"L1": L1, "L2": L2, "R1": R1, "R2": R2}
YES, NO = True, False
READY = (YES, YES, NO)
DRAINING = (NO, YES, YES)
GONE = (NO, NO, YES)
STARTING = (NO, NO, NO)
UNREADY_SERVING = (NO, YES, NO)
LEAVING_BUT_READY = (YES, NO, YES)
CLUSTER, LOCAL = Policy.CLUSTER, Policy.LOCAL

Conditions = tuple[bool, bool, bool]


def port(internal: Policy = CLUSTER, external: Policy = CLUSTER, *, accessible: bool = True) -> ServicePort:
    return ServicePort(
        name=ServicePortName("d", "web", "http", Protocol.TCP),
        family=IPFamily.IPV4,
        port=80,
        cluster_ip=CLUSTER_IP,
        node_port=30080 if accessible else 0,
        internal_policy=internal,
        external_policy=external,
    )


def select(of: ServicePort, zones: str = "", /, **conditions: Conditions) -> Selection:
    """Select among the endpoints named, in the conditions given; `zones` hints them in the order of naming."""
    hints = [*zones.split(), *[""] * len(conditions)]
    entries: list[SliceEndpoint] = []
    for (name, (ready, serving, terminating)), zone in zip(conditions.items(), hints, strict=False):
        entry = replace(BY_NAME[name], ready=ready, serving=serving, terminating=terminating)
        entries.append(replace(entry, zone_hints=frozenset({zone} if zone else ())))
    merged = merge_slices([endpoint_slice("web-a", entries)], family=IPFamily.IPV4, node_name="n1")
    return select_endpoints(of, merged["http", Protocol.TCP], NODE_FACTS)


def names(endpoints: tuple[Endpoint, ...] | None) -> str | None:
    """`L1 R1`, "" for an empty set, None for one that is not wanted."""
    return None if endpoints is None else " ".join(NAMES[one.address] for one in endpoints)


def reasons(selection: Selection) -> dict[str, Reason]:
    return {NAMES[one.address]: reason for one, reason in selection.excluded}


@pytest.mark.parametrize(
    "of, conditions, cluster, local, usable",
    [
        (port(), {"L1": READY, "R1": READY}, "L1 R1", None, YES),
        (port(LOCAL), {"L1": READY, "R1": READY}, "L1 R1", "L1", YES),
        (port(LOCAL, accessible=NO), {"L1": READY, "R1": READY}, None, "L1", YES),
        (port(CLUSTER, LOCAL), {"L1": READY, "R1": READY}, "L1 R1", "L1", YES),
        (port(CLUSTER, LOCAL, accessible=NO), {"L1": READY, "R1": READY}, "L1 R1", None, YES),  # X4, t122
        (port(LOCAL, LOCAL), {"R1": READY}, "R1", "", YES),  # t119
        (port(LOCAL, accessible=NO), {"R1": READY}, None, "", YES),  # R2, t116
        (port(CLUSTER, LOCAL), {"L1": DRAINING, "R1": READY}, "R1", "L1", YES),  # C8, t078
        (port(LOCAL, accessible=NO), {"L1": DRAINING, "R1": READY}, None, "L1", YES),  # t079
        (port(LOCAL, accessible=NO), {"L1": GONE, "R1": READY}, None, "", YES),  # t080
        (port(CLUSTER, LOCAL), {"L1": DRAINING, "L2": READY}, "L2", "L2", YES),  # t082
        (port(), {"L1": STARTING}, "", None, NO),  # t071
        (port(), {"L1": GONE, "R1": GONE}, "", None, NO),  # C7, t074
        (port(), {"L1": UNREADY_SERVING}, "", None, NO),  # C6, t075
        (port(), {"L1": LEAVING_BUT_READY}, "L1", None, YES),  # C4, t076
        (port(), {"L1": DRAINING, "R1": DRAINING}, "L1 R1", None, YES),  # t073
        (port(), {"L1": READY, "R1": DRAINING}, "L1", None, YES),  # t072
        (port(LOCAL, accessible=NO), {"R1": DRAINING}, None, "", YES),  # step 4
        (port(LOCAL, accessible=NO), {"R1": GONE, "L1": STARTING}, None, "", NO),  # step 4
        (port(), {}, "", None, NO),  # step 1, t138
        (port(LOCAL, LOCAL), {}, "", "", NO),  # t120
    ],
)
def test_sets(of: ServicePort, conditions: dict[str, Conditions], cluster: str, local: str, usable: bool) -> None:
    """Section 10, steps 1 to 4: which sets are wanted, what is in them, and whether any endpoint is usable."""
    found = select(of, **conditions)
    assert (names(found.cluster), names(found.local), found.any_usable) == (cluster, local, usable)


def test_fallback_is_marked() -> None:
    """C5: the fallback is taken only if the scope has no ready endpoint; C8: each set on its own."""
    found = select(port(CLUSTER, LOCAL), L1=DRAINING, R1=READY)
    assert (found.cluster_fallback, found.local_fallback) == (NO, YES)
    found = select(port(CLUSTER, LOCAL), L1=DRAINING, R1=DRAINING)
    assert (found.cluster_fallback, found.local_fallback) == (YES, YES)
    found = select(port(CLUSTER, LOCAL), L1=READY, R1=DRAINING)
    assert (found.cluster_fallback, found.local_fallback) == (NO, NO)
    found = select(port(CLUSTER, LOCAL), R1=STARTING)
    assert (found.cluster_fallback, found.local_fallback) == (NO, NO)


def test_hints_narrow_the_cluster_set_only() -> None:
    """T1: Local sets ignore hints (t095): L1→zb, L2→za, R1→za."""
    found = select(port(CLUSTER, LOCAL), "zb za za", L1=READY, L2=READY, R1=READY)
    assert (names(found.cluster), names(found.local)) == ("L2 R1", "L1 L2")
    assert found.topology is TopologyMode.SAME_ZONE
    assert names(found.reachable) == "L1 L2 R1"
    assert found.excluded == ()


def test_hints_of_endpoints_that_are_not_ready() -> None:
    """T2: only ready endpoints are examined (t089, t090)."""
    found = select(port(), "za za", L1=READY, R1=READY, R2=STARTING)
    assert (names(found.cluster), found.topology) == ("L1 R1", TopologyMode.SAME_ZONE)
    assert names(select(port(), "za zb", L1=STARTING, R2=READY).cluster) == "R2"


def test_no_hints_in_the_fallback() -> None:
    """C9: the Cluster fallback takes all serving-terminating endpoints (t081)."""
    found = select(port(), "za zb", L1=DRAINING, R2=DRAINING)
    assert (names(found.cluster), found.topology) == ("L1 R2", TopologyMode.ALL)


def test_no_hints_for_local_policy() -> None:
    """T1: iTP Local without external frontend, L1→zb (t099)."""
    found = select(port(LOCAL, accessible=NO), "zb", L1=READY)
    assert (names(found.local), found.topology) == ("L1", TopologyMode.ALL)


def test_reasons() -> None:
    """Section 8: each endpoint in no set says why."""
    found = select(port(), L1=READY, L2=STARTING, R1=DRAINING, R2=GONE)
    assert reasons(found) == {"L2": Reason.NOT_READY, "R1": Reason.TERMINATING, "R2": Reason.NOT_SERVING}
    found = select(port(LOCAL, accessible=NO), L1=READY, L2=DRAINING, R1=READY, R2=DRAINING)
    assert reasons(found) == {"L2": Reason.TERMINATING, "R1": Reason.NOT_LOCAL, "R2": Reason.NOT_LOCAL}
    found = select(port(), "za za zb", L1=READY, R1=READY, R2=READY)
    assert reasons(found) == {"R2": Reason.OTHER_ZONE}
    found = select(port(LOCAL, LOCAL), "zb za", L1=READY, R1=READY)
    assert reasons(found) == {}
    found = select(port(), L1=UNREADY_SERVING)
    assert reasons(found) == {"L1": Reason.NOT_READY}


def test_reason_of_node_hints() -> None:
    """T3: an endpoint that is hinted for other nodes only."""
    entries = [replace(L1, node_hints=frozenset({"n1"})), replace(R1, node_hints=frozenset({"n2"}))]
    merged = merge_slices([endpoint_slice("web-a", entries)], family=IPFamily.IPV4, node_name="n1")
    found = select_endpoints(port(), merged["http", Protocol.TCP], NODE_FACTS)
    assert names(found.cluster) == "L1"
    assert reasons(found) == {"R1": Reason.OTHER_NODE}


def test_the_union_is_in_textual_order() -> None:
    """E14, step 6: reachable is the union of the wanted sets."""
    found = select(port(CLUSTER, LOCAL), L2=DRAINING, R1=READY, R2=READY)
    assert (names(found.cluster), names(found.local)) == ("R1 R2", "L2")
    assert names(found.reachable) == "L2 R1 R2"
