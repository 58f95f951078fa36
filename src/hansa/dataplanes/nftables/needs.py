"""What a Linux node needs besides rules: features of the kernel, settings, and no second proxy; pure.

`probe_messages` ask for everything that hansa's tables are made of, in a transaction that cannot succeed and so changes
nothing; `missing_features` reads the refusals. `wanted_settings` says what /proc/sys is to hold, `judge_rivals` what
follows from another proxy's tables. `host` does it all.
Evidence: operations.md sections 6 and 14; measured on Linux 6.18, where a transaction that is refused for one message
has still been told the refusals of all others.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hansa.config import LinuxConfig
from hansa.dataplanes.nftables import wire
from hansa.dataplanes.nftables.frame import PRIORITY_DESTINATION_NAT, PRIORITY_RAW, PRIORITY_SOURCE_NAT
from hansa.dataplanes.nftables.objects import (
    ChainRule,
    Draw,
    Hook,
    InSet,
    LookUpPriority,
    Masquerade,
    OwnAddress,
    Part,
    Refuse,
    Remember,
    Selector,
    SetMark,
    SetSpec,
    Translate,
    Translated,
    nft_family,
)
from hansa.errors import DataplaneError
from hansa.net import IPFamily
from hansa.netlink import nftables as nf
from hansa.netlink.codec import NLM_F_CREATE, NLM_F_EXCL, Answer

# -- features of the kernel ------------------------------------------------------------------------------------------

PROBE_TABLE = "hansa-probe"
# The last message of the probe: it names what cannot be there, so that the kernel undoes all the others.
DOOM = "doom"


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that hansa's tables are made of. option: what switches it on when a kernel is built."""

    name: str
    option: str

    def __str__(self) -> str:
        return f"{self.name} ({self.option})"


PRIVILEGE = Feature("the right to change rules", "CAP_NET_ADMIN in the network namespace")
NF_TABLES = Feature("nf_tables", "CONFIG_NF_TABLES")
CONNTRACK = Feature("reading the connection table", "CONFIG_NF_CT_NETLINK")
MAPS = Feature("maps from concatenated keys to concatenated data", "CONFIG_NF_TABLES of Linux 5.6 or newer")
RANGES = Feature("ranges in concatenated keys", "CONFIG_NF_TABLES of Linux 5.6 or newer")
VERDICTS = Feature("verdict maps", "CONFIG_NF_TABLES")
MEMORY = Feature("maps that packets write, with timeouts", "CONFIG_NF_TABLES")
FILTER_CHAINS = Feature("chains of type filter", "CONFIG_NF_TABLES")
NAT_CHAINS = Feature("chains of type nat", "CONFIG_NFT_NAT")
DNAT = Feature("destination NAT from a map", "CONFIG_NFT_NAT")
MASQUERADE = Feature("masquerading", "CONFIG_NFT_MASQ")
NUMGEN = Feature("random numbers (numgen)", "CONFIG_NFT_NUMGEN")
REJECT = Feature("answers with ICMP (reject)", "CONFIG_NFT_REJECT")
CONNECTIONS = Feature("the state of connections (ct)", "CONFIG_NFT_CT")
MARKS = Feature("marks of packets", "CONFIG_NF_TABLES")


def tables(family: IPFamily) -> Feature:
    return Feature(f"tables of {family}", f"CONFIG_NF_TABLES_{family.value.upper()}")


def own_addresses(family: IPFamily) -> Feature:
    return Feature(f"telling own {family} addresses (fib)", f"CONFIG_NFT_FIB_{family.value.upper()}")


class Probe(NamedTuple):
    """One message of the probe. needs: the features without which it must fail; their absence says it all."""

    feature: Feature | None
    needs: tuple[Feature, ...]
    kind: int
    flags: int
    payload: bytes


_KEY = (Selector.DESTINATION, Selector.PROTOCOL, Selector.PORT)
_PARTS = (Part.ADDRESS, Part.PROTOCOL, Part.PORT)
_PROBED_SETS = (
    (MAPS, SetSpec("slots", (*_PARTS, Part.CLASS), data=(Part.ADDRESS, Part.PORT))),
    (MAPS, SetSpec("picks", (*_PARTS, Part.CLASS), data=(Part.CLASS,))),
    (RANGES, SetSpec("permitted", (*_PARTS, Part.ADDRESS), interval=True)),
    (VERDICTS, SetSpec("services", _PARTS, data=())),
    (MEMORY, SetSpec("affinity", (Part.CLASS, Part.ADDRESS), data=(Part.CLASS,), size=1024)),
)
_PROBED_CHAINS = (
    (NAT_CHAINS, "in", ("nat", Hook.PREROUTING.value, PRIORITY_DESTINATION_NAT)),
    (NAT_CHAINS, "out", ("nat", Hook.POSTROUTING.value, PRIORITY_SOURCE_NAT)),
    (FILTER_CHAINS, "first", ("filter", Hook.PREROUTING.value, PRIORITY_RAW)),
)


