"""Handing a node back: everything of ours goes, and nothing else.

It is a pass in which nothing is wanted and nothing may be taken over, so the rules of ownership are those of every
other pass. Evidence: windows-proxy F40, H.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hansa.config import Config
from hansa.dataplanes.base import Change, HostState, Outcome, Result
from hansa.dataplanes.windows.apply import WindowsDataplane
from hansa.dataplanes.windows.compare import Situation
from hansa.dataplanes.windows.objects import EndpointKind, Touched
from hansa.dataplanes.windows.ownership import OWNER, Standing, endpoint_guid
from hansa.dataplanes.windows.plan import LOAD_BALANCER, DeleteEndpoint, Step, Work, make_plan
from hansa.errors import DataplaneError
from hansa.hns.api import Guid
from hansa.hns.errors import ErrorClass
from hansa.hns.schema import HnsEndpoint
from hansa.rules.model import RuleChanges, Surroundings
from hansa.services.model import NodeFacts


@dataclass(frozen=True, slots=True)
class Kept:
    """An object that stays. ours: made by hansa, and yet not to be deleted, for the reason in `why`."""

    kind: str
    key: str
    guid: Guid
    why: str
    ours: bool


@dataclass(frozen=True, slots=True)
class Cleanup:
    """What goes, in order, and what stays."""

    changes: tuple[Change, ...]
    kept: tuple[Kept, ...]


def cleanup_config(config: Config) -> Config:
    """The same host and journal, with nothing to make and nothing to take over."""
    windows = replace(config.windows, takeover=False, source_vip=(), source_vip_endpoint="", create_source_vip=False)
    return replace(config, windows=windows)


def preview(plane: WindowsDataplane, config: Config, *, now: float) -> Cleanup:
    """What `clean` would do. `plane` must have been made with `cleanup_config`. Raises DataplaneError."""
    situation = plane.survey(_nothing(config), now=now)
    observed = situation.observed
    everywhere = Touched(
        {claim for guid in observed.balancers for claim in observed.claims(guid)},
        {address for endpoint in observed.endpoints.values() for address in endpoint.addresses},
    )
    plan = make_plan(situation, Work(everywhere))
    going = [step for step in plan.steps if not _held_by(situation, step)]
    changes = tuple(replace(step.change, why="made, or taken over, by hansa") for step in going)
    return Cleanup(changes, tuple(_kept(situation, plan.steps)))


def clean(plane: WindowsDataplane, config: Config, *, now: float) -> tuple[Result, ...]:
    """Delete; returns what was done and what HNS refused. Endpoints that others use are left without a word.

    Raises DataplaneError if HNS cannot be read, or stops to answer.
    """
    results: list[Result] = []
    report = plane.sync(_nothing(config), now=now, audit=True)
    while True:
        results.extend(report.results)
        if report.state is not HostState.HEALTHY:
            raise DataplaneError("; ".join(report.conditions) or f"HNS is {report.state.value}")
        if not report.again:
            break
        report = plane.sync(RuleChanges({}, _surroundings(config)), now=now, audit=False)
    return tuple(each for each in results if each.outcome is Outcome.DONE or _is_refusal(each))


def _is_refusal(result: Result) -> bool:
    return result.outcome is Outcome.FAILED and result.error_class != ErrorClass.BUSY.value


def _nothing(config: Config) -> RuleChanges:
    return RuleChanges({}, _surroundings(config), complete=True)


def _surroundings(config: Config) -> Surroundings:
    return Surroundings(NodeFacts(config.node_name))


def _held_by(situation: Situation, step: Step) -> list[Guid]:
    """Load balancers that stay and name the endpoint that this step would delete."""
    if not isinstance(step, DeleteEndpoint):
        return []
    users = situation.observed.references(step.guid)
    balancers = situation.observed.balancers
    return sorted(guid for guid in users if situation.standing_of(balancers[guid]) is not Standing.OURS)


def _kept(situation: Situation, steps: tuple[Step, ...]) -> Iterator[Kept]:
    observed = situation.observed
    held = {
        step.guid: users for step in steps if isinstance(step, DeleteEndpoint) and (users := _held_by(situation, step))
    }
    for guid, balancer in sorted(observed.balancers.items()):
        if situation.standing_of(balancer) is not Standing.OURS:
            key = ", ".join(str(claim) for claim in observed.claims(guid)) or "no frontend"
            yield Kept(LOAD_BALANCER, key, guid, "not made by hansa", ours=False)
    for guid, endpoint in sorted(observed.endpoints.items()):
        key = ", ".join(str(address) for address in endpoint.addresses)
        if guid in held:
            yield Kept(EndpointKind.REMOTE.value, key, guid, f"load balancer {held[guid][0]} uses it", ours=True)
        elif endpoint.remote:
            if situation.ownership.of_endpoint(endpoint, situation.network) is not Standing.OURS:
                yield Kept(EndpointKind.REMOTE.value, key, guid, "not made by hansa", ours=False)
        elif _is_our_local(situation, endpoint):
            why = "endpoints that are not remote are never deleted: its address may be somebody's by now"
            yield Kept(EndpointKind.SOURCE_VIP.value, key, guid, why, ours=True)


def _is_our_local(situation: Situation, endpoint: HnsEndpoint) -> bool:
    """The source VIP's endpoint, if hansa made it."""
    derived = {endpoint_guid(situation.network, address)[:-2] for address in endpoint.addresses}
    return endpoint.owner == OWNER or endpoint.guid in situation.ownership.journal or endpoint.guid[:-2] in derived
