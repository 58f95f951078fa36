"""check_dataplane(): whether a dataplane keeps what the engine relies on; for the tests of outside dataplanes.

It goes through a story of Services that come, change, lose endpoints and go, in a thread of its own as the engine has
one, and looks at every report. What it cannot see for itself, it is given: how to open the dataplane again on the same
host, what becomes of a packet, how to break something behind its back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from hansa.api.change import Delete, Synced, Upsert
from hansa.api.objects import ApiObject, Kind, ObjectKey
from hansa.dataplanes.base import Change, Dataplane, HostState, Outcome, SyncReport
from hansa.net import Address, Packet, Prefix, Protocol, parse_prefix
from hansa.pipeline import Pipeline
from hansa.rules.decide import decide
from hansa.rules.model import Drop, Forward, NotHandled, Reject, RuleChanges, Verdict
from hansa.testing.builders import L1, R1, Client, config, endpoint_slice, node, port, service, slice_port

_D = TypeVar("_D", bound=Dataplane)


class DataplaneCheckFailed(AssertionError):
    """`faults`: everything that was wrong, each with the step of the story at which it was."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(("the dataplane does not keep its contract:", *(f"- {one}" for one in faults))))


@dataclass(frozen=True, slots=True)
class Step:
    """One moment of the story: what has changed since the one before. gone: what is no more."""

    name: str
    objects: tuple[ApiObject, ...] = ()
    gone: tuple[ObjectKey, ...] = ()


def story(frontends: Prefix, number: int) -> tuple[Step, ...]:
    """The steps, with ClusterIPs and external addresses out of `frontends`, all at port `number`."""
    web_ip, api_ip, other, vip = (str(frontends.network_address + offset) for offset in (10, 11, 12, 13))
    ports = [port("http", number)]

    def web(**fields: object) -> ApiObject:
        return service("web", cluster_ips=[web_ip], ports=ports, **fields)  # type: ignore[arg-type]

    api = service("api", cluster_ips=[api_ip], ports=[port("dns", number, protocol="UDP", target_port="dns")])
    api_slice = endpoint_slice("api-a", [R1], service="api", ports=[slice_port("dns", 5353, protocol="UDP")])
    outside = {"type": "LoadBalancer", "external_ips": [other], "load_balancer_vips": [vip]}
    return (
        Step("there is nothing", (node(),)),
        Step("a Service with two endpoints", (web(), endpoint_slice("web-a", [L1, R1]))),
        Step("a second Service, with UDP", (api, api_slice)),
        Step("an endpoint goes", (endpoint_slice("web-a", [L1]),)),
        Step("the last endpoint goes", (endpoint_slice("web-a", []),)),
        Step("policy Local, and nobody here", (web(internal_policy="Local"), endpoint_slice("web-a", [R1]))),
        Step("external addresses, with affinity", (web(affinity_timeout_s=30, **outside),)),
        Step("source ranges", (web(source_ranges=["198.51.100.0/25"], **outside),)),
        Step("external policy Local", (web(external_policy="Local", **outside), endpoint_slice("web-a", [L1, R1]))),
        Step("a Service goes", gone=(api.object_key, api_slice.object_key)),
        Step("all goes", gone=(web().object_key, endpoint_slice("web-a", []).object_key)),
    )


