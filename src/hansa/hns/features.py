"""HNS version → features: inclusive ranges, some with holes. Evidence: hcn.md 4 (Microsoft's Go bindings)."""

from __future__ import annotations

import enum
from typing import NamedTuple

from hansa.hns.api import HnsVersion

_ANY_MINOR = 2**31  # "9.max": every minor of a major
_ANY_MAJOR = 2**31


class VersionRange(NamedTuple):
    """Both ends included."""

    first: HnsVersion
    last: HnsVersion

    def __contains__(self, version: object) -> bool:
        return isinstance(version, HnsVersion) and tuple(self.first) <= tuple(version) <= tuple(self.last)

    def __str__(self) -> str:
        if self.last.major == _ANY_MAJOR:
            return f"{self.first} or later"
        return f"{self.first} to {self.last.major}.x"


class FeatureRow(NamedTuple):
    """The name in Microsoft's feature list, the versions that have it, and where that is written."""

    name: str
    ranges: tuple[VersionRange, ...]
    evidence: str

    def __str__(self) -> str:
        return f"{self.name}: HNS " + ", or ".join(str(each) for each in self.ranges)


def _from(major: int, minor: int) -> VersionRange:
    return VersionRange(HnsVersion(major, minor), HnsVersion(_ANY_MAJOR, _ANY_MINOR))


def _within(major: int, minor: int) -> VersionRange:
    return VersionRange(HnsVersion(major, minor), HnsVersion(major, _ANY_MINOR))


_GO = "hnslib 0.1.2 version ranges"


class Feature(enum.Enum):
    """What a build of HNS may be able to do."""

    ACL = FeatureRow("ACL", (_from(7, 2),), _GO)
    API_V2 = FeatureRow("API.V2", (_from(9, 2),), _GO)
    REMOTE_SUBNET = FeatureRow("RemoteSubnet", (_from(9, 2),), _GO)
    HOST_ROUTE = FeatureRow("HostRoute", (_from(9, 2),), _GO)
    DSR = FeatureRow("DSR", (_within(9, 3), _from(10, 2)), _GO + "; 10.0 and 10.1 lack it")
    SLASH32_ENDPOINT_PREFIXES = FeatureRow("Slash32EndpointPrefixes", (_within(9, 3), _from(10, 4)), _GO)
    VXLAN_PORT = FeatureRow("VxlanPort", (_from(10, 3),), _GO)
    ACL_PROTOCOL_252 = FeatureRow("AclSupportForProtocol252", (_from(11, 0),), _GO)
    IPV6_DUAL_STACK = FeatureRow("IPv6DualStack", (_from(11, 10),), _GO)
    L4_PROXY = FeatureRow(
        "L4Proxy", (_within(9, 5), _within(10, 5), _within(11, 11), _within(12, 1), _from(13, 1)), _GO
    )
    SESSION_AFFINITY = FeatureRow("SessionAffinity", (_from(12, 0),), _GO)
    SET_POLICY = FeatureRow("SetPolicy", (_from(13, 0),), _GO)
    L4_WFP_PROXY = FeatureRow("L4WfpProxy", (_from(13, 2),), _GO)
    TIER_ACL = FeatureRow("TierAcl", (_from(14, 0),), _GO)
    NETWORK_ACL = FeatureRow("NetworkACL", (_from(15, 0),), _GO)
    NESTED_IP_SET = FeatureRow("NestedIpSet", (_from(15, 0),), _GO)
    DISABLE_HOST_PORT = FeatureRow("DisableHostPort", (_from(15, 1),), _GO)
    ACCELNET = FeatureRow("Accelnet", (_from(15, 4),), _GO)
    MODIFY_LOAD_BALANCER = FeatureRow(
        "ModifyLoadbalancer",
        (_within(15, 5), _from(16, 0)),
        _GO + "; 15.4 says yes and changes nothing (kubernetes/kubernetes#131466)",
    )

    def __str__(self) -> str:
        return self.value.name


def supports(version: HnsVersion, feature: Feature) -> bool:
    """Whether that HNS claims the feature by its version; a learned "not implemented" overrides it at the caller."""
    return any(version in each for each in feature.value.ranges)


def needed(feature: Feature) -> str:
    """For shortfalls: `9.3 to 9.x, or 10.2 or later`."""
    return ", or ".join(str(each) for each in feature.value.ranges)