def probe_messages(family: IPFamily, extra: Iterable[Probe] = ()) -> Iterator[Probe]:
    """One family's part of the probe: a table of its own with one of everything. extra: put before the end."""
    number, table = wire.family_number(family), tables(family)
    yield Probe(table, (), nf.NEW_TABLE, NLM_F_CREATE, nf.table(number, PROBE_TABLE))
    new = NLM_F_CREATE | NLM_F_EXCL
    for set_id, (feature, spec) in enumerate(_PROBED_SETS, start=1):
        shape = wire.set_shape(spec, family)
        payload = nf.new_set(number, PROBE_TABLE, spec.name, shape=shape, set_id=set_id)
        yield Probe(feature, (table,), nf.NEW_SET, new, payload)
    for feature, name, base in _PROBED_CHAINS:
        yield Probe(feature, (table,), nf.NEW_CHAIN, new, nf.chain(number, PROBE_TABLE, name, base=base))
    memory = (Selector.PRIORITY, Selector.SOURCE)
    rules = (
        (own_addresses(family), FILTER_CHAINS, "first", OwnAddress(Selector.DESTINATION)),
        (CONNECTIONS, FILTER_CHAINS, "first", Translated()),
        (MARKS, FILTER_CHAINS, "first", SetMark(1)),
        (REJECT, FILTER_CHAINS, "first", Refuse()),
        (RANGES, RANGES, "first", InSet((*_KEY, Selector.SOURCE), "permitted")),
        (NUMGEN, NAT_CHAINS, "in", Draw(2)),
        (MAPS, MAPS, "in", LookUpPriority((*_KEY, Selector.PRIORITY), "picks")),
        (MEMORY, MEMORY, "in", Remember(memory, "affinity", 10)),
        (DNAT, MAPS, "in", Translate((*_KEY, Selector.PRIORITY), "slots")),
        (MASQUERADE, NAT_CHAINS, "out", Masquerade()),
    )
    chains = {"first": FILTER_CHAINS, "in": NAT_CHAINS, "out": NAT_CHAINS}
    for feature, needed, chain, statement in rules:
        needs = (table, chains[chain], needed)
        payload = nf.rule(number, PROBE_TABLE, chain, wire.compile_rule(ChainRule((statement,)), family), "")
        yield Probe(feature, needs, nf.NEW_RULE, NLM_F_CREATE, payload)
    yield from extra
    yield Probe(None, (), nf.DEL_CHAIN, 0, nf.chain(number, PROBE_TABLE, DOOM))


class Missing(NamedTuple):
    """A feature that the kernel has not, and its words."""

    feature: Feature
    words: str

    def __str__(self) -> str:
        return f"{self.feature}: {self.words}"


def missing_features(
    probes: Sequence[Probe], refusals: Mapping[int, Answer], whole: Answer | None
) -> tuple[Missing, ...]:
    """What the refusals mean. refusals: by place in `probes`; whole: the refusal of the transaction as such, or None.

    Each feature once; what could not work for lack of another feature is not told.
    """
    if whole is not None:
        lacking = PRIVILEGE if whole.code == errno.EPERM else NF_TABLES
        return (Missing(lacking, str(whole)),)
    found: dict[Feature, Missing] = {}
    for place, probe in enumerate(probes):
        answer = refusals.get(place)
        if answer is None or probe.feature is None or any(feature in found for feature in probe.needs):
            continue
        found.setdefault(probe.feature, Missing(probe.feature, str(answer)))
    return tuple(found.values())


def explain_missing(missing: Sequence[Missing]) -> str:
    """One sentence for the operator."""
    listed = "; ".join(str(one) for one in missing)
    if any(one.feature is PRIVILEGE for one in missing):
        return f"run hansa as root: this process lacks {listed}"
    return f"this kernel lacks what the nftables dataplane is made of: {listed}"


# -- another proxy ---------------------------------------------------------------------------------------------------

KUBE_PROXY_TABLE = "kube-proxy"
# kube-proxy's iptables mode makes it in both tables, its ipvs mode in the first; kubelet makes others, but not this.
KUBE_PROXY_CHAIN = "KUBE-SERVICES"
IPTABLES_TABLES = ("nat", "filter")


@dataclass(frozen=True, slots=True)
class NftablesRival:
    """kube-proxy's own nftables table, which can be taken over."""

    family: IPFamily

    def __str__(self) -> str:
        return f"table {nft_family(self.family)} {KUBE_PROXY_TABLE}"


