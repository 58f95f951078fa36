"""The Linux node around the rules: looked at before the start, prepared, and left clean on request.

`open_dataplane` is the start: it probes the kernel, refuses to run beside another proxy, sets what the configuration
asks for and nothing else, and hands out the dataplane. `clean_up` removes hansa's own two tables. All of it happens in
the network namespace of the calling thread. Evidence: operations.md sections 6 and 14; ip_tables.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from hansa.config import Config, LinuxConfig
from hansa.dataplanes.base import Change, Outcome, Result, Verb
from hansa.dataplanes.nftables import iptables, needs, wire
from hansa.dataplanes.nftables.apply import KernelRuleset, NftablesDataplane
from hansa.dataplanes.nftables.frame import GUARD
from hansa.dataplanes.nftables.needs import IptablesRival, Missing, NftablesRival, Probe, Rival, Setting
from hansa.dataplanes.nftables.objects import TABLE, nft_family
from hansa.errors import DataplaneError
from hansa.net import IPFamily
from hansa.netlink import codec, conntrack
from hansa.netlink import nftables as nf
from hansa.netlink.connections import KernelConnections
from hansa.netlink.socket import NetfilterSocket, NetlinkError

ROOT = Path("/")
SYSCTLS = Path("proc/sys")
# /proc/net is that of the process; threads may be elsewhere.
OWN_NET = Path("proc/thread-self/net")
OOM_SCORE = Path("proc/self/oom_score_adj")
ONLINE_CORES = Path("sys/devices/system/cpu/online")
BUCKETS = Path("sys/module/nf_conntrack/parameters/hashsize")

# Answers that mean "there is none": no such object, or the kernel knows no such family.
_ABSENT = frozenset({errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP})


@dataclass(frozen=True, slots=True)
class Preparation:
    """What was found and done before the start. notes: for people, about what is not as it might be expected.

    families: those that this node has. replaced: what of kube-proxy's goes once hansa's table is in place.
    """

    families: tuple[IPFamily, ...]
    replaced: tuple[Rival, ...] = ()
    notes: tuple[str, ...] = ()


def open_dataplane(config: Config) -> tuple[NftablesDataplane, Preparation]:
    """The dataplane of this node, ready for its first sync; nothing of the rules is written yet.

    Raises DataplaneError if the kernel lacks something, each named, or if another proxy is at work.
    """
    prepared = prepare(config)
    predecessor = KubeProxyRules(prepared.replaced) if config.proxy_name is None else None
    dataplane = NftablesDataplane(
        KernelRuleset(), prepared.families, connections=KernelConnections(), predecessor=predecessor
    )
    return dataplane, prepared


def open_for_reading(config: Config, root: Path = ROOT) -> NftablesDataplane:
    """A dataplane for `plan` alone: nothing is prepared or set. Raises DataplaneError if the kernel lacks something."""
    families = node_families(root)
    check_features(families)
    predecessor = None
    if config.takeover and config.proxy_name is None:
        with closing(NetfilterSocket()) as kernel:
            predecessor = KubeProxyRules(find_rivals(kernel, root))
    return NftablesDataplane(KernelRuleset(), families, connections=KernelConnections(), predecessor=predecessor)


def prepare(config: Config, root: Path = ROOT) -> Preparation:
    """Look at the node, then set what the configuration asks for. Raises as `open_dataplane` does, before setting.

    route_localnet is not set here: the dataplane does, and only behind its guard.
    """
    families = node_families(root)
    check_features(families)
    with closing(NetfilterSocket()) as kernel:
        rivals = find_rivals(kernel, root)
    beside = config.proxy_name is not None
    replaced = needs.judge_rivals(rivals, takeover=config.takeover, beside_another=beside)
    programs = missing_programs(replaced)
    if programs:
        raise DataplaneError(needs.explain_missing_programs(replaced, programs))
    notes = [f"{one} is left alone: hansa serves proxyName {config.proxy_name}" for one in rivals] if beside else []
    notes += set_up(config, families, root)
    notes += _set_oom_score(config.linux, root)
    return Preparation(families, replaced, tuple(notes))


def set_up(config: Config, families: Iterable[IPFamily], root: Path = ROOT) -> list[str]:
    """Set in the kernel what the configuration asks for; what the operator should know."""
    wanted = needs.wanted_settings(config.linux, core_count=core_count(root), families=families)
    notes = apply_settings(wanted, root)
    return notes + needs.forwarding_notes({family: setting(needs.FORWARDING[family], root) for family in families})


def _set_oom_score(config: LinuxConfig, root: Path) -> list[str]:
    """How late the kernel is to take this process when memory is short; a lower number than now needs a privilege."""
    if config.oom_score_adj is None:
        return []
    path = root / OOM_SCORE
    try:
        if int(path.read_text(encoding="ascii")) != config.oom_score_adj:
            path.write_text(str(config.oom_score_adj), encoding="ascii")
    except (OSError, ValueError) as error:
        return [f"oom_score_adj cannot be set to {config.oom_score_adj}: {getattr(error, 'strerror', None) or error}"]
    return []


def node_families(root: Path = ROOT) -> tuple[IPFamily, ...]:
    """IPv6 counts unless the kernel has none, or it is switched off everywhere."""
    without = not (root / OWN_NET / "if_inet6").exists() or setting("net/ipv6/conf/all/disable_ipv6", root) == 1
    return (IPFamily.IPV4,) if without else tuple(IPFamily)


# -- features of the kernel ------------------------------------------------------------------------------------------


def check_features(families: Sequence[IPFamily]) -> None:
    """Raises DataplaneError naming every feature that is missing, or the privilege. Changes nothing."""
    with closing(NetfilterSocket()) as kernel:
        if missing := probe(kernel, families):
            raise DataplaneError(needs.explain_missing(missing))


def probe(kernel: NetfilterSocket, families: Sequence[IPFamily], extra: Iterable[Probe] = ()) -> tuple[Missing, ...]:
    """The features that hansa needs and this kernel, or this process, has not; () = all is there. Changes nothing."""
    found: dict[needs.Feature, Missing] = {}
    for family in families:
        probes = tuple(needs.probe_messages(family, extra))
        for one in needs.missing_features(probes, *_try(kernel, probes)):
            found.setdefault(one.feature, one)
    try:
        kernel.request(conntrack.message_type(conntrack.GET_STATISTICS), 0, conntrack.statistics())
    except NetlinkError as error:
        if needs.PRIVILEGE not in found:
            lacking = needs.PRIVILEGE if error.code == errno.EPERM else needs.CONNTRACK
            found[lacking] = Missing(lacking, str(error.answers[0]))
    return tuple(found.values())


def _try(kernel: NetfilterSocket, probes: Sequence[Probe]) -> tuple[dict[int, codec.Answer], codec.Answer | None]:
    """The refusals by place, and that of the whole; the last probe is refused by everyone."""
    first = kernel.next_sequence()
    messages = [(one.kind, one.flags, one.payload) for one in probes]
    try:
        send_batch(kernel, messages, first)
    except NetlinkError as error:
        refusals: dict[int, codec.Answer] = {}
        for answer in error.answers:
            refusals.setdefault(answer.sequence - first - 1, answer)
        return refusals, refusals.pop(-1, None)
    raise DataplaneError("the kernel accepted a transaction that deletes what is not there")


def send_batch(kernel: NetfilterSocket, messages: Sequence[tuple[int, int, bytes]], first: int) -> None:
    """One transaction; its messages have the numbers after `first`."""
    framing = nf.nfgenmsg(0, nf.SUBSYSTEM)
    last = first + len(messages)
    out = [codec.message(nf.BATCH_BEGIN, codec.NLM_F_REQUEST, first, framing)]
    for sequence, (kind, flags, payload) in enumerate(messages, start=first + 1):
        asked = codec.NLM_F_REQUEST | flags | (codec.NLM_F_ACK if sequence == last else 0)
        out.append(codec.message(nf.message_type(kind), asked, sequence, payload))
    out.append(codec.message(nf.BATCH_END, codec.NLM_F_REQUEST, last + 1, framing))
    kernel.skip_to(last + 2)
    kernel.batch(b"".join(out), first_sequence=first, last_sequence=last)


# -- another proxy ---------------------------------------------------------------------------------------------------


def find_rivals(kernel: NetfilterSocket, root: Path = ROOT) -> tuple[Rival, ...]:
    """kube-proxy's tables and chains, by their names; nothing of others is listed."""
    found: list[Rival] = []
    for family in IPFamily:
        found += _find_in_nftables(kernel, family)
        old_tables = _old_iptables(family, root)
        for table in needs.IPTABLES_TABLES:
            if table in old_tables and _old_table_has(family, table, needs.KUBE_PROXY_CHAIN):
                found.append(IptablesRival(family, table, legacy=True))
    return tuple(found)


