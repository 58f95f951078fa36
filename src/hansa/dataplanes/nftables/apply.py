"""The nftables dataplane and its host: reading the table back, sending one transaction, and when to do which.

A sync sends the difference that the changed rules make. The kernel counts every transaction of anybody, and tells which
tables it was about; as long as nobody else wrote to ours, an audit is one question. After a foreign write to it, a
refusal, or at the start, the table is read back, compared whole, and mended; one that is as desired is left untouched.
Evidence: ARCHITECTURE sections 1 and 3; libraries section 5.
"""

from __future__ import annotations

import copy
import errno
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol as Seam

from hansa.dataplanes.base import (
    Change,
    ConntrackRun,
    HostState,
    ObjectCounts,
    Outcome,
    Result,
    Shortfall,
    SyncReport,
    Verb,
)
from hansa.dataplanes.conntrack import Connections, UdpFrontends, cut, planned, stale_entries
from hansa.dataplanes.nftables import plan as planning
from hansa.dataplanes.nftables import wire
from hansa.dataplanes.nftables.frame import FROM_NODE, FROM_PODS, GUARD, PICKS, SETS, Place
from hansa.dataplanes.nftables.objects import TABLE, Elements, Part, Ruleset, SetSpec, Value
from hansa.dataplanes.nftables.plan import Refused, Transaction
from hansa.dataplanes.nftables.render import Delta, Desired
from hansa.errors import DataplaneError
from hansa.net import IPFamily, Protocol
from hansa.netlink import nftables as nf
from hansa.netlink.socket import NetfilterSocket, NetlinkError
from hansa.rules.model import FrontendKey, Rule, RuleChanges

ROUTE_LOCALNET = Path("/proc/sys/net/ipv4/conf/all/route_localnet")
# A failed sync is tried again after this long, unless a change comes first.
RETRY_S = 5.0
# The kernel walks a set from its beginning for each 32 KiB of a listing: half a million elements take it 30 s. Asked
# for each of them by its key, it takes 1.2 s (Linux 6.18). Up to so many, a listing is as fast, and tells more.
LISTED = 20_000
# A check of a larger table goes in steps of about so many elements, and lets changes pass after so long.
CHECKED_AT_ONCE = 20_000
STEP_ELEMENTS = 1_000
CHECK_S = 0.05
# Sets of which nothing is to be learnt but whether they are as desired.
MAY_BE_COUNTED = frozenset(
    spec.name
    for spec in SETS
    if not (spec.verdicts or spec.labelled or spec.interval or spec.dynamic or "sticky" in spec.name)
)
_SPECS = {spec.name: spec for spec in SETS}
# A refused transaction of this many messages names so many of its refusals; they mostly repeat the first.
REFUSALS_SHOWN = 3


class RulesetHost(Seam):
    """Where tables live: the kernel, or `memory.MemoryRuleset`. Every method raises DataplaneError if it is away."""

    def generation(self) -> int:
        """A number that every transaction of anybody raises by one."""

    def touched_by_others(self) -> frozenset[IPFamily]:
        """The families whose table others may have changed since the last call; all of them at the first one.

        Says rather too many than too few: what cannot be told is touched.
        """

    def read(self, family: IPFamily, *, counted: Collection[str] = (), above: int = 0) -> wire.Found | None:
        """hansa's own table of the family, None if there is none. Other tables are never listed.

        counted: sets that are not listed if they have more than `above` elements; hosts that cannot count list them.
        """

    def read_elements(self, family: IPFamily, spec: SetSpec) -> dict[bytes, Value]:
        """The elements of one set."""

    def holds(self, family: IPFamily, spec: SetSpec, elements: Elements) -> bool:
        """Whether all of these are in the set, as given."""

    def commit(self, transaction: Transaction) -> None:
        """Apply all of it or, raising Refused, nothing."""

    def route_localhost(self, *, allowed: bool) -> None:
        """Whether packets from 127.0.0.0/8 may leave by other interfaces, which localhost node ports need (N11)."""

    def close(self) -> None:
        """Release what the host holds; tables stay."""


class Predecessor(Seam):
    """Another proxy's rules: those found at the start, which hansa takes the place of, and those that come later."""

    def found(self, family: IPFamily) -> tuple[str, ...]:
        """What was found at the start and is to go, one text each."""

    def standing(self, family: IPFamily) -> tuple[str, ...]:
        """What is there now; cheap, for every check. Raises DataplaneError if the host does not tell."""

    def remove(self, family: IPFamily) -> str:
        """Delete them; what was deleted, "" = nothing was there. Raises DataplaneError if the host refuses."""

    def close(self) -> None:
        """Release what is held."""