@dataclass(slots=True)
class _Checker:
    plane: Dataplane
    trace: Callable[[Packet], Verdict] | None
    open_another: Callable[[], Dataplane]
    keeps_rules: bool
    faults: list[str] = field(default_factory=list)
    passed: dict[str, int] = field(default_factory=dict)
    now: float = 100.0
    has_rules: bool = False

    def check(self, name: str, holds: bool, *, at: str, found: object = "") -> None:
        if holds:
            self.passed[name] = self.passed.get(name, 0) + 1
        else:
            self.faults.append(f"{at}: {name}" + (f": {found}" if found else ""))

    def sync(self, changes: RuleChanges, *, at: str, audit: bool = False) -> SyncReport:
        self.now += 1.0
        self.has_rules = (self.has_rules and not changes.complete) or bool(changes.rules)
        try:
            report = self.plane.sync(changes, now=self.now, audit=audit)
        except Exception as error:
            raise DataplaneCheckFailed([*self.faults, f"{at}: sync raised {error!r}"]) from error
        # A host may lack something that it only needs once there are rules.
        healthy = report.state is HostState.HEALTHY or (report.state is HostState.WAITING and not self.has_rules)
        self.check("sync says that the host is healthy", healthy, at=at, found=report.state)
        self.check("nothing is pending", not report.pending, at=at, found=_troubles(report))
        return report

    def planned(self, full: RuleChanges) -> list[str]:
        """What another instance on the same host, which knows nothing, would do for these rules."""
        other = self.open_another()
        try:
            return [_named(one) for one in other.plan(full, now=self.now)]
        finally:
            other.close()

    def quiet(self, changes: RuleChanges, *, at: str, audit: bool = False) -> None:
        """Nothing is to be done, so nothing must be."""
        report = self.sync(changes, at=at, audit=audit)
        done = [f"{one.change.verb.value} {one.change.kind} {one.change.key}" for one in report.results]
        self.check("what is as desired is not written again", not done, at=at, found=", ".join(done[:3]))
        self.check("no drift is reported where there is none", not report.drift, at=at, found=report.drift[:3])


def check_dataplane(
    open_dataplane: Callable[[], _D],
    *,
    trace: Callable[[_D, Packet], Verdict] | None = None,
    disturb: Callable[[_D], object] | None = None,
    keeps_rules: bool = True,
    frontends: str = "10.96.0.0/16",
    number: int = 80,
) -> tuple[str, ...]:
    """Go through the story with a dataplane; returns the checks that it passed, raises DataplaneCheckFailed.

    open_dataplane: opens one, on the same host each time; keeps_rules: whether that host outlives it. trace: what
    becomes of a packet, NotHandled or Reject where nothing is; None = traffic is not checked. disturb: takes something
    away behind its back, which an audit must find and mend; None = nobody can. frontends, number: addresses and port
    that the host lets it use.
    """
    found: list[tuple[str, ...] | BaseException] = []

    def work() -> None:
        try:
            found.append(_check(open_dataplane, trace, disturb, keeps_rules, story(parse_prefix(frontends), number)))
        except BaseException as error:  # noqa: BLE001 (raised where the check was asked for)
            found.append(error)

    # As the engine does it: made here, used in a thread of its own.
    thread = threading.Thread(target=work, name="check-dataplane")
    thread.start()
    thread.join()
    (result,) = found
    if isinstance(result, BaseException):
        raise result
    return result


def _check(
    open_dataplane: Callable[[], _D],
    trace: Callable[[_D, Packet], Verdict] | None,
    disturb: Callable[[_D], object] | None,
    keeps_rules: bool,
    steps: Sequence[Step],
) -> tuple[str, ...]:
    settings = config()
    pipeline = Pipeline(settings, frozenset())
    pipeline.apply([Synced(kind) for kind in Kind])
    plane = open_dataplane()
    tracing = None if trace is None else lambda packet: trace(plane, packet)
    checker = _Checker(plane, tracing, open_dataplane, keeps_rules)
    name: object = getattr(plane, "name", "")
    checker.check("it has a name", isinstance(name, str) and bool(name), at="at the start", found=repr(name))
    try:
        for step in steps:
            _take_step(checker, pipeline, step)
        _rebuild(checker, pipeline, steps)
        if disturb is not None:
            disturb(plane)
            _heal(checker, pipeline)
    finally:
        plane.close()
    again = open_dataplane()
    checker.plane, checker.trace = again, None if trace is None else lambda packet: trace(again, packet)
    try:
        _restart(checker, pipeline)
    finally:
        again.close()
    if checker.faults:
        raise DataplaneCheckFailed(checker.faults)
    return tuple(checker.passed)


