"""What /configz and /debug/state show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.config import SETTINGS, make_config, parse_duration
from hansa.documents import config_document, go_duration

laws = settings(max_examples=50, deadline=None, derandomize=True)
EVERYTHING: dict[str, Any] = {
    "hostnameOverride": "Other",
    "bindAddress": "192.0.2.9,2001:db8::9",
    "healthzBindAddress": "[::1]:0",
    "metricsBindAddress": "off",
    "bindAddressHardFail": True,
    "clusterCIDR": "10.1.0.0/16,fd00:1::/48",
    "detectLocalMode": "InterfaceNamePrefix",
    "detectLocal": {"bridgeInterface": "br0", "interfaceNamePrefix": "veth"},
    "nodePortAddresses": ["192.0.2.0/24", "2001:db8::/64"],
    "featureGates": {"AllowServiceExternalIPs": False},
    "conntrack": {
        "maxPerCore": 1000,
        "min": 2000,
        "tcpEstablishedTimeout": "2h",
        "tcpCloseWaitTimeout": "90s",
        "tcpBeLiberal": True,
        "udpTimeout": "10s",
        "udpStreamTimeout": "20s",
    },
    "ipForward": True,
    "winkernel": {
        "networkName": "cbr0",
        "sourceVip": "10.1.1.2",
        "enableDSR": True,
        "rootHnsEndpointName": "host",
        "forwardHealthCheckVip": True,
        "sourceVipEndpoint": "vip",
        "createSourceVip": False,
        "journalPath": "C:\\hansa\\journal",
        "callBudget": 10,
        "passBudget": "5s",
        "verifyPerPeriod": 3,
        "dnsProbePeriod": "15s",
    },
    "syncPeriod": "20s",
    "minSyncPeriod": "0s",
    "fullSyncPeriod": "10m",
    "fullCheckPeriod": "1500ms",
    "masqueradeAll": True,
    "localhostNodePorts": True,
    "proxyName": "hansa",
    "takeover": False,
    "criticalServices": ["a/b"],
}


@pytest.mark.parametrize("mode", ["kernelspace", "nftables"])
@pytest.mark.parametrize("values", [{}, {"nodePortAddresses": []}, {"detectLocalMode": "NodeCIDR"}, EVERYTHING])
def test_the_document_reads_back_into_the_same_configuration(values: dict[str, Any], mode: str) -> None:
    config = make_config(values, node_name="n1")
    document = json.loads(json.dumps(config_document(config, mode)))
    assert make_config(document, node_name="ignored") == config
    assert (document["kind"], document["mode"]) == ("KubeProxyConfiguration", mode)
    section = document["nftables" if mode == "nftables" else "iptables"]
    assert section["syncPeriod"] == document["syncPeriod"]


def test_every_setting_is_in_the_document() -> None:
    document = config_document(make_config(EVERYTHING, node_name="n1"), "kernelspace")
    sections = ("iptables.", "nftables.")  # repeated at top level
    for setting in SETTINGS:
        found: Any = document
        for part in setting.path.split("."):
            if setting.path.startswith(sections):
                break
            assert part in found, setting.path
            found = found[part]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (1e-9, "1ns"), (1.5e-6, "1.5µs"), (0.001, "1ms"), (59.5, "59.5s"), (60, "1m0s"), (900, "15m0s")],
)
def test_durations_are_as_go_prints_them(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


@laws
@given(st.integers(0, 10**15))
def test_durations_read_back(nanoseconds: int) -> None:
    assert parse_duration(go_duration(nanoseconds / 1e9)) == pytest.approx(nanoseconds / 1e9, abs=1e-9)
