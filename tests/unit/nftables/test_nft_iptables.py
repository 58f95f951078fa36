"""What goes of iptables' rules and what stays, by text. Evidence: operations.md 6."""

from __future__ import annotations

import pytest

from hansa.dataplanes.nftables.iptables import is_kube_proxys, removal


@pytest.mark.parametrize(
    "chain",
    ["KUBE-SERVICES", "KUBE-SVC-NPX46M4PTMTKRN6Y", "KUBE-SEP-A2345", "KUBE-FW-A", "KUBE-EXT-A", "KUBE-IPVS-FILTER"],
)
def test_kube_proxys_chains(chain: str) -> None:
    assert is_kube_proxys(chain)


@pytest.mark.parametrize(
    "chain",
    [
        *("KUBE-KUBELET-CANARY", "KUBE-FIREWALL", "KUBE-IPTABLES-HINT", "KUBE-ROUTER-FORWARD", "KUBE-SVC-"),
        *("KUBE-SERVICES-OF-ANOTHER", "KUBE-SVC-lower", "KUBE-POD-FW-ABC", "KUBE-NWPLCY-ABC", "PREROUTING"),
    ],
)
def test_chains_of_others(chain: str) -> None:
    assert not is_kube_proxys(chain)


def test_nothing_of_kube_proxys_is_nothing_to_do() -> None:
    assert removal("") == ""
    assert removal("*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j ACCEPT\nCOMMIT\n") == ""


def test_ways_in_go_first_then_chains_each_table_by_itself() -> None:
    saved = (
        "# by hand\n*nat\n:PREROUTING ACCEPT [1:2]\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n"
        '-A PREROUTING -m comment --comment "a -j KUBE-SVC-A" -j KUBE-SERVICES\n'
        "-A KUBE-SERVICES -d 10.0.0.1/32 -j KUBE-SVC-A\nCOMMIT\n"
        "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
    )
    assert removal(saved) == (
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n"
        '-D PREROUTING -m comment --comment "a -j KUBE-SVC-A" -j KUBE-SERVICES\n'
        "-X KUBE-SERVICES\n-X KUBE-SVC-A\nCOMMIT\n"
    )


def test_what_others_lead_to_stays_with_all_that_it_leads_to() -> None:
    saved = (
        "*nat\n:MINE - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-SVC-A - [0:0]\n:KUBE-SEP-B - [0:0]\n:KUBE-SEP-C - [0:0]\n"
        "-A MINE -j KUBE-SVC-A\n-A KUBE-SVC-A -g KUBE-SEP-B\n-A KUBE-SEP-B -j KUBE-MARK-MASQ\nCOMMIT\n"
    )
    assert removal(saved) == "*nat\n:KUBE-SEP-C - [0:0]\n-X KUBE-SEP-C\nCOMMIT\n"


def test_somebody_who_marks_from_a_built_in_chain_keeps_the_mark() -> None:
    saved = "*nat\n:KUBE-MARK-MASQ - [0:0]\n-A PREROUTING -s 10.0.0.0/8 -j KUBE-MARK-MASQ\nCOMMIT\n"
    assert removal(saved) == ""
