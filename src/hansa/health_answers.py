"""What health is, and the answers that tell it: pure, from one snapshot of the engine and a time.

A family is overdue once the oldest request that the host does not satisfy is as old as twice the sync period, be it
that no sync came through (Z3) or that single objects are missing or different (I15). Everything else follows: /livez
asks for that alone, /healthz for the Node besides, a healthCheckNodePort for local endpoints besides. `hansa.health`
puts these answers on sockets.

Evidence: service-semantics sections 14 and 15 (H1 to H14, Z1 to Z14); operations.md 10 and 17; windows-proxy F86, F88.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hansa.api.objects import Node, ServiceKey
from hansa.config import Config
from hansa.engine import EngineState
from hansa.net import Address, IPFamily
from hansa.pipeline import HealthCheck, HealthCheckKey

# kube-proxy's healthTimeout; with the default sync period 60 s.
TIMEOUT_IN_SYNC_PERIODS = 2
# Set by the cluster autoscaler on a node that it is about to delete, with any value and effect.
AUTOSCALER_TAINT = "ToBeDeletedByClusterAutoscaler"
# What Go prints for a time that was never set.
NEVER = "0001-01-01T00:00:00Z"

_JSON = {"Content-Type": "application/json", "X-Content-Type-Options": "nosniff"}
_TEXT = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer. headers: all but those that the server makes by itself."""

    code: int
    body: str
    headers: Mapping[str, str] = field(default_factory=lambda: _TEXT)


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment on both clocks: monotonic seconds, and seconds since the epoch."""

    now: float
    wall: float

    def wall_at(self, monotonic: float) -> float:
        """Seconds since the epoch of another moment of the monotonic clock."""
        return self.wall - (self.now - monotonic)


@dataclass(frozen=True, slots=True)
class FamilyHealth:
    """updated_at: the last time that all was as desired, monotonic seconds; entering the loop counts (Z4)."""

    updated_at: float
    healthy: bool


@dataclass(frozen=True, slots=True)
class Health:
    """families: those that have reported; () before the loop was entered. healthy: all of them are (Z5)."""

    families: Mapping[IPFamily, FamilyHealth]
    node_eligible: bool

    @property
    def healthy(self) -> bool:
        return all(one.healthy for one in self.families.values())


def judge(state: EngineState, config: Config, now: float) -> Health:
    """Health at `now`, monotonic seconds."""
    families: dict[IPFamily, FamilyHealth] = {}
    if state.loop_since is not None:
        timeout_s = TIMEOUT_IN_SYNC_PERIODS * config.sync_period_s
        for family, one in sorted(state.families.items()):
            updated_at = state.loop_since if one.last_ok_at is None else max(state.loop_since, one.last_ok_at)
            overdue = one.waiting_since is not None and now - one.waiting_since >= timeout_s
            families[family] = FamilyHealth(updated_at, not overdue)
    return Health(families, is_eligible(state.node))


def is_eligible(node: Node | None) -> bool:
    """Z6 to Z8: whether balancers should go on sending new traffic to this node. Not known: no."""
    return node is not None and not node.deleting and AUTOSCALER_TAINT not in node.taint_keys


def healthz(health: Health, moment: Moment) -> Answer:
    """For cloud balancers of services with policy Cluster: 200 if healthy and the Node is eligible (Z9)."""
    return _proxy_answer(health, moment, ok=health.healthy and health.node_eligible, with_node=True)


def livez(health: Health, moment: Moment) -> Answer:
    """For liveness probes: 200 if healthy, whatever becomes of the Node (Z10)."""
    return _proxy_answer(health, moment, ok=health.healthy, with_node=False)


def _proxy_answer(health: Health, moment: Moment, *, ok: bool, with_node: bool) -> Answer:
    updates = {family: moment.wall_at(one.updated_at) for family, one in health.families.items()}
    if ok:
        last_updated = rfc3339(moment.wall)  # Z12
    else:
        last_updated = rfc3339(max(updates.values())) if updates else NEVER
    body: dict[str, object] = {"lastUpdated": last_updated, "currentTime": rfc3339(moment.wall)}
    if with_node:
        body["nodeEligible"] = health.node_eligible
    body["healthy"] = health.healthy
    if health.families:
        body["status"] = {
            str(family): {"lastUpdated": rfc3339(updates[family]), "healthy": one.healthy}
            for family, one in health.families.items()
        }
    return Answer(200 if ok else 503, json.dumps(body, separators=(",", ":")), _JSON)


def readyz(state: EngineState, moment: Moment) -> Answer:
    """200 once the rules have been written: a run has reached the host and gone through all there was to do."""
    reached_at = state.first_reached_at
    if reached_at is not None:
        why = ""
    elif not state.ready:
        why = "Services and EndpointSlices are not complete yet; " + "; ".join(state.sources)
    elif state.report is not None and state.report.conditions:
        why = "the first sync is not through; " + "; ".join(state.report.conditions)
    else:
        why = "the first sync is not through"
    body = {
        "currentTime": rfc3339(moment.wall),
        "ready": reached_at is not None,
        "readySince": None if reached_at is None else rfc3339(moment.wall_at(reached_at)),
        "waitingFor": why or None,
    }
    return Answer(200 if reached_at is not None else 503, json.dumps(body, separators=(",", ":")), _JSON)


def health_check(service: ServiceKey, check: HealthCheck | None, *, healthy: bool) -> Answer:
    """What a healthCheckNodePort answers to anything (H5 to H10). check: None for a Service that just lost it (H13).

    The body is laid out as kube-proxy's: with tabs, and without a newline at its end.
    """
    count = check.local_count if check is not None else 0
    body = {
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": count,
        "serviceProxyHealthy": healthy,
    }
    headers = {**_JSON, "X-Load-Balancing-Endpoint-Weight": str(count)}
    return Answer(200 if count and healthy else 503, json.dumps(body, indent="\t", ensure_ascii=False), headers)


NOT_FOUND = Answer(404, "404 page not found\n")


def plain(text: str) -> Answer:
    return Answer(200, text)


def document(value: object) -> Answer:
    return Answer(200, json.dumps(value, separators=(",", ":")), _JSON)


@dataclass(frozen=True, slots=True)
class Listener:
    """Where one healthCheckNodePort listens. addresses: sorted; () = all addresses of the family (H3)."""

    port: int
    addresses: tuple[Address, ...]


def wanted_listeners(state: EngineState) -> Mapping[HealthCheckKey, Listener]:
    """The healthCheckNodePorts that should be open. Without a fitting address of this node, all of them listen (H3)."""
    found = {}
    for key, check in state.health_checks.items():
        accepted = state.node_port_addresses.get(key.family)
        found[key] = Listener(check.port, tuple(sorted(accepted or (), key=int)))
    return found


def rfc3339(seconds: float) -> str:
    """A time as Go prints it: UTC, with as many digits after the second as are needed, at most microseconds here.

    >>> rfc3339(1767323045.678)
    '2026-01-02T03:04:05.678Z'
    >>> rfc3339(1767323045.0)
    '2026-01-02T03:04:05Z'
    """
    moment = datetime.fromtimestamp(round(seconds, 6), UTC)
    fraction = f".{moment.microsecond:06}".rstrip("0") if moment.microsecond else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"