def _find_in_nftables(kernel: NetfilterSocket, family: IPFamily) -> Iterator[Rival]:
    """kube-proxy's own table, and its chains in those of iptables over nf_tables."""
    number = wire.family_number(family)
    if _exists(kernel, nf.GET_TABLE, nf.table(number, needs.KUBE_PROXY_TABLE)):
        yield NftablesRival(family)
    for table in needs.IPTABLES_TABLES:
        if _exists(kernel, nf.GET_CHAIN, nf.chain(number, table, needs.KUBE_PROXY_CHAIN)):
            yield IptablesRival(family, table, legacy=False)


def _exists(kernel: NetfilterSocket, kind: int, payload: bytes) -> bool:
    try:
        return bool(kernel.request(nf.message_type(kind), 0, payload))
    except NetlinkError as error:
        if error.code in _ABSENT:
            return False
        raise


def _old_iptables(family: IPFamily, root: Path) -> frozenset[str]:
    """The tables of the old iptables that exist; asking the kernel for another one would create it."""
    name = "ip_tables_names" if family is IPFamily.IPV4 else "ip6_tables_names"
    try:
        return frozenset((root / OWN_NET / name).read_text(encoding="ascii").split())
    except FileNotFoundError:
        return frozenset()


# linux/netfilter_ipv4/ip_tables.h and its twin for IPv6: the same numbers at another level.
_GET_INFO, _GET_ENTRIES = 64, 65
_OLD_TABLE_NAME_BYTES = 32
_INFO = struct.Struct(f"={_OLD_TABLE_NAME_BYTES}s11III")  # name, hooks, how many entries, bytes of them
_ENTRIES = struct.Struct(f"={_OLD_TABLE_NAME_BYTES}sI4x")  # name, bytes of the entries, which are aligned to eight


