"""WindowsDataplane: one pass after another over HNS.

A pass takes changed rules in, reads as much of HNS as it has to, plans the touched places and performs the steps within
a budget. Only an HNS that does not answer ends a pass; everything else concerns one key, which is tried again later.
Evidence: windows-proxy H.1 (shape), H.6 (failures), H.7 (bounds), F09, F21 (outages).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from hansa.config import Config
from hansa.dataplanes.base import Change, HostState, ObjectCounts, Outcome, Result, SyncReport, Verb
from hansa.dataplanes.windows.backoff import Backoff, RetryKey
from hansa.dataplanes.windows.census import adopted, census, made
from hansa.dataplanes.windows.compare import (
    Situation,
    plan_address,
    plan_frontend,
    resolve,
)
from hansa.dataplanes.windows.execute import GIVE_UP_AFTER, Executor, StepFailed, is_ours
from hansa.dataplanes.windows.facts import derive_facts, host_conditions, node_address
from hansa.dataplanes.windows.journal import JournalFile
from hansa.dataplanes.windows.node_ports import port_conditions, unread
from hansa.dataplanes.windows.objects import Touched, address_order
from hansa.dataplanes.windows.observe import HnsDown, Observed, Observer
from hansa.dataplanes.windows.ownership import Ownership, Standing
from hansa.dataplanes.windows.plan import (
    DeleteEndpoint,
    DeleteStray,
    MakeEndpoint,
    Plan,
    ReplaceEndpoint,
    SettleFrontend,
    Step,
    Work,
    make_plan,
)
from hansa.dataplanes.windows.render import Rendered, rendered
from hansa.dataplanes.windows.sight import Looked, Sight
from hansa.dataplanes.windows.status import Status
from hansa.dataplanes.windows.table import Row, make_table, row_data
from hansa.dataplanes.windows.wanted import Wanted
from hansa.errors import DataplaneError
from hansa.hns.api import Guid
from hansa.hns.client import HnsClient
from hansa.hns.errors import ErrorClass
from hansa.hns.features import Feature, supports
from hansa.hns.port_ranges import TakenPorts
from hansa.net import Address
from hansa.rules.model import FrontendKey, RuleChanges, Surroundings
from hansa.services.model import ServicePortName

GRACE_AUDITS = 2  # audits before leftovers without our mark are deleted under takeover (H.5)
# Longer than nearly any pod takes to end: its endpoint is out of the rules at once, and goes when the CNI is told.
IDLE_S = 600.0
ROUNDS = 2  # a place is planned again once within a pass, after another look at HNS (H.6)


class WindowsDataplane:
    """The Dataplane of a Windows node. Not thread-safe: one worker thread makes all calls.

    mac_of: MAC of the interface that has the address, None = no interface has it; on overlay it goes into endpoints.
    rng: spreads retries. clock: seconds, limits the time that one pass takes; nothing else depends on it. taken_ports:
    reads which ports the system gives away by itself, may raise OSError; asked once everything is as desired after a
    start, and after each outage of HNS.
    """

    name = "windows"

    def __init__(
        self,
        client: HnsClient,
        config: Config,
        *,
        mac_of: Callable[[Address], str | None],
        rng: random.Random,
        clock: Callable[[], float],
        taken_ports: Callable[[], Collection[TakenPorts]] = tuple,
    ) -> None:
        self._client = client
        self._config = config
        self._mac_of = mac_of
        self._clock = clock
        self._rng = rng
        self._read_taken_ports = taken_ports
        self._taken_ports: Collection[TakenPorts] | None = None  # None: to be read
        self._port_conditions: tuple[str, ...] = ()
        self._journal_file = JournalFile(config.windows.journal_path)
        self._journal = self._journal_file.load()
        self._wanted = Wanted(config)
        self._observed = Observed()
        ownership = Ownership(self._journal.made, takeover=config.windows.takeover and not self._journal.taken_over)
        self._situation = Situation(self._wanted, self._observed, ownership, not_echoed=self._journal.not_echoed)
        observer = Observer(client, self._observed)
        self._executor = Executor(client, observer, self._situation, self._journal, self._write_journal)
        self._backoff = Backoff(rng)
        self._status = Status()
        self._dirty = Touched()
        self._asked = Touched()  # by the rules of this pass
        self._drifted: set[FrontendKey | Address] = set()
        self._surroundings: Surroundings | None = None
        self._sight = Sight(client, observer, self._observed, config.windows.network_name)
        self._renewals: set[str] = set()  # service ports, until the next pass that comes to work
        self._alone = False
        self._used: set[Address] = set()  # addresses of this node's pods that rules have had, while HNS has them
        self._idle: dict[Address, float] = {}  # those that no rule has any more: since when
        self._complete = False
        self._seen_once = False
        self._audits = 0
        self._out_of_budget = False
        self._results: list[Result] = []
        self._drift: list[Change] = []
        self._census: Mapping[str, ObjectCounts] = {}
        self._made: Counter[str] = Counter()  # until the first pass that was through
        self._adopted: Mapping[str, int] = {}

    # --- Dataplane ---

    def sync(self, changes: RuleChanges, *, now: float, audit: bool) -> SyncReport:
        calls, errors = self._client.calls_by_verb.copy(), self._client.errors.copy()
        self._results, self._drift, self._out_of_budget = [], [], False
        self._take(changes)
        state = self._pass(now, audit)
        self._check_ports(state, audit)
        if audit:
            self._census = census(self._situation)
        self._note_adopted(state)
        refused = self._client.errors - errors
        return replace(
            self._report(state, now, calls),
            call_errors={(verb, f"0x{code:08x}"): count for (verb, code), count in refused.items()},
            call_times=self._client.take_times(),
            objects=self._census,
            backing_off=self._backoff.by_class(),
            waiting=self._backoff.waiting(self._owners_of),
            idle_locals=tuple(
                sorted((each for each, since in self._idle.items() if now - since >= IDLE_S), key=address_order)
            ),
            adopted=self._adopted,
        )

    def plan(self, changes: RuleChanges, *, now: float) -> Sequence[Change]:
        """Raises DataplaneError if HNS cannot be read. Costs a deep snapshot: nothing that is remembered is used."""
        quiet = self._preview(changes, now)
        return make_plan(quiet._situation, Work(quiet._dirty)).changes

    def survey(self, changes: RuleChanges, *, now: float) -> Situation:
        """What would be wanted and what HNS holds, read anew as for `plan`; writes nothing. To be read only."""
        return self._preview(changes, now)._situation

    def render(self, changes: RuleChanges, *, now: float) -> Rendered:
        """What these rules ask of this host, as plain values; reads the host, like `plan`, and writes nothing."""
        return rendered(self._preview(changes, now)._wanted)

    def _preview(self, changes: RuleChanges, now: float) -> WindowsDataplane:
        """A twin that has taken in what this one has, and these changes, and has read the host."""
        config = replace(self._config, windows=replace(self._config.windows, journal_path=""))
        quiet = WindowsDataplane(self._client, config, mac_of=self._mac_of, rng=random.Random(0), clock=self._clock)
        quiet._journal.made.update(self._journal.made)
        quiet._journal.not_echoed.update(self._journal.not_echoed)
        quiet._journal.intents.update(self._journal.intents)
        ownership = self._situation.ownership
        quiet._situation.ownership.takeover = ownership.takeover
        quiet._situation.ownership.grace_over = ownership.grace_over
        if self._surroundings is not None:
            quiet._take(RuleChanges(dict(self._wanted.rules), self._surroundings, complete=self._complete))
        quiet._take(changes)
        quiet._look(now, audit=False)
        if not quiet._sight.clear:
            raise DataplaneError(quiet._sight.text)
        return quiet

    def renew(self, owners: Collection[ServicePortName], *, alone: bool = False) -> None:
        """In the next sync, delete and create every load balancer of these service ports, each pair of calls adjacent.

        HNS takes no second load balancer at a frontend, so a gap of one call is the shortest there is. alone: that sync
        does nothing else. While HNS is away the order stands.
        """
        self._renewals.update(str(owner) for owner in owners)
        self._alone = alone

    def close(self) -> None:
        """Nothing is held open between calls; load balancers and endpoints stay."""

    # --- for people ---

    def describe(self) -> Sequence[Mapping[str, object]]:
        """See `Describing`; what HNS has is as last seen."""
        return [row_data(row) for row in self.table()]

    def table(self) -> list[Row]:
        """Service port, frontend, load balancer, endpoints: what is desired and what HNS has of it. No host calls."""
        if not self._sight.clear:
            return []
        return make_table(self._situation, {key: open_.reason for key, open_ in self._status.frontends.items()})

    @property
    def situation(self) -> Situation:
        """What is wanted and what HNS holds, as the last pass left it. To be read only."""
        return self._situation

    # --- taking in ---

    def _take(self, changes: RuleChanges) -> None:
        self._complete = self._complete or changes.complete
        if changes.surroundings != self._surroundings:
            self._surroundings = changes.surroundings
            self._situation.ownership.service_cidrs = changes.surroundings.service_cidrs
            self._refresh_facts()
        self._asked = self._wanted.take(changes)
        self._touch(self._asked)

    def _touch(self, touched: Touched) -> None:
        """These places are looked at in this pass, whatever they waited for: what is wanted, or there, has changed."""
        for key in (*touched.frontends, *touched.addresses, *touched.strays):
            self._backoff.clear(key)
        for address in touched.addresses:
            for user in self._wanted.users(address):
                retry = self._backoff.get(user)
                if retry is not None and retry.error_class is ErrorClass.REJECTED:
                    self._backoff.clear(user)  # it is another document now
        self._dirty.add(touched)

    def _touch_everything(self) -> None:
        observed = self._observed
        self._dirty.strays |= observed.placeless
        self._dirty.frontends.update(self._wanted.balancers)
        for guid in observed.balancers:
            self._dirty.frontends.update(observed.claims(guid))
        if self._wanted.facts is not None:
            self._dirty.addresses |= self._wanted.addresses()
        for endpoint in observed.endpoints.values():
            if endpoint.remote:
                self._dirty.addresses.update(endpoint.addresses)

    def _refresh_facts(self) -> None:
        """Render anew if anything that rendering depends on has changed; nothing is known before HNS was read."""
        version = self._sight.version
        if self._observed.network is None or version is None or self._surroundings is None:
            return
        address = node_address(self._observed, self._surroundings)
        host_mac = (self._mac_of(address) or "") if address is not None else ""
        host_mac = host_mac.upper().replace(":", "-")
        self._situation.ownership.host_mac = host_mac
        facts = derive_facts(self._observed, self._surroundings, self._config, version=version, host_mac=host_mac)
        self._touch(self._wanted.use(facts))

    # --- one pass ---

    def _pass(self, now: float, audit: bool) -> HostState:
        if not self._complete:
            return HostState.WAITING
        try:
            if self._sight.down:
                if not self._sight.came_back(now):
                    return HostState.UNAVAILABLE
                self._backoff.clear_all()
            if audit or self._sight.is_due(now) or self._lacks_pods():
                self._look(now, audit=audit)
            if not self._sight.clear:
                return HostState.WAITING
            if audit:
                self._count_audit()
                self._note_idle(now)
            self._take_up_renewals()
            self._work(now)
            if self._alone:
                self._dirty, self._alone = Touched(), False
        except HnsDown as error:
            self._sight.went_down(error, now)
            return HostState.UNAVAILABLE
        return HostState.WAITING if self._status.lacks_source_vip else HostState.HEALTHY

    def _note_idle(self, now: float) -> None:
        """F55: since when endpoints of pods serve no rule. Those that no rule has ever had are not hansa's business."""
        facts = self._wanted.facts
        if facts is None:
            return
        there = {address for one in self._observed.endpoints.values() if not one.remote for address in one.addresses}
        there -= {*facts.node_addresses, *facts.root_addresses.values(), *facts.source_vips.values()}
        self._used = (self._used | self._wanted.locals) & there
        self._idle = {address: self._idle.get(address, now) for address in self._used - self._wanted.locals}

    def _check_ports(self, state: HostState, audit: bool) -> None:
        """F45. Read after a pass that went through, so that no rule of it waits; compared at each check since.

        What changes while the system is asked, a second in all, is done right after.
        """
        if state is not HostState.HEALTHY or self._dirty or not (audit or self._taken_ports is None):
            return
        if self._taken_ports is None:
            self._taken_ports = ()
            try:
                self._taken_ports = self._read_taken_ports()
            except OSError as error:
                self._port_conditions = (unread(error),)
                return
        if self._taken_ports:
            self._port_conditions = tuple(port_conditions(self._taken_ports, self._situation))

    def _take_up_renewals(self) -> None:
        if not self._renewals:
            return
        for frontend, desired in self._wanted.balancers.items():
            if not self._renewals.isdisjoint(desired.owners):
                self._situation.renewing.add(frontend)
                self._backoff.clear(frontend)
        self._renewals.clear()
        if self._alone:
            self._dirty = Touched()
        self._dirty.frontends |= self._situation.renewing

    def _lacks_pods(self) -> bool:
        """Whether rules just began to ask for pods of this node that have not been seen in HNS.

        A pod has its HNS endpoint before a slice names it, so it is there by now and need not wait for the next check.
        """
        return self._sight.clear and any(
            self._wanted.waits_for_local(address) and resolve(self._situation, address) is None
            for address in self._dirty.addresses
        )

    def _count_audit(self) -> None:
        """After a while leftovers of another proxy may go; once they have, takeover is over for later starts (H.5)."""
        self._audits += 1
        ownership = self._situation.ownership
        if ownership.takeover and not ownership.grace_over and self._audits > GRACE_AUDITS:
            ownership.grace_over = True
            self._touch_everything()
        elif ownership.grace_over and not self._dirty and not len(self._backoff):
            self._journal.record_taken_over()

    # --- reading ---

    def _look(self, now: float, *, audit: bool) -> None:
        """See what HNS holds, and touch every place where that is not what was remembered."""
        match self._sight.look(now):
            case Looked.NOTHING:
                return
            case Looked.EVERYTHING:
                self._taken_ports = None
                self._learn_capabilities()
                self._refresh_facts()
                self._touch_everything()
                changes = self._observed.take_changes()
                if self._seen_once:
                    self._note_drift(changes)
                self._seen_once = True
            case Looked.PRESENCE:
                if audit:
                    count = self._config.windows.verify_per_period
                    self._sight.verify(count, lambda guid: is_ours(self._situation, guid))
                self._refresh_facts()
                changes = self._observed.take_changes()
                self._note_drift(changes)
                self._touch(changes)
        self._executor.claim()

    def _note_drift(self, changes: Touched) -> None:
        """What somebody else has changed, unless the rules have just asked for a change at the same place."""
        self._drifted.update(changes.addresses - self._asked.addresses)
        self._drifted.update(changes.frontends - self._asked.frontends)
        for address in changes.addresses:
            self._drifted.update(self._wanted.users(address) - self._asked.frontends)

    def _learn_capabilities(self) -> None:
        """From the version whether Modify works, from any object that has our marks that this HNS keeps them."""
        situation = self._situation
        if not self._seen_once and self._sight.version is not None:
            situation.modify = supports(self._sight.version, Feature.MODIFY_LOAD_BALANCER)
        if not situation.ownership.marks_kept:
            made = situation.ownership.journal
            situation.ownership.marks_kept = any(
                situation.standing_of(balancer) is Standing.OURS and balancer.guid not in made
                for balancer in self._observed.balancers.values()
            )

    # --- writing ---

    def _work(self, now: float) -> None:
        self._executor.begin()
        for key in self._backoff.due(now):
            self._make_dirty(key)
        settings = self._config.windows
        end = (self._client.calls + settings.call_budget, self._clock() + settings.pass_budget_s)
        for _ in range(ROUNDS):
            if not self._dirty or self._out_of_budget:
                break
            since = {key: open_.since for key, open_ in self._status.frontends.items()}
            work = Work(self._dirty, self._backoff, since)
            plan = make_plan(self._situation, work)
            self._dirty = Touched()
            try:
                look = self._perform(plan, end)
            except HnsDown:
                self._dirty = Touched(set(plan.frontends), set(plan.addresses), set(work.touched.strays))
                raise
            self._fold(plan, now)
            if look:  # something was not as remembered: see what it is, and let those places try again at once
                self._look(now, audit=False)
        self._drifted.clear()
        self._write_journal()

    def _write_journal(self) -> None:
        self._journal_file.append(self._journal)

    def _make_dirty(self, key: RetryKey) -> None:
        match key:
            case tuple():
                self._dirty.frontends.add(key)
            case str():
                self._dirty.strays.add(key)
            case _:
                self._dirty.addresses.add(key)

    def _perform(self, plan: Plan, end: tuple[int, float]) -> bool:
        """Whether another look at HNS is needed. Stops early when the budget, calls or time, is used up."""
        look = False
        for step in plan.steps:
            if self._client.calls >= end[0] or self._clock() >= end[1]:
                self._out_of_budget = True
                return look
            key = _key_of(step)
            try:
                wrote = self._executor.perform(step)
            except StepFailed as error:
                look = look or error.look
                self._backoff.fail(key, error.error_class, error.text, final=error.final)
                self._results.append(
                    Result(step.change, Outcome.FAILED, error.text, error_class=error.error_class.value)
                )
            else:
                self._backoff.clear(key)
                self._results.append(Result(step.change, Outcome.DONE if wrote else Outcome.SKIPPED))
            finally:
                self._write_journal()  # what HNS has made must not outlive our knowing of it
            if key in self._drifted:
                self._drift.append(step.change)
        return look

    def _fold(self, plan: Plan, now: float) -> None:
        """Compare what was looked at once more, in memory, and note what is still open."""
        for frontend in plan.frontends:
            after = plan_frontend(self._situation, frontend)
            if after.verb is not Verb.REPLACE:
                self._situation.renewing.discard(frontend)
            if after.guid is not None and after.verb is None and not after.blocked:
                self._adopt(after.guid)
            if after.settled:
                self._backoff.clear(frontend)
            elif (after.verb is not None or after.surplus) and frontend not in self._backoff:
                self._leave_open(frontend)
            self._status.note_frontend(after, self._backoff.get(frontend), now)
        for address in plan.addresses:
            there = plan_address(self._situation, address)
            if there.guid is not None and there.verb is None and not there.blocked:
                self._adopt(there.guid)
            if there.verb is not None or there.surplus:
                if address not in self._backoff:
                    self._leave_open(address)
            else:
                self._backoff.clear(address)
            self._status.note_address(there, self._backoff.get(address), now)
        self._follow(plan)

    def _adopt(self, guid: Guid) -> None:
        """What serves as desired and has no mark becomes ours for good: it goes when it is not desired any more."""
        if guid in self._journal.made:
            return
        situation = self._situation
        balancer = situation.observed.balancers.get(guid)
        if balancer is not None:
            ours = situation.ownership.may_rewrite(situation.standing_of(balancer))
        else:
            endpoint = situation.observed.endpoints[guid]
            standing = situation.ownership.of_endpoint(endpoint, situation.network)
            ours = situation.ownership.may_delete_endpoint(standing)
        if ours:
            self._journal.record_made(guid)

    def _leave_open(self, key: FrontendKey | Address) -> None:
        """Not reached within the budget: next pass. Reached and yet not in order, although nothing failed: later."""
        if self._out_of_budget:
            self._make_dirty(key)
        else:
            self._backoff.fail(key, ErrorClass.TRANSIENT, "")

    def _follow(self, plan: Plan) -> None:
        """Places that the plan did not look at, but that what was done has consequences for."""
        changes = self._observed.take_changes()
        self._dirty.frontends |= changes.frontends - plan.frontends
        for address in changes.addresses:
            if self._wanted.makes_source_vip(address):
                self._dirty.frontends.update(key for key, open_ in self._status.frontends.items() if open_.blocked)
            self._dirty.frontends.update(
                user
                for user in self._wanted.users(address)
                if user in self._status.frontends and user not in plan.frontends
            )
            if address not in plan.addresses:
                there = plan_address(self._situation, address)
                if there.verb is not None or there.surplus:
                    self._dirty.addresses.add(address)

    # --- telling ---

    def _note_adopted(self, state: HostState) -> None:
        if self._adopted:
            return
        self._made += made(self._results)
        if state is HostState.HEALTHY and not self._dirty:
            self._adopted = adopted(census(self._situation), self._made)

    def _report(self, state: HostState, now: float, calls: Counter[str]) -> SyncReport:
        calls_by_verb = self._client.calls_by_verb - calls
        times = [self._backoff.next_at(), self._sight.next_at]
        return SyncReport(
            state=state,
            results=tuple(self._results),
            shortfalls=self._wanted.shortfalls,
            pending=self._status.pending,
            drift=tuple(self._drift),
            conditions=tuple(self._conditions(now)),
            retry_at=min((time for time in times if time is not None), default=None),
            again=state is HostState.HEALTHY and bool(self._dirty),
            host_calls=calls_by_verb.total(),
            pending_by_family=self._status.pending_by_family,
            calls_by_verb=calls_by_verb,
        )

    def _owners_of(self, key: RetryKey) -> tuple[str, ...]:
        match key:
            case tuple():
                desired = self._wanted.balancers.get(key)
                return desired.owners if desired is not None else ()
            case str():
                return ()
            case _:
                balancers = self._wanted.balancers
                return tuple(sorted({owner for user in self._wanted.users(key) for owner in balancers[user].owners}))

    def _conditions(self, now: float) -> Iterator[str]:
        if not self._complete:
            yield "the lists of Services and EndpointSlices are not complete yet; nothing is written before"
        if self._sight.text:
            yield self._sight.text
        if self._wanted.facts is not None and self._sight.clear:
            yield from host_conditions(self._observed, self._wanted.facts)
        yield from self._port_conditions
        yield from self._status.conditions(now)
        for guid, text in sorted(self._observed.unreadable.items()):
            yield f"left alone, cannot be read: {text or guid}"
        if self._executor.exhausted >= GIVE_UP_AFTER:
            yield (
                "HNS has run out of ports for load balancers without DSR: widen the dynamic port range, or use DSR; "
                "no more are tried in this pass"
            )
        if self._journal_file.fault:
            yield self._journal_file.fault


def _key_of(step: Step) -> FrontendKey | Address | Guid:
    match step:
        case SettleFrontend():
            return step.frontend
        case DeleteStray():
            return step.guid
        case MakeEndpoint() | ReplaceEndpoint() | DeleteEndpoint():
            return step.address
