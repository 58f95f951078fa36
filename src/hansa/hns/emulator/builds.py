"""Windows builds as data: HNS version, switches of behaviour, and how well each is known."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

from hansa.hns.api import HnsVersion, HResult
from hansa.hns.quirks import QUIRKS, Quirk


class Grade(enum.Enum):
    """How an emulated behaviour is known."""

    DOCUMENTED = "documented"  # by Microsoft or Kubernetes
    SEEN = "seen"  # in a public log, issue, test or source
    MEASURED = "measured"  # by hansa's conformance suite on a real node
    INFERRED = "inferred"  # from a code's meaning or from neighbouring facts; to be verified


class Modify(enum.Enum):
    """What HcnModifyLoadBalancer does."""

    WORKS = "works"
    UNSUPPORTED = "unsupported"
    DOES_NOTHING = "says S_OK and changes nothing"


PORT_ALREADY_EXISTS = HResult(0x803B0013)
ENDPOINT_NOT_FOUND = HResult(0x803B0002)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One Windows build. Tests of another behaviour use `dataclasses.replace(build, ...)`; grades are in SWITCHES."""

    name: str
    windows: str
    version: HnsVersion
    grade: Grade
    evidence: str
    modify: Modify
    modify_changes_everything: bool = False
    allows_local_remote_twins: bool = False
    allows_remote_twins: bool = False
    refuses_exception_host_bits: bool = True
    wildcard_listener_blocks_vips: bool = False
    empty_source_vip_is_vip: bool = False
    acl_denies_unmatched: bool = False
    acl_sees_vip: bool = False
    refuses_delete_of_used_endpoint: bool = True
    refuses_delete_of_used_network: bool = False
    unknown_endpoint: HResult = ENDPOINT_NOT_FOUND
    pool_exhausted: HResult = PORT_ALREADY_EXISTS
    lb_block_ports: int = 64
    lb_protocols: frozenset[int] = frozenset({1, 6, 17, 58})
    lb_delete_fails_every: int = 0
    lb_delete_says_invalid_ip: bool = False
    keeps_caller_guid: bool = True
    echoes_owner: bool = True
    tells_lb_network: bool = True

    @property
    def quirks(self) -> tuple[Quirk, ...]:
        """Known defects of this build, those of all builds included."""
        return tuple(quirk for quirk in QUIRKS if not quirk.builds or self.name in quirk.builds)


class Switch(NamedTuple):
    """Evidence of one switch of Build: what it stands for and how well its default is known."""

    meaning: str
    grade: Grade
    evidence: str


SWITCHES: dict[str, Switch] = {
    "modify": Switch("EV-21, EV-22: what HcnModifyLoadBalancer does", Grade.SEEN, "kubernetes/kubernetes#131466"),
    "modify_changes_everything": Switch(
        "Modify may change more than back ends; else 0x80070057", Grade.INFERRED, "windows-proxy H.10: unverified"
    ),
    "allows_local_remote_twins": Switch(
        "a local and a remote endpoint may have one address; else 0x80071392",
        Grade.SEEN,
        "hcn.md 5.10 B1; kubernetes/kubernetes#74766 for the refusal",
    ),
    "allows_remote_twins": Switch("two remote endpoints may have one address", Grade.INFERRED, "windows-proxy D.5"),
    "refuses_exception_host_bits": Switch("EV-11", Grade.SEEN, "microsoft/hcsshim#1951"),
    "wildcard_listener_blocks_vips": Switch("EV-14", Grade.SEEN, "kubernetes/community#8883"),
    "empty_source_vip_is_vip": Switch(
        "without SourceVIP the NAT pool becomes the VIP itself", Grade.SEEN, "kubernetes/community#8890"
    ),
    "acl_denies_unmatched": Switch("default deny once there is any ACL", Grade.SEEN, "Windows-Containers#616"),
    "acl_sees_vip": Switch("egress ACLs see the VIP, not the DIP", Grade.INFERRED, "hcn.md 5.3"),
    "refuses_delete_of_used_endpoint": Switch(
        "EV-28: 0x803B002C; if off, load balancers keep a dangling ID", Grade.INFERRED, "windows-proxy G.4"
    ),
    "refuses_delete_of_used_network": Switch("EV-29: 0x803B002C; if off, endpoints go too", Grade.INFERRED, "EV-29"),
    "unknown_endpoint": Switch(
        "EV-19: code for a load balancer that names an unknown endpoint",
        Grade.SEEN,
        "windows-proxy 0.4 has 0x803B0002; EV-19 has 0x803B000D for schema 1",
    ),
    "pool_exhausted": Switch(
        "EV-15: code when no block of ports is left", Grade.SEEN, "Azure/AKS#1375: 0x803B0013, elsewhere 0x0E"
    ),
    "lb_block_ports": Switch(
        "ports that each load balancer without DSR takes; 0 = none", Grade.SEEN, "SDN collectlogs; hcn.md 5.9"
    ),
    "lb_protocols": Switch("protocols that can be balanced; SCTP is not", Grade.DOCUMENTED, "HCN schema page"),
    "lb_delete_fails_every": Switch("EV-23: every nth delete fails once; 0 = never", Grade.SEEN, "kube-proxy source"),
    "lb_delete_says_invalid_ip": Switch("EV-24: with feature key 140377743", Grade.SEEN, "princepereira/Commands"),
    "keeps_caller_guid": Switch("an id chosen by the caller is kept", Grade.INFERRED, "windows-proxy H.10: unverified"),
    "echoes_owner": Switch("field Owner is told back", Grade.INFERRED, "windows-proxy H.10: unverified"),
    "tells_lb_network": Switch("load balancers tell HostComputeNetwork", Grade.DOCUMENTED, "HCN schema 2.5"),
}