def _old_table_has(family: IPFamily, table: str, chain: str) -> bool:
    """Whether a chain is in a table of the old iptables. A chain's name stands in its first entry and nowhere else."""
    domain, level = (
        (socket.AF_INET, socket.IPPROTO_IP) if family is IPFamily.IPV4 else (socket.AF_INET6, socket.IPPROTO_IPV6)
    )
    # iptables itself takes a raw socket, for which CAP_NET_ADMIN alone does not do; the option is there on any.
    with closing(socket.socket(domain, socket.SOCK_DGRAM)) as one:

        def ask(option: int, question: bytes) -> bytes:
            return _ask_option(one, level, option, question)

        name = table.encode()
        *_, size_bytes = _INFO.unpack(ask(_GET_INFO, _INFO.pack(name, *[0] * 13)))
        entries = ask(_GET_ENTRIES, _ENTRIES.pack(name, size_bytes) + bytes(size_bytes))
    return chain.encode() + b"\0" in entries[_ENTRIES.size :]


def _ask_option(one: socket.socket, level: int, option: int, question: bytes) -> bytes:
    """A socket option whose answer depends on what is asked, which Python's own getsockopt cannot do."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(question, len(question))
    length = ctypes.c_uint32(len(question))
    if libc.getsockopt(one.fileno(), level, option, buffer, ctypes.byref(length)):
        code = ctypes.get_errno()
        raise DataplaneError(f"the tables of iptables-legacy cannot be read: {os.strerror(code)}")
    return buffer.raw[: length.value]


class KubeProxyRules:
    """kube-proxy's nftables tables and iptables chains; `apply.Predecessor`."""

    def __init__(self, rivals: Sequence[Rival]) -> None:
        self._rivals = tuple(rivals)
        self._socket = NetfilterSocket()

    def found(self, family: IPFamily) -> tuple[str, ...]:
        return tuple(str(one) for one in self._rivals if one.family is family)

    def standing(self, family: IPFamily) -> tuple[str, ...]:
        """Without those of the old iptables, which cannot be asked for one chain."""
        return tuple(map(str, _find_in_nftables(self._socket, family)))

    def remove(self, family: IPFamily) -> str:
        theirs = [one for one in self._rivals if one.family is family]
        removed = [self._delete_table(one) for one in theirs if isinstance(one, NftablesRival)]
        programs = sorted({one.program for one in theirs if isinstance(one, IptablesRival)})
        removed += [remove_chains(program) for program in programs]
        if programs:
            removed.append(remove_ipvs_device())
        return ", ".join(filter(None, removed))

    def _delete_table(self, rival: NftablesRival) -> str:
        table = nf.table(wire.family_number(rival.family), needs.KUBE_PROXY_TABLE)
        try:
            send_batch(self._socket, [(nf.DEL_TABLE, 0, table)], self._socket.next_sequence())
        except NetlinkError as error:
            if error.code == errno.ENOENT:
                return ""
            raise
        return str(rival)

    def close(self) -> None:
        self._socket.close()