@dataclass(frozen=True, slots=True)
class IptablesRival:
    """kube-proxy's chains in a table of iptables. legacy: the kernel's old iptables, else the one over nf_tables."""

    family: IPFamily
    table: str
    legacy: bool

    @property
    def program(self) -> str:
        """The program for these tables; `-save` and `-restore` come behind."""
        return f"{'iptables' if self.family is IPFamily.IPV4 else 'ip6tables'}-{'legacy' if self.legacy else 'nft'}"

    def __str__(self) -> str:
        return f"chain {KUBE_PROXY_CHAIN} in {self.program} -t {self.table}"


Rival = NftablesRival | IptablesRival


def judge_rivals(rivals: Sequence[Rival], *, takeover: bool, beside_another: bool) -> tuple[Rival, ...]:
    """Those of kube-proxy's rules that go once hansa's own are in place.

    beside_another: hansa serves only what has its service-proxy-name, so another proxy has its right here. Raises
    DataplaneError if two proxies would translate the same packets: whichever hangs first wins, so rules of the past do.
    """
    if beside_another or not rivals:
        return ()
    if not takeover:
        raise DataplaneError(
            f"kube-proxy's rules are in the way: {', '.join(map(str, rivals))}. Stop kube-proxy on this node, then "
            "set takeover: true to let hansa replace them without a gap, or remove them with `kube-proxy --cleanup`"
        )
    return tuple(rivals)


def explain_missing_programs(rivals: Sequence[Rival], programs: Sequence[str]) -> str:
    """One sentence for the operator: rules of iptables cannot be removed without iptables."""
    return (
        f"kube-proxy's rules are in the way: {', '.join(map(str, rivals))}. To replace them hansa needs "
        f"{', '.join(programs)}, which this system has not. Install iptables, or stop kube-proxy on this node and "
        "remove them with `kube-proxy --cleanup`, or restart the node"
    )


# -- settings --------------------------------------------------------------------------------------------------------

# kube-proxy's bound: more entries than this are not asked for on account of many processors.
MAX_ENTRIES_BY_CORES = 1 << 20
ENTRIES_PER_BUCKET = 4
MAX_ENTRIES = "net/netfilter/nf_conntrack_max"
CONNECTION_COUNT = "net/netfilter/nf_conntrack_count"
FORWARDING = {IPFamily.IPV4: "net/ipv4/ip_forward", IPFamily.IPV6: "net/ipv6/conf/all/forwarding"}


class Setting(NamedTuple):
    """A file below /proc/sys and the number in it."""

    path: str
    value: int


# What it must be where nothing guards loopback.
ROUTE_LOCALNET = Setting("net/ipv4/conf/all/route_localnet", 0)


def wanted_settings(config: LinuxConfig, *, core_count: int, families: Iterable[IPFamily]) -> tuple[Setting, ...]:
    """What is to be set; what is not named is left as it is. Evidence: operations.md section 14."""
    found: list[Setting] = []
    by_cores = min((config.max_per_core or 0) * core_count, MAX_ENTRIES_BY_CORES)
    entries = max(by_cores, config.min_entries or 0)
    if entries:
        found.append(Setting(MAX_ENTRIES, entries))
    times = {
        "tcp_timeout_established": config.tcp_established_timeout_s,
        "tcp_timeout_close_wait": config.tcp_close_wait_timeout_s,
        "udp_timeout": config.udp_timeout_s,
        "udp_timeout_stream": config.udp_stream_timeout_s,
    }
    for name, seconds in times.items():
        if seconds is not None:
            found.append(Setting(f"net/netfilter/nf_conntrack_{name}", math.ceil(seconds)))
    if config.tcp_be_liberal:
        found.append(Setting("net/netfilter/nf_conntrack_tcp_be_liberal", 1))
    if config.ip_forward:
        found += [Setting(FORWARDING[family], 1) for family in families]
    return tuple(found)


def wanted_buckets(entries: int, current: int) -> int | None:
    """How many buckets the table of so many connections should have; None = those that it has are enough."""
    wanted = entries // ENTRIES_PER_BUCKET
    return wanted if wanted > current else None


def forwarding_notes(current: Mapping[IPFamily, int | None]) -> list[str]:
    """What the operator should know of forwarding as it is after the start. None = it could not be read."""
    return [
        f"{FORWARDING[family]} is 0: packets of others to services end here. Set it to 1, or set ipForward: true"
        for family, value in sorted(current.items())
        if value == 0
    ]


def count_cores(text: str) -> int:
    """The processors in a list of ranges as sysfs has it (`0-3,6`)."""
    count = 0
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        count += int(last) - int(first) + 1 if dash else 1
    return count