class KernelRuleset:
    """The nf_tables of the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = NetfilterSocket()
        self._events = NetfilterSocket()
        self._events.join(nf.GROUP)
        # Every transaction up to this generation is either ours or was looked at; None = some was missed.
        self._accounted: int | None = None
        self._touched: set[IPFamily] = set()

    def generation(self) -> int:
        replies = self._socket.request(nf.message_type(nf.GET_GENERATION), 0, nf.nfgenmsg(0))
        return nf.read_generation(replies[0].payload)

    def read(self, family: IPFamily, *, counted: Collection[str] = (), above: int = 0) -> wire.Found | None:
        number = wire.family_number(family)
        try:
            self._socket.request(nf.message_type(nf.GET_TABLE), 0, nf.table(number, TABLE))
        except NetlinkError as error:
            if error.code == errno.ENOENT:
                return None
            raise
        found = wire.Found()
        own = nf.table(number, TABLE)
        for reply in self._socket.dump(nf.message_type(nf.GET_SET), own):
            table, name, shape = nf.read_set(reply.payload)
            if table == TABLE:
                found.sets[name] = shape
                count = nf.read_set_count(reply.payload)
                if name in counted and not _SPECS[name].dynamic and count is not None and count > above:
                    found.counts[name] = count
        # The kernel lists the chains of all tables of the family; only names are looked at.
        for reply in self._socket.dump(nf.message_type(nf.GET_CHAIN), nf.nfgenmsg(number)):
            table, chain = nf.read_chain(reply.payload)
            if table == TABLE:
                found.chains[chain.name] = chain
        found.rules = self.read_rules(family)
        for name in found.sets:
            spec = _SPECS.get(name)
            if spec is not None and not spec.dynamic and name not in found.counts:
                found.elements[name] = self.read_elements(family, spec)
        return found

    def read_rules(self, family: IPFamily) -> dict[str, list[nf.RawRule]]:
        """The rules of hansa's own table by chain, in order; {} if there is none."""
        found: dict[str, list[nf.RawRule]] = {}
        own = nf.table(wire.family_number(family), TABLE)
        for reply in self._socket.dump(nf.message_type(nf.GET_RULE), own):
            table, name, rule = nf.read_rule(reply.payload)
            if table == TABLE:
                found.setdefault(name, []).append(rule)
        return found

    def read_elements(self, family: IPFamily, spec: SetSpec) -> dict[bytes, Value]:
        """The elements of one set."""
        request = nf.set_name(wire.family_number(family), TABLE, spec.name)
        found: dict[bytes, Value] = {}
        for reply in self._socket.dump(nf.message_type(nf.GET_ELEMENT), request):
            found.update(wire.decode_elements(spec, reply.payload, family))
        return found

    def holds(self, family: IPFamily, spec: SetSpec, elements: Elements) -> bool:
        kind = nf.message_type(nf.GET_ELEMENT)
        return all(
            self._socket.each_answer_ends(kind, question, endings)
            for question, endings in wire.questions(spec, elements, family)
        )

    def touched_by_others(self) -> frozenset[IPFamily]:
        self._look_at_events()
        generation = self.generation()
        # The notice of a transaction comes a moment after its number counts.
        complete = self._accounted == generation
        touched = frozenset(self._touched) if complete else frozenset(IPFamily)
        self._accounted = generation
        self._touched.clear()
        return touched

    def _look_at_events(self) -> None:
        notices = self._events.notices()
        if notices is None:
            self._accounted = None
        for notice in notices or ():
            if notice.type == nf.message_type(nf.NEW_GENERATION):
                number = nf.read_generation(notice.payload)
                if self._accounted is not None and number > self._accounted:
                    self._accounted = number if number == self._accounted + 1 else None
            else:
                family, table = nf.read_table(notice.payload)
                if table == TABLE:
                    self._touched.update(one for one in IPFamily if wire.family_number(one) == family)

    def commit(self, transaction: Transaction) -> None:
        # Our own notices are not wanted: they would be as large as the transaction.
        self._look_at_events()
        self._events.leave(nf.GROUP)
        try:
            self._commit(transaction)
        finally:
            self._events.join(nf.GROUP)
        if self._accounted is not None:
            generation = self.generation()
            self._accounted = generation if generation == self._accounted + 1 else None

    def _commit(self, transaction: Transaction) -> None:
        batch = wire.encode_transaction(transaction, _SPECS, self._socket.next_sequence())
        self._socket.skip_to(batch.last_sequence + 2)
        try:
            self._socket.batch(batch.data, first_sequence=batch.first_sequence, last_sequence=batch.last_sequence)
        except NetlinkError as error:
            raise Refused(_explain(error, batch), error.code) from error

    def route_localhost(self, *, allowed: bool) -> None:
        try:
            ROUTE_LOCALNET.write_text("1" if allowed else "0", encoding="ascii")
        except OSError as error:
            raise DataplaneError(f"{ROUTE_LOCALNET} cannot be set: {error}") from error

    def close(self) -> None:
        self._socket.close()
        self._events.close()


