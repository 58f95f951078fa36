"""Symptoms on a Windows node, and the known defect that leaves each of them behind. A table; no code reads a host.

Evidence: windows-proxy F (defects, with their upstream issues); hcn.md 5.10 (defects of HNS).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple


class Severity(enum.Enum):
    """ERROR: traffic fails or goes wrong. WARNING: it may, on some builds or soon. NOTE: untidy, or to be looked at."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Symptom(enum.Enum):
    """What can be seen; the value is a stable name for programs."""

    LB_DANGLING = "lb-names-missing-endpoints"
    LB_MISSING = "lb-missing"
    LB_MISSING_CRITICAL = "lb-missing-critical"
    LB_MANY_MISSING = "lb-many-missing"
    LB_STALE = "lb-stale"
    LB_STALE_EMPTY = "lb-stale-no-endpoints"
    LB_UNPLACED = "lb-without-port-mapping"
    LB_DUPLICATE = "lb-duplicate"
    LB_HELD = "lb-place-taken"
    LB_DEGRADED = "lb-degraded"
    LB_NOT_APPLIED = "lb-not-applied"
    LB_TWIN = "lb-names-remote-twin"
    LB_BACKENDS_EXTRA = "lb-extra-backends"
    LB_BACKENDS_MISSING = "lb-missing-backends"
    LB_BACKEND_PORT = "lb-backend-port"
    LB_SOURCE_VIP_EMPTY = "lb-source-vip-empty"
    LB_SOURCE_VIP_WRONG = "lb-source-vip-wrong"
    LB_DSR_LOST = "lb-dsr-lost"
    LB_DSR_DIFFERS = "lb-dsr-differs"
    LB_FAMILY = "lb-family-flag"
    LB_AFFINITY = "lb-affinity"
    LB_FLOWS = "lb-flag-external"
    LB_NODE_PORT_FLAG = "lb-flag-local-routed"
    LB_OTHER = "lb-other-difference"
    LB_HEALTHZ = "lb-healthz-port"
    EP_TWIN = "endpoint-twin"
    EP_DUPLICATE = "endpoint-duplicate"
    EP_HELD = "endpoint-holds-pod-address"
    EP_LEFTOVER = "endpoint-leftover"
    EP_ORPHAN = "endpoint-without-pod"
    EP_DEGRADED = "endpoint-degraded"
    EP_PROVIDER = "endpoint-provider"
    EP_OTHER = "endpoint-other-difference"
    EP_VIP_MISSING = "endpoint-service-vip-missing"
    POD_WITHOUT_EP = "pod-without-endpoint"
    POD_MISPLACED = "pod-on-another-node"
    SOURCE_VIP_MISSING = "source-vip-missing"
    SOURCE_VIP_OUTSIDE = "source-vip-outside"
    UNREADABLE = "object-unreadable"
    POLICY = "network-policy-unreadable"


class Defect(NamedTuple):
    """What leaves such a symptom behind. known_as: hansa's number of the defect, or HNS's (B7), "" = none known.

    upstream: issues, `repository#number` or kubernetes/kubernetes's `#number`; () = none found. remedy: what to do by
    hand while another proxy runs the node.
    """

    severity: Severity
    known_as: str
    upstream: tuple[str, ...]
    meaning: str
    remedy: str

    @property
    def issues(self) -> tuple[str, ...]:
        """`upstream` with every repository named."""
        return tuple(f"kubernetes/kubernetes{each}" if each.startswith("#") else each for each in self.upstream)


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE
_DELETE = "delete it (`hnsdiag delete loadbalancers ID`)"
_REMAKE = f"{_DELETE}, then restart the proxy, which makes it anew"
_RESTART = "restart the proxy, which makes it anew"

