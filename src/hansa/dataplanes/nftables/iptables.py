"""What kube-proxy leaves in iptables, and how to take it out and nothing else; texts in, texts out.

`removal` reads what `iptables-save` prints and writes what `iptables-restore --noflush` takes. kubelet's chains and
those of other programs stay, and so does a chain that a rule of theirs still jumps to.
Evidence: operations.md sections 6 and 14; the names that kube-proxy 1.36 gives its chains in modes iptables and ipvs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

MARK = "KUBE-MARK-MASQ"  # was once kubelet's, too, and other programs jump there: it goes only if nobody does
# In either mode.
_CHAINS = frozenset(
    {
        *("KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-FORWARD"),
        *("KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY", MARK),
        *("KUBE-LOAD-BALANCER", "KUBE-NODE-PORT", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER"),
        *("KUBE-SOURCE-RANGES-FIREWALL",),
    }
)
_CHAIN_OF_A_SERVICE = re.compile(r"KUBE-(SVC|SVL|EXT|FW|SEP|XLB)-[A-Z2-7]+")
_BUILT_IN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
_RULE = re.compile(r"-A (?P<chain>\S+) (?P<rest>.*)")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')  # a comment may say anything
_JUMP = re.compile(r"(?:^|\s)(?:-j|--jump|-g|--goto) (?P<target>\S+)")


def is_kube_proxys(chain: str) -> bool:
    return chain in _CHAINS or _CHAIN_OF_A_SERVICE.fullmatch(chain) is not None


@dataclass(slots=True)
class _Table:
    """A table as it was saved. rules: chain and the rest of the line, in order."""

    name: str
    chains: list[str] = field(default_factory=list)
    rules: list[tuple[str, str]] = field(default_factory=list)


def removal(saved: str) -> str:
    """What takes kube-proxy's rules out of all tables that were saved; "" if there are none."""
    return "".join(_removal(table) for table in _tables(saved))


def _tables(saved: str) -> Iterator[_Table]:
    table: _Table | None = None
    for line in saved.splitlines():
        if line.startswith("*"):
            table = _Table(line[1:].strip())
        elif table is None:
            continue
        elif line.startswith(":"):
            table.chains.append(line[1:].split()[0])
        elif match := _RULE.fullmatch(line.strip()):
            table.rules.append((match["chain"], match["rest"]))
        elif line.startswith("COMMIT"):
            yield table
            table = None


def _removal(table: _Table) -> str:
    theirs = [chain for chain in table.chains if is_kube_proxys(chain)]
    if not theirs:
        return ""
    jumps: list[str] = []
    others: set[str] = set()  # chains of kube-proxy's that rules of others still lead to
    inner: list[tuple[str, str]] = []
    for chain, rest in table.rules:
        match = _JUMP.search(_QUOTED.sub('""', rest))
        if match is None or not is_kube_proxys(match["target"]):
            continue
        if is_kube_proxys(chain):
            inner.append((chain, match["target"]))
        elif chain in _BUILT_IN and match["target"] != MARK:
            jumps.append(f"-D {chain} {rest}")  # the way in, which kube-proxy made
        else:
            others.add(match["target"])
    needed: set[str] = set()
    while others:
        needed |= others
        others = {target for chain, target in inner if chain in needed} - needed
    going = [chain for chain in theirs if chain not in needed]
    if not going and not jumps:
        return ""
    lines = [
        f"*{table.name}",
        *(f":{chain} - [0:0]" for chain in going),  # which empties it
        *jumps,
        *(f"-X {chain}" for chain in going),
        "COMMIT",
        "",
    ]
    return "\n".join(lines)