WS2019 = Build(
    name="ws2019",
    windows="Windows Server 2019 (17763)",
    version=HnsVersion(9, 5),
    grade=Grade.SEEN,
    evidence="kubernetes/kubernetes PR 137530 reports 9.5 in 2026",
    modify=Modify.UNSUPPORTED,
    allows_local_remote_twins=True,
    refuses_exception_host_bits=False,
    wildcard_listener_blocks_vips=True,
    empty_source_vip_is_vip=True,
    tells_lb_network=False,
)
WS2022 = Build(
    name="ws2022",
    windows="Windows Server 2022 (20348)",
    version=HnsVersion(13, 3),
    grade=Grade.INFERRED,
    evidence="affinity and dual stack are features of Windows Server 2022",
    modify=Modify.UNSUPPORTED,
    allows_local_remote_twins=True,
)
WIN11 = Build(
    name="win11",
    windows="Windows 11 22H2",
    version=HnsVersion(15, 0),
    grade=Grade.SEEN,
    evidence="projectcalico/calico#8465 shows 15.0 in January 2024",
    modify=Modify.UNSUPPORTED,
)
ZN23H2 = Build(
    name="zn23h2",
    windows="Windows Server 23H2 (25398)",
    version=HnsVersion(15, 5),
    grade=Grade.INFERRED,
    evidence="comment in hnslib names this release for Modify",
    modify=Modify.WORKS,
)
WS2025 = Build(
    name="ws2025",
    windows="Windows Server 2025 (26100)",
    version=HnsVersion(15, 4),
    grade=Grade.SEEN,
    evidence="kubernetes/kubernetes#131466, April 2025",
    modify=Modify.DOES_NOTHING,
    acl_denies_unmatched=True,
)
FUTURE = Build(
    name="future",
    windows="a later build",
    version=HnsVersion(16, 0),
    grade=Grade.INFERRED,
    evidence="hnslib's ranges count on a 16.0",
    modify=Modify.WORKS,
)

BUILDS: dict[str, Build] = {build.name: build for build in (WS2019, WS2022, WIN11, ZN23H2, WS2025, FUTURE)}


class GuidSpelling(enum.Enum):
    """How answers spell GUIDs. MIXED is what has been seen: networks upper case, all others lower case (hcn.md 2.1)."""

    MIXED = "mixed"
    UPPER = "upper"
    LOWER = "lower"
    BRACES = "braces"


class Ipv6Spelling(enum.Enum):
    """How answers spell IPv6 addresses; which one HNS uses is unverified."""

    COMPRESSED = "compressed"
    UPPER = "upper"
    EXPLODED = "exploded"


@dataclass(frozen=True, slots=True)
class Spelling:
    """Variants that readers must not notice. with_extras: answers carry fields of newer schemas and null lists."""

    guids: GuidSpelling = GuidSpelling.MIXED
    ipv6: Ipv6Spelling = Ipv6Spelling.COMPRESSED
    with_extras: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """The emulated host. addresses: the node's own, first of each family = management IP. adapters: () = any exists.

    dynamic_ports: first port and count of the range that load balancers take blocks from (Windows' default).
    management_ip_after_s: HNS shows a new network's management IP only that much later (flannel polls for it).
    """

    addresses: tuple[str, ...] = ("192.0.2.21",)
    mac_address: str = "00-15-5D-20-21-01"
    adapters: tuple[str, ...] = ()
    dynamic_ports: tuple[int, int] = field(default=(49152, 16384))
    management_ip_after_s: float = 0.0