DEFECTS: Mapping[Symptom, Defect] = {
    Symptom.LB_DANGLING: Defect(
        _E, "F07", (), "load balancer names endpoints that are gone: connections to them die", _REMAKE
    ),
    Symptom.LB_MISSING: Defect(_E, "F11", ("#135802",), "load balancer was removed and does not come back", _RESTART),
    Symptom.LB_MISSING_CRITICAL: Defect(
        _E,
        "F22",
        ("microsoft/hcsshim#1043",),
        "load balancer of DNS or the API is missing",
        "look for 0x803B0007 in the proxy's log: the switch port was not ready; restart the proxy",
    ),
    Symptom.LB_MANY_MISSING: Defect(
        _E,
        "F12",
        ("#110849", "#110674", "Azure/AKS#2899", "microsoft/Windows-Containers#278"),
        "HNS crashed or was restarted and lost its load balancers",
        "restart the proxy; look for a crash of the HNS service in the event log",
    ),
    Symptom.LB_STALE: Defect(
        _W,
        "F01",
        ("#112836", "#112837"),
        "load balancer that no service asks for: left over from one that is gone or has changed",
        _DELETE,
    ),
    Symptom.LB_STALE_EMPTY: Defect(
        _E,
        "F04",
        ("#137530",),
        "the service has no endpoint to use, and yet its load balancer is there: clients wait for a dead backend",
        _DELETE,
    ),
    Symptom.LB_UNPLACED: Defect(
        _W,
        "F23",
        ("#141488", "#141489", "#141707"),
        "load balancer without port mapping, left by a failed create: it can crash kube-proxy",
        _DELETE,
    ),
    Symptom.LB_DUPLICATE: Defect(
        _W,
        "F02",
        ("#113524", "#113521"),
        "more than one load balancer at one place: which one counts is chance",
        _REMAKE,
    ),
    Symptom.LB_HELD: Defect(
        _E,
        "F36",
        (),
        "another program's load balancer is where this service's belongs",
        "find the program that made it; hansa never touches it",
    ),
    Symptom.LB_DEGRADED: Defect(
        _E,
        "B7",
        ("microsoft/wcnscripts#21",),
        "HNS says that the load balancer is degraded (State 4): it may not work and may refuse to be deleted",
        f"{_DELETE}; if HNS refuses, restart HNS, then the proxy",
    ),
    Symptom.LB_NOT_APPLIED: Defect(
        _E,
        "F27",
        ("projectcalico/calico#8465",),
        "HNS lists the load balancer and says that it is not applied in the switch",
        _REMAKE,
    ),
    Symptom.LB_TWIN: Defect(
        _E,
        "F49",
        ("#137381", "#138000", "#138601", "#138602", "#138603"),
        "traffic follows a remote stand-in although the pod is on this node: typical are DNS time-outs",
        "delete the load balancer, then the remote endpoint, then restart the proxy",
    ),
    Symptom.LB_BACKENDS_EXTRA: Defect(
        _E,
        "F55",
        ("#68511", "antrea-io/antrea#2301", "kubernetes-sigs/sig-windows-tools#380"),
        "load balancer has backends that the service has not, or not any more",
        _REMAKE,
    ),
    Symptom.LB_BACKENDS_MISSING: Defect(
        _W, "F19, F20", (), "load balancer runs with fewer backends than the service has", _REMAKE
    ),
    Symptom.LB_BACKEND_PORT: Defect(
        _E,
        "F79",
        ("#91783", "#132646", "#132647"),
        "load balancer sends to a port that its backends do not serve",
        f"name targetPort by number; {_REMAKE}",
    ),
    Symptom.LB_SOURCE_VIP_EMPTY: Defect(
        _W,
        "F56",
        ("kubernetes/community#8890",),
        "load balancer without source VIP: newer builds of Windows Server 2019 take the VIP itself, and replies loop",
        "nothing with kube-proxy, which never sends one on l2bridge",
    ),
    Symptom.LB_SOURCE_VIP_WRONG: Defect(
        _E,
        "F59",
        ("#79359", "#87792", "#91912", "#91886"),
        "load balancer with another source VIP than its backends need: they answer to nowhere",
        f"check that the proxy and the CNI are told the same source VIP; {_REMAKE}",
    ),
    Symptom.LB_DSR_LOST: Defect(
        _E,
        "F65",
        ("#62046", "#93166"),
        "externalTrafficPolicy Local without DSR: the client's address is lost",
        f"enable DSR in the proxy, on a build that has it; {_REMAKE}",
    ),
    Symptom.LB_DSR_DIFFERS: Defect(
        _W, "F66", (), "DSR on some frontends and not on others", "set DSR as it is to be, then restart the proxy"
    ),
    Symptom.LB_FAMILY: Defect(
        _E, "F76", ("#115501", "#115577", "#136240", "#136241"), "IPv6 and its flag do not go together", _REMAKE
    ),
    Symptom.LB_AFFINITY: Defect(
        _W,
        "F74",
        ("#91701", "#53636", "microsoft/Windows-Containers#20"),
        "session affinity is not what the service says",
        _REMAKE,
    ),
    Symptom.LB_FLOWS: Defect(
        _W,
        "F69",
        ("#113842", "#113742"),
        "flag VipExternalIP is not as it should be: connections break when the service scales",
        _REMAKE,
    ),
    Symptom.LB_NODE_PORT_FLAG: Defect(
        _W, "F85", (), "flag LocalRoutedVip is not as it should be: whether the node itself can use it", _REMAKE
    ),
    Symptom.LB_OTHER: Defect(_W, "", (), "load balancer differs in something that no known defect explains", _REMAKE),
    Symptom.LB_HEALTHZ: Defect(
        _W,
        "F42",
        ("kubernetes/community#8883",),
        "health check load balancer on port 10256: Windows Server 2019 refuses it beside a listener on that port",
        "turn forwardHealthCheckVip off, or give the service externalTrafficPolicy Local",
    ),
    Symptom.EP_TWIN: Defect(
        _E,
        "F49",
        ("#130963", "#131138", "#137381", "#138000"),
        "a local and a remote endpoint have one address: traffic may go to the wrong one",
        "move the load balancers off it, then `hnsdiag delete endpoints ID` of the remote one, never of the local one",
    ),
    Symptom.EP_DUPLICATE: Defect(
        _W,
        "F39",
        ("microsoft/Windows-Containers#631",),
        "several remote endpoints have one address",
        "keep one of them",
    ),
    Symptom.EP_HELD: Defect(
        _E,
        "F47",
        ("#130963", "#131138", "#74766"),
        "a stale remote endpoint holds the address of a pod of this node: the pod gets no network",
        "`hnsdiag delete endpoints ID`, then delete the pod",
    ),
    Symptom.EP_LEFTOVER: Defect(
        _N,
        "F39",
        ("microsoft/Windows-Containers#631",),
        "remote endpoint that no service uses: left over from a former life of the proxy",
        "`hnsdiag delete endpoints ID`, if no load balancer names it",
    ),
    Symptom.EP_ORPHAN: Defect(
        _N,
        "F55",
        ("#68511", "antrea-io/antrea#2301", "kubernetes-sigs/sig-windows-tools#380"),
        "local endpoint that no EndpointSlice names: a pod without service, or a leftover of the CNI",
        "compare with `kubectl get pods -o wide` of this node; a leftover is for the CNI to delete",
    ),
    Symptom.EP_DEGRADED: Defect(
        _E, "", (), "HNS says that the endpoint is degraded (State 5)", "delete the pod, so that the CNI makes it anew"
    ),
    Symptom.EP_PROVIDER: Defect(
        _E,
        "F63",
        (),
        "the endpoint is sent to another node than its address is routed to: the overlay has changed",
        "restart the proxy; if it stays, delete its load balancers, then it",
    ),
    Symptom.EP_OTHER: Defect(_W, "", (), "endpoint differs in something that no known defect explains", _RESTART),
    Symptom.EP_VIP_MISSING: Defect(
        _E, "F61", (), "overlay: nothing answers pods that ask for the MAC of this ClusterIP", _RESTART
    ),
    Symptom.POD_WITHOUT_EP: Defect(
        _E,
        "F26",
        ("projectcalico/calico#5164",),
        "a pod of this node has no HNS endpoint: HNS lost it, or the CNI has not made it",
        "delete the pod, so that the CNI makes it anew",
    ),
    Symptom.POD_MISPLACED: Defect(
        _W,
        "F67",
        ("#71799", "#71851", "aws/containers-roadmap#273"),
        "HNS has the pod on this node, its EndpointSlice has not",
        "check the node name that the proxy is given (hostnameOverride)",
    ),
    Symptom.SOURCE_VIP_MISSING: Defect(
        _E,
        "F57",
        ("#78338", "#123014", "#96996"),
        "overlay without source VIP: load balancers with backends on other nodes cannot be made",
        "set winkernel.sourceVip, or name the CNI's endpoint in winkernel.sourceVipEndpoint",
    ),
    Symptom.SOURCE_VIP_OUTSIDE: Defect(
        _E,
        "F58",
        ("#100962", "kubernetes-sigs/sig-windows-tools#250"),
        "the source VIP lies outside this node's pod subnets: HNS refuses it",
        "take an address of this node's pod CIDR that the CNI gives to no pod",
    ),
    Symptom.UNREADABLE: Defect(
        _W, "F23", ("#141488",), "HNS tells of an object that makes no sense", "look at it by hand"
    ),
    Symptom.POLICY: Defect(
        _W, "F64", (), "the network has a policy that makes no sense", "ask whoever made the network"
    ),
}