def _explain(error: NetlinkError, batch: wire.Batch) -> str:
    """Each refusal with what its message was about, instead of its sequence number."""
    told = [f"{batch.named.get(one.sequence, 'an unknown message')}: {one}" for one in error.answers[:REFUSALS_SHOWN]]
    more = len(error.answers) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")


@dataclass(slots=True)
class _Family:
    """What is known of one family's table.

    flows: what UDP flows may go on. trusted: the table is as `desired` says, unless others wrote; doubted: they may
    have. seen: it was read once. alone: no other proxy's table is left. check: one that is under way; each step says
    whether all was well. rivals: another proxy's rules that have come since.
    """

    desired: Desired
    flows: UdpFrontends
    trusted: bool = False
    doubted: bool = False
    seen: bool = False
    alone: bool = False
    check: Iterator[bool] | None = None
    rivals: tuple[str, ...] = ()


@dataclass(slots=True)
class _Work:
    """What one sync has done so far. pending: what is left, apart from tables."""

    results: list[Result] = field(default_factory=list)
    drift: list[Change] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)
    pending: dict[IPFamily, list[str]] = field(default_factory=lambda: {family: [] for family in IPFamily})
    conntrack: dict[IPFamily, ConntrackRun] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    again: bool = False

    @contextmanager
    def call(self, verb: str) -> Iterator[None]:
        """Count what is asked of the host here, and with which code it refuses."""
        self.calls[verb] += 1
        try:
            yield
        except DataplaneError as error:
            code = getattr(error, "code", 0)
            self.errors[verb, errno.errorcode.get(code, str(code)) if code else type(error).__name__] += 1
            raise