def _take_step(checker: _Checker, pipeline: Pipeline, step: Step) -> None:
    pipeline.apply([*(Upsert(one) for one in step.objects), *(Delete(key) for key in step.gone)])
    message = _message(pipeline)
    full = pipeline.rules.everything(message.surroundings)
    planned = checker.planned(full) if checker.keeps_rules else None
    report = checker.sync(message, at=step.name)
    done = [_named(one.change) for one in report.results if one.outcome is Outcome.DONE]
    if planned is not None:
        text = f"planned {planned[:3]}, done {done[:3]}"
        name = "a plan writes nothing, and says whether a sync would"
        checker.check(name, bool(planned) == bool(done), at=step.name, found=text)
    faults = _traffic(checker, pipeline)
    if checker.trace is not None:
        checker.check("packets meet what the rules say", not faults, at=step.name, found=faults[:1])
    checker.quiet(_message(pipeline), at=f"{step.name}, again")
    checker.quiet(_message(pipeline), at=f"{step.name}, at an audit", audit=True)
    checker.quiet(_message(pipeline, full=True), at=f"{step.name}, as one full message")
    if checker.keeps_rules:
        left = checker.planned(full)
        checker.check("nothing is planned once all is done", not left, at=step.name, found=left[:3])


def _rebuild(checker: _Checker, pipeline: Pipeline, steps: Sequence[Step]) -> None:
    """Everything at once, by one complete message."""
    objects = {one.object_key: one for step in steps for one in step.objects}
    pipeline.apply([Upsert(one) for one in objects.values()])
    checker.sync(_message(pipeline, full=True), at="all at once")
    faults = _traffic(checker, pipeline)
    checker.check("packets meet what the rules say", not faults, at="all at once", found=faults[:1])


def _heal(checker: _Checker, pipeline: Pipeline) -> None:
    report = checker.sync(_message(pipeline), at="after a disturbance", audit=True)
    checker.check("an audit finds what somebody took away", bool(report.drift), at="after a disturbance")
    faults = _traffic(checker, pipeline)
    checker.check("an audit mends what somebody took away", not faults, at="after a disturbance", found=faults[:1])
    checker.quiet(_message(pipeline), at="after a disturbance, again", audit=True)


def _restart(checker: _Checker, pipeline: Pipeline) -> None:
    full = _message(pipeline, full=True)
    if checker.keeps_rules:
        checker.quiet(full, at="after a restart")
    else:
        checker.sync(full, at="after a restart")
    faults = _traffic(checker, pipeline)
    checker.check("packets meet what the rules say", not faults, at="after a restart", found=faults[:1])
    nothing = RuleChanges({}, full.surroundings, complete=True)
    report = checker.sync(nothing, at="a complete message without rules")
    checker.check(
        "what a complete message leaves out goes", bool(report.results), at="a complete message without rules"
    )
    checker.quiet(nothing, at="the same again")


def _message(pipeline: Pipeline, *, full: bool = False) -> RuleChanges:
    message = pipeline.take(full=full)
    assert message is not None
    return message


def _named(change: Change) -> str:
    return f"{change.verb.value} {change.kind} {change.key}"


def _troubles(report: SyncReport) -> str:
    failed = [f"{one.change.key}: {one.error}" for one in report.results if one.outcome is Outcome.FAILED]
    return "; ".join((*failed, *(f"pending {key}" for key in report.pending)))


def _traffic(checker: _Checker, pipeline: Pipeline) -> list[str]:
    """Where the dataplane does something else to a packet than the rules say."""
    if checker.trace is None:
        return []
    found = []
    for packet in _packets(pipeline):
        wanted, got = decide(pipeline.rules, pipeline.surroundings, packet), checker.trace(packet)
        if _outcome(wanted) != _outcome(got):
            found.append(f"{packet}: {_outcome(got)} instead of {_outcome(wanted)}")
    return found


def _outcome(verdict: Verdict) -> str:
    match verdict:
        case Forward(endpoints=endpoints):
            return "forwarded to " + ", ".join(sorted(str(one) for one in endpoints))
        case Drop():
            return "dropped"
        case Reject() | NotHandled():
            return "refused"


def _packets(pipeline: Pipeline) -> Iterator[Packet]:
    """From a pod, the node and the outside to every frontend that has an address."""
    sources: tuple[Address, ...] = (Client.P, Client.N, Client.X, Client.Y)
    for rule in pipeline.rules:
        if rule.key.address is not None and rule.key.protocol in (Protocol.TCP, Protocol.UDP):
            for source in sources:
                if source.version == rule.key.address.version:
                    yield Packet(source, rule.key.address, rule.key.protocol, rule.key.port)
