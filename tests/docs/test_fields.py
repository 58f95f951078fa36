"""Every field that kube-proxy's Windows records and HNS's load balancers have is explained, with an example that runs.

The fields are facts: they are listed here, as the sources have them, and not taken from the pages. Flags come from the
schema that hansa itself reads and writes.
"""

from __future__ import annotations

import enum
import re

import pytest
from tests.docs.pages import DOCS, FENCE
from tests.docs.test_names import CALL, FILE, is_known

from hansa.hns.schema import Distribution, LbFlags, MappingFlags

# kubernetes v1.36.2, pkg/proxy/winkernel/proxier.go, type serviceInfo
SERVICE_INFO = {
    "targetPort",
    "externalIPs",
    "loadBalancerIngressIPs",
    "hnsID",
    "nodePorthnsID",
    "policyApplied",
    "remoteEndpoint",
    "hns",
    "preserveDIP",
    "localTrafficDSR",
    "internalTrafficLocal",
    "winProxyOptimization",
}
# kubernetes v1.36.2, pkg/proxy/serviceport.go, type BaseServicePortInfo, embedded in serviceInfo
BASE_SERVICE_PORT_INFO = {
    "clusterIP",
    "port",
    "protocol",
    "nodePort",
    "loadBalancerVIPs",
    "sessionAffinityType",
    "stickyMaxAgeSeconds",
    "externalIPs",
    "loadBalancerSourceRanges",
    "healthCheckNodePort",
    "externalPolicyLocal",
    "internalPolicyLocal",
}
# kubernetes v1.36.2, pkg/proxy/winkernel/proxier.go, type endpointInfo
ENDPOINT_INFO = {
    "ip",
    "port",
    "isLocal",
    "macAddress",
    "hnsID",
    "refCount",
    "providerAddress",
    "hns",
    "ready",
    "serving",
    "terminating",
}
# HCN schema 2, HostComputeLoadBalancer and its port mapping
LOAD_BALANCER = {
    "ID",
    "Owner",
    "HostComputeNetwork",
    "HostComputeEndpoints",
    "SourceVIP",
    "FrontendVIPs",
    "PortMappings",
    "Protocol",
    "InternalPort",
    "ExternalPort",
    "State",
}
POINTS = ("Means", "Comes from", "Read by", "In HNS", "Pitfalls", "In hansa", "Evidence")


def entries(page: str) -> dict[str, str]:
    """The page's entries: third-level headings with their text. Blocks count as text."""
    text = (DOCS / "explain" / f"{page}.md").read_text(encoding="utf-8")
    parts = re.split(
        r"^#{2,3} (.+)$", FENCE.sub(lambda match: match[0].replace("\n#", "\n #"), text), flags=re.MULTILINE
    )
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def has_example(entry: str) -> bool:
    return any(match[1] in {"pycon", "console"} for match in FENCE.finditer(entry))


def flags(*kinds: type[enum.Enum]) -> set[str]:
    return {name for kind in kinds for name in kind.__members__}


FIELDS = [
    *(("service-info", name) for name in sorted(SERVICE_INFO | BASE_SERVICE_PORT_INFO)),
    *(("endpoint-info", name) for name in sorted(ENDPOINT_INFO | {"REMOTE"})),
    *(("load-balancers", name) for name in sorted(LOAD_BALANCER | flags(LbFlags, MappingFlags, Distribution))),
]


@pytest.mark.parametrize(("page", "name"), FIELDS)
def test_every_field_and_flag_has_an_entry_with_an_example_that_runs(page: str, name: str) -> None:
    found = entries(page)
    assert name in found, f"{page}.md does not explain {name}"
    assert has_example(found[name]), f"{page}.md shows no example of {name}"


@pytest.mark.parametrize(("page", "name"), [one for one in FIELDS if one[0] != "load-balancers" and one[1] != "REMOTE"])
def test_an_entry_says_everything_about_its_field(page: str, name: str) -> None:
    entry = entries(page)[name]
    assert [point for point in POINTS if f"- **{point}** " not in entry] == []
    where = entry.partition("- **In hansa** ")[2].partition("- **Evidence**")[0]
    for span in re.findall(r"`([^`\n]+)`", where):
        if FILE.fullmatch(span) or CALL.fullmatch(span):
            assert is_known(span), f"{page}.md, {name}: `{span}` does not exist"


def test_a_field_without_entry_or_example_is_found() -> None:
    found = entries("service-info")
    assert "noSuchField" not in found
    assert not has_example("text\n```text\nno example\n```\n")
    assert has_example("text\n```pycon\n>>> 1\n1\n```\n")