def missing_programs(rivals: Iterable[Rival]) -> tuple[str, ...]:
    """What is not installed of the programs that the removal of iptables' rules needs."""
    programs = sorted({one.program for one in rivals if isinstance(one, IptablesRival)})
    wanted = [f"{program}-{verb}" for program in programs for verb in ("save", "restore")]
    return tuple(program for program in wanted if shutil.which(program, path=_SYSTEM_PATH) is None)


# A service's own PATH may lack the folders of the administrator.
_SYSTEM_PATH = os.pathsep.join(filter(None, (os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin")))
PROGRAM_TIMEOUT_S = 60.0  # tens of thousands of rules take seconds; a lock held by others is waited for in there


def remove_chains(program: str) -> str:
    """Take kube-proxy's chains out of all tables of a kind of iptables; what was done, "" = there were none.

    Raises DataplaneError.
    """
    text = iptables.removal(_run_program(f"{program}-save"))
    if not text:
        return ""
    waits = () if program.endswith("-nft") else ("--wait", "30")  # only the old one has a lock
    _run_program(f"{program}-restore", "--noflush", *waits, text=text)
    return f"chains of kube-proxy in {program}"


def _run_program(name: str, *arguments: str, text: str = "") -> str:
    path = shutil.which(name, path=_SYSTEM_PATH)
    if path is None:
        raise DataplaneError(f"{name} is not installed")
    try:
        done = subprocess.run(
            [path, *arguments], input=text, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataplaneError(f"{name}: {error}") from error
    if done.returncode != 0:
        raise DataplaneError(f"{name} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


IPVS_DEVICE = "kube-ipvs0"  # it has every service address, so that IPVS gets the packets
_DELETE_LINK = 17  # RTM_DELLINK (linux/rtnetlink.h)


def remove_ipvs_device() -> str:
    """Delete the interface of kube-proxy's ipvs mode; what was done, "" = there was none. Raises DataplaneError.

    The virtual servers stay in the kernel and get no packets any more.
    """
    try:
        index = socket.if_nametoindex(IPVS_DEVICE)
    except OSError:
        return ""
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0)
    request = codec.message(_DELETE_LINK, codec.NLM_F_REQUEST | codec.NLM_F_ACK, 1, body)
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)) as route:
        route.settimeout(PROGRAM_TIMEOUT_S)
        route.send(request)
        answer = route.recv(65536)
    code = -struct.unpack_from("=i", answer, 16)[0]
    if code:
        raise DataplaneError(f"{IPVS_DEVICE} cannot be deleted: {os.strerror(code)}")
    return f"interface {IPVS_DEVICE}"


# -- settings --------------------------------------------------------------------------------------------------------


def setting(path: str, root: Path = ROOT) -> int | None:
    """The number in a file below /proc/sys; None if there is none."""
    try:
        return int((root / SYSCTLS / path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def core_count(root: Path = ROOT) -> int:
    """How many processors the machine has, whatever this process may use of them."""
    return needs.count_cores((root / ONLINE_CORES).read_text(encoding="ascii"))


def apply_settings(wanted: Iterable[Setting], root: Path = ROOT) -> list[str]:
    """Write the settings that are not so already; what the operator should know, [] if all went well.

    A failure is no reason not to serve: it is told, unless what is there is good enough.
    """
    return [note for one in wanted for note in _set(one, root)]


def _set(wanted: Setting, root: Path) -> list[str]:
    before = setting(wanted.path, root)
    if before != wanted.value:
        try:
            (root / SYSCTLS / wanted.path).write_text(str(wanted.value), encoding="ascii")
        except OSError as error:
            if wanted.path == needs.MAX_ENTRIES and before is not None and before > wanted.value:
                return []
            stays = "" if before is None else f", stays {before}"
            return [f"{wanted.path} cannot be set to {wanted.value}{stays}: {error.strerror}"]
    return _enlarge_buckets(wanted.value, root) if wanted.path == needs.MAX_ENTRIES else []


def _enlarge_buckets(entries: int, root: Path) -> list[str]:
    path = root / BUCKETS
    try:
        current = int(path.read_text(encoding="ascii"))
        wanted = needs.wanted_buckets(entries, current)
        if wanted is not None:
            path.write_text(str(wanted), encoding="ascii")
    except (OSError, ValueError) as error:
        return [f"the connection table's buckets stay as they are, which makes it slower: {error}"]
    return []


# -- leaving ---------------------------------------------------------------------------------------------------------


def clean_up() -> tuple[Result, ...]:
    """Remove hansa's own tables and what only they make safe; () if there was nothing.

    Established connections go on, for the kernel's connection table is left as it is. A failure is a Result, and does
    not hold up the other family. Raises DataplaneError if nothing can be looked at.
    """
    results: list[Result] = []
    with closing(NetfilterSocket()) as kernel:
        for family in IPFamily:
            results += _clean_up_family(family, kernel)
    return tuple(results)


def clean_up_kube_proxy() -> tuple[Result, ...]:
    """Remove what kube-proxy has left behind, whatever its mode was; () if there was nothing.

    A failure is a Result. Raises DataplaneError if nothing can be looked at.
    """
    with closing(NetfilterSocket()) as kernel:
        rivals = find_rivals(kernel)
    results: list[Result] = []
    with closing(KubeProxyRules(rivals)) as rules:
        for family in sorted({one.family for one in rivals}):
            change = Change(Verb.DELETE, "rules", f"{family} kube-proxy", "clean-up was asked for")
            try:
                removed = rules.remove(family)
            except DataplaneError as error:
                results.append(Result(change, Outcome.FAILED, str(error)))
            else:
                results.append(Result(replace(change, key=removed or change.key), Outcome.DONE))
    return tuple(results)


def what_to_clean_up() -> tuple[Change, ...]:
    """What `clean_up` would do. Raises DataplaneError if that cannot be looked at."""
    with closing(NetfilterSocket()) as kernel:
        return tuple(change for family in IPFamily for change in _leftovers(family, kernel))


def _leftovers(family: IPFamily, kernel: NetfilterSocket) -> list[Change]:
    """The table, and before it the setting that must not be left without the table's guard."""
    number = wire.family_number(family)
    if not _exists(kernel, nf.GET_TABLE, nf.table(number, TABLE)):
        return []
    found = [Change(Verb.DELETE, "table", f"{nft_family(family)} {TABLE}", "clean-up was asked for")]
    if _exists(kernel, nf.GET_CHAIN, nf.chain(number, TABLE, GUARD)):
        found.insert(0, Change(Verb.MODIFY, "setting", needs.ROUTE_LOCALNET.path, "its guard goes"))
    return found


def _clean_up_family(family: IPFamily, kernel: NetfilterSocket) -> list[Result]:
    results: list[Result] = []
    try:
        changes = _leftovers(family, kernel)
    except DataplaneError as error:
        change = Change(Verb.DELETE, "table", f"{nft_family(family)} {TABLE}", "clean-up was asked for")
        return [Result(change, Outcome.FAILED, str(error))]
    for change in changes:
        note = ""
        if change.kind == "setting":
            note = "; ".join(_set(needs.ROUTE_LOCALNET, ROOT))
        else:
            try:
                table = nf.table(wire.family_number(family), TABLE)
                send_batch(kernel, [(nf.DEL_TABLE, 0, table)], kernel.next_sequence())
            except DataplaneError as error:
                note = str(error)
        results.append(Result(change, Outcome.FAILED if note else Outcome.DONE, note))
        if note:
            break
    return results