class NftablesDataplane:
    """The rules in the tables `ip hansa` and `ip6 hansa`. One family's failure does not hold up the other."""

    name = "nftables"

    def __init__(
        self,
        host: RulesetHost,
        families: Sequence[IPFamily] = tuple(IPFamily),
        *,
        connections: Connections | None = None,
        predecessor: Predecessor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """connections: None = stale flows are not looked for. predecessor: removed once our tables are in place.

        clock: seconds, for how long things take.
        """
        self._host = host
        self._clock = clock
        self._connections = connections
        self._predecessor = predecessor
        self._families = {family: _Family(Desired(family), UdpFrontends(family)) for family in families}
        self._localhost_routed = False

    def sync(self, changes: RuleChanges, *, now: float, audit: bool) -> SyncReport:
        """See `Dataplane.sync`. Results name frontends; when a table is mended as a whole, tables, chains and sets."""
        work = _Work()
        state = HostState.HEALTHY
        self._note_foreign_writes(work)
        for family, one in self._families.items():
            one.flows.take(changes)
            try:
                self._sync_family(one, changes, work, audit=audit)
            except DataplaneError as error:
                one.trusted = False
                work.conditions.append(f"{family}: {error}")
                if not isinstance(error, Refused):
                    state = HostState.UNAVAILABLE
        if changes.surroundings.localhost_node_ports:
            self._allow_localhost(work, audit=audit)
        for one in self._families.values():
            if one.trusted:
                self._replace_predecessor(one, work)
                if audit:
                    self._look_for_rivals(one, work)
                self._cut_stale_flows(one, work)
        for family, one in self._families.items():
            if one.rivals:
                rivals = ", ".join(one.rivals)
                back = f"{family}: another proxy is at work: {rivals}; stop it on this node, then restart hansa"
                work.conditions.append(back)
        failed = frozenset(family for family, one in self._families.items() if not one.trusted)
        for family in sorted(failed):
            work.pending[family].insert(0, f"{family} table")
        pending = tuple(key for keys in work.pending.values() for key in keys)
        return SyncReport(
            state=state,
            results=tuple(work.results),
            shortfalls=self._shortfalls(),
            pending=pending,
            drift=tuple(work.drift),
            conditions=tuple(work.conditions),
            retry_at=now + RETRY_S if pending else None,
            again=work.again,
            host_calls=work.calls.total(),
            calls_by_verb=work.calls,
            call_errors=work.errors,
            pending_by_family={family: tuple(keys) for family, keys in work.pending.items()},
            failed_families=failed,
            objects=self._objects(),
            conntrack=work.conntrack,
        )

    def _objects(self) -> dict[str, ObjectCounts]:
        """Frontends, and the tables: another proxy's that have come back count as foreign."""
        families = self._families.values()
        rivals = sum(len(one.rivals) for one in families)
        return {
            "frontend": ObjectCounts(sum(len(one.desired.rules) for one in families)),
            "table": ObjectCounts(len(families), sum(one.trusted for one in families), rivals),
        }

    def plan(self, changes: RuleChanges, *, now: float) -> Sequence[Change]:  # noqa: ARG002 (no retry timers here)
        """See `Dataplane.plan`: every difference between the host and what it should be after `changes`."""
        found: list[Change] = []
        for family, one in self._families.items():
            desired = copy.deepcopy(one.desired)
            desired.replace(changes.rules, changes.surroundings, complete=changes.complete)
            read = self._host.read(family, counted=MAY_BE_COUNTED, above=LISTED)
            if read is not None:
                desired.adopt(read.elements)
            ruleset = desired.whole(None if read is None else read.elements.get(PICKS))
            if read is not None:
                self._complete(read, ruleset)
            found += planning.compare(ruleset, None if read is None else wire.judge(read, ruleset))[1]
            if self._predecessor is not None:
                why = "hansa takes its place"
                found += [Change(Verb.DELETE, "rules", what, why) for what in self._predecessor.found(family)]
            flows = copy.deepcopy(one.flows)
            flows.take(changes)
            if read is not None and not one.seen:
                flows.recall(served_frontends(read.elements, family))
            if self._connections is not None and flows.due:
                entries = self._connections.list(family, Protocol.UDP).entries
                found += planned(stale_entries(entries, flows.wanted()), flows)
        return found

    def describe(self) -> Sequence[Mapping[str, object]]:
        """See `Describing`: for each family what the kernel's table holds now, by set; the rest tells `nft list`."""
        found: list[Mapping[str, object]] = []
        for family, one in self._families.items():
            read = self._host.read(family, counted=_SPECS.keys())
            held = {} if read is None else dict(sorted(read.sizes.items()))
            there = read is not None
            found.append(
                {"family": str(family), "frontends": len(one.desired.rules), "trusted": one.trusted, "there": there}
                | {"elements": held}
            )
        return found

    def desired(self, family: IPFamily) -> Desired:
        """What is wanted of one family's table; for reading."""
        return self._families[family].desired

    def close(self) -> None:
        """See `Dataplane.close`."""
        for one in (self._host, self._connections, self._predecessor):
            if one is not None:
                one.close()

    def _sync_family(self, one: _Family, changes: RuleChanges, work: _Work, *, audit: bool) -> None:
        rules, surroundings = changes.rules, changes.surroundings
        if not one.trusted:
            one.desired.replace(rules, surroundings, complete=changes.complete)
            self._mend(one, work, drift=False)
            return
        asked = _changes_of_frontends(one.desired, changes)
        existing = one.desired.chain_names
        delta = one.desired.take(rules, surroundings, complete=changes.complete)
        if not delta.empty:
            try:
                self._send_delta(one, delta, existing, work)
            except DataplaneError as error:
                work.results += [Result(change, Outcome.FAILED, str(error)) for change in asked]
                raise
        work.results += [Result(change, Outcome.DONE) for change in asked]
        if one.check is not None or (audit and one.doubted):
            self._check(one, work)

    def _check(self, one: _Family, work: _Work) -> None:
        """Compare with the host what others may have written to: a large table in steps, with changes in between."""
        if one.check is None:
            if one.desired.sizes.total() <= CHECKED_AT_ONCE:
                self._mend(one, work, drift=True)
                return
            one.doubted = False  # others' writes from now on are for the next check
            one.check = self._steps(one.desired)
        until = self._clock() + CHECK_S
        for well in one.check:
            work.calls["read"] += 1
            if not well:
                self._mend(one, work, drift=True)
                return
            if self._clock() >= until:
                work.again = True
                return
        one.check = None

    def _steps(self, desired: Desired) -> Iterator[bool]:
        """Whether all that is desired is there, part by part, and then, by counting, whether anything else is."""
        family = desired.family
        for part in desired.parts(STEP_ELEMENTS):
            yield all(self._host.holds(family, _SPECS[name], elements) for name, elements in part.items())
        frame = desired.frame()
        read = self._host.read(family, counted=_SPECS.keys() - frame.elements.keys())
        if read is None:
            yield False
            return
        observed = wire.judge(read, frame)
        yield (
            {name: count for name, count in read.sizes.items() if count} == desired.sizes
            and set(observed.sets) == set(_SPECS)
            and all(observed.sets.values())
            and observed.chains.keys() == frame.chains.keys()
            and all(one.base_as_desired and one.rules_as_desired for one in observed.chains.values())
            and all(read.elements.get(name) == elements for name, elements in frame.elements.items())
        )

    def _send_delta(self, one: _Family, delta: Delta, existing: frozenset[str], work: _Work) -> None:
        family = one.desired.family
        if GUARD in delta.gone:
            self._forbid_localhost(work)
        try:
            self._commit(planning.transaction(family, delta, existing), work)
        except Refused as error:
            # The table is not what we thought: someone else wrote. Read it back and mend it at once.
            work.conditions.append(f"{family}: {error}; the table is read back")
            self._mend(one, work, drift=True)

    def _mend(self, one: _Family, work: _Work, *, drift: bool) -> None:
        """Read the table back, compare it whole, and send what is missing."""
        one.trusted = False
        one.check = None
        family = one.desired.family
        with work.call("read"):
            read = self._host.read(family, counted=MAY_BE_COUNTED, above=LISTED)
        if read is not None and not one.seen:
            one.desired.adopt(read.elements)
            one.flows.recall(served_frontends(read.elements, family))
        one.seen = True
        ruleset = one.desired.whole(None if read is None else read.elements.get(PICKS))
        if read is not None:
            self._complete(read, ruleset)
        step, changes = planning.compare(ruleset, None if read is None else wire.judge(read, ruleset))
        if read is not None and GUARD in read.chains and GUARD not in ruleset.chains:
            self._forbid_localhost(work)
        if step:
            try:
                for part in planning.stages(ruleset) if read is None else (step,):
                    self._commit(part, work)
            except Refused as error:
                work.results += [Result(change, Outcome.FAILED, str(error)) for change in changes]
                raise
        one.trusted, one.doubted = True, False
        work.results += [Result(change, Outcome.DONE) for change in changes]
        if drift:
            work.drift += changes

    def _complete(self, read: wire.Found, desired: Ruleset) -> None:
        """Fill in the sets that were counted only: from what is desired if the host holds just that, else listed."""
        for name, count in read.counts.items():
            spec, want = desired.spec(name), desired.elements[name]
            if count == len(want) and self._host.holds(desired.family, spec, want):
                read.elements[name] = want
            else:
                read.elements[name] = self._host.read_elements(desired.family, spec)
        read.counts.clear()

    def _commit(self, step: Transaction, work: _Work) -> None:
        with work.call("commit"):
            self._host.commit(step)

    def _note_foreign_writes(self, work: _Work) -> None:
        try:
            with work.call("changes"):
                touched = self._host.touched_by_others()
        except DataplaneError as error:
            work.conditions.append(str(error))
            touched = frozenset(self._families)
        for family in touched & self._families.keys():
            self._families[family].doubted = True

    def _allow_localhost(self, work: _Work, *, audit: bool) -> None:
        """Once the guard is in place, and at every audit, for the setting may be changed by others."""
        guarded = (one := self._families.get(IPFamily.IPV4)) is not None and one.trusted
        if not guarded or (self._localhost_routed and not audit):
            return
        try:
            with work.call("sysctl"):
                self._host.route_localhost(allowed=True)
            self._localhost_routed = True
        except DataplaneError as error:
            work.conditions.append(str(error))

    def _forbid_localhost(self, work: _Work) -> None:
        """Before the guard goes: an earlier run, or the settings until now, had localhost node ports."""
        with work.call("sysctl"):
            self._host.route_localhost(allowed=False)
        self._localhost_routed = False

    def _replace_predecessor(self, one: _Family, work: _Work) -> None:
        """Once our table is in place, the other proxy's goes; what fails is tried again at the next sync."""
        if self._predecessor is None or one.alone:
            return
        family = one.desired.family
        try:
            with work.call("remove"):
                removed = self._predecessor.remove(family)
        except DataplaneError as error:
            work.conditions.append(f"{family}: another proxy's table cannot be removed: {error}")
            work.pending[family].append(f"{family} table of another proxy")
            return
        one.alone = True
        if removed:
            change = Change(Verb.DELETE, "table", removed, "hansa has taken its place")
            work.results.append(Result(change, Outcome.DONE))

    def _look_for_rivals(self, one: _Family, work: _Work) -> None:
        """Another proxy that has come back is told, and not fought: who removes whose rules would never end."""
        if self._predecessor is None or not one.alone:
            return
        family = one.desired.family
        try:
            with work.call("rivals"):
                one.rivals = self._predecessor.standing(family)
        except DataplaneError as error:
            work.conditions.append(f"{family}: another proxy's rules cannot be looked for: {error}")

    def _cut_stale_flows(self, one: _Family, work: _Work) -> None:
        """Only if a flow could be stale (K2); what fails is tried again at the next sync (K14)."""
        if self._connections is None or not one.flows.due:
            return
        family = one.desired.family
        started_at = self._clock()
        try:
            with work.call("flows"):
                listed = self._connections.list(family, Protocol.UDP)
        except DataplaneError as error:
            work.conditions.append(f"{family}: stale UDP flows cannot be looked for: {error}")
            work.pending[family].append(f"{family} conntrack")
            return
        stale = stale_entries(listed.entries, one.flows.wanted())
        work.calls["cut"] += len(stale)
        results, deleted = cut(stale, one.flows, self._connections)
        work.results += results
        work.conntrack[family] = ConntrackRun(self._clock() - started_at, deleted)
        if any(result.outcome is Outcome.FAILED for result in results):
            work.pending[family].append(f"{family} conntrack")
        elif listed.whole:
            one.flows.settle()
        else:
            work.conditions.append(f"{family}: others disturbed the listing of UDP flows; the next sync looks again")

    def _shortfalls(self) -> tuple[Shortfall, ...]:
        return tuple(
            shortfall
            for one in self._families.values()
            for found in one.desired.shortfalls.values()
            for shortfall in found
        )


def served_frontends(elements: Mapping[str, Mapping[bytes, Value]], family: IPFamily) -> Iterator[FrontendKey]:
    """The UDP frontends that a table serves, some of them several times; other protocols' have no flows to cut."""
    width = Part.ADDRESS.width_bytes(family)
    for place in Place:
        at = width if place is Place.SERVICE else 0
        for suffix in ("", FROM_PODS, FROM_NODE):
            for key in elements.get(place.frontends + suffix, {}):
                if key[at] == Protocol.UDP.value:
                    address = ip_address(key[:at]) if at else None
                    yield FrontendKey(family, address, Protocol.UDP, int.from_bytes(key[at + 4 : at + 6], "big"))


def _changes_of_frontends(desired: Desired, changes: RuleChanges) -> list[Change]:
    """What the changes ask for, frontend by frontend; nothing for a rule that is as before."""
    found: list[Change] = []
    for key, rule in changes.rules.items():
        if key.family is desired.family:
            found += _change_of_frontend(key, desired.rules.get(key), rule)
    if changes.complete:
        for key, old in desired.rules.items():
            if key not in changes.rules:
                found += _change_of_frontend(key, old, None)
    return found


def _change_of_frontend(key: FrontendKey, old: Rule | None, new: Rule | None) -> list[Change]:
    if old == new:
        return []
    owners = tuple(dict.fromkeys(str(rule.owner) for rule in (old, new) if rule is not None))
    if old is None:
        return [Change(Verb.CREATE, "frontend", str(key), "a rule came", owners=owners)]
    if new is None:
        return [Change(Verb.DELETE, "frontend", str(key), "its rule went", owners=owners)]
    return [Change(Verb.MODIFY, "frontend", str(key), "its rule changed", owners=owners)]
