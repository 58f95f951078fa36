"""Made anew on demand: one service's objects on the host, although they look right (windows-proxy F10).

HNS may list exactly what it should while the kernel holds something else; nothing that can be read tells. What helps is
to delete and create the service's load balancers. A running hansa is asked to do so at its metrics port, from this
machine only, so that nobody writes to the host beside it; `hansa heal` is the other end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hansa.api.objects import ServiceKey
from hansa.dataplanes.base import HostState, Outcome, Result, SyncReport
from hansa.engine import Clock, Engine
from hansa.errors import ConfigError, DataplaneError, Fault
from hansa.health_answers import Answer
from hansa.pipeline import Pipeline
from hansa.services.model import ServicePortName

PATH = "/debug/heal"
# Each time costs connections that may break. Who is asked more often than this by a script gone wild says so instead.
PAUSE_S = 10.0
_SERVICE = re.compile(r"(?:svc/)?(?:(?P<namespace>[^/:]+)/)?(?P<name>[^/:]+)(?::(?P<port>[^/:]+))?")
_FORM = "write NAMESPACE/NAME or NAMESPACE/NAME:PORT, PORT a name or a number"
_JSON = {"Content-Type": "application/json", "X-Content-Type-Options": "nosniff"}


def find_ports(text: str, pipeline: Pipeline) -> tuple[ServicePortName, ...]:
    """The service ports that people mean: `NAMESPACE/NAME[:PORT]`, or `NAME[:PORT]` if only one namespace has it.

    Raises ConfigError, with what there is instead.
    """
    match = _SERVICE.fullmatch(text.strip())
    if match is None:
        raise _fault(f"{text!r} names no Service", _FORM)
    key = _find_service(match["namespace"], match["name"], pipeline)
    found = {(one.port.name, one.port.port) for one in pipeline.view(key)}
    if not found:
        raise _fault(f"Service {key} has no ports that hansa handles on this node")
    wanted = match["port"]
    chosen = [name for name, number in found if wanted in (None, name.port, str(number))]
    if not chosen:
        known = ", ".join(sorted({f"{name.port or '(unnamed)'} = {number}" for name, number in found}))
        raise _fault(f"Service {key} has no port {wanted!r}", f"it has {known}")
    return tuple(sorted(chosen))


def _find_service(namespace: str | None, name: str, pipeline: Pipeline) -> ServiceKey:
    everywhere = sorted(pipeline.store.services.keys() | pipeline.rules.services)
    found = [key for key in everywhere if key.name == name and namespace in (None, key.namespace)]
    match found:
        case [key]:
            return key
        case []:
            near = [str(key) for key in everywhere if key.name == name or name in key.name][:5]
            there = f"there is {', '.join(near)}" if near else _FORM
            raise _fault(f"there is no Service {namespace + '/' if namespace else ''}{name}", there)
        case _:
            raise _fault(f"several namespaces have a Service {name}", f"say which: {', '.join(map(str, found))}")


def _fault(text: str, remedy: str = "") -> ConfigError:
    return ConfigError(Fault("SERVICE", text, remedy))


@dataclass(frozen=True, slots=True)
class Healed:
    """What became of it. steps: those of these ports, in order. pending: their frontends that are not as desired now.

    state: of the host; while it is not healthy nothing is done, and `conditions` say why.
    """

    ports: tuple[ServicePortName, ...]
    state: HostState
    steps: tuple[Result, ...]
    pending: tuple[str, ...]
    conditions: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.state is HostState.HEALTHY and not self.pending and all(_done(each) for each in self.steps)


def _done(result: Result) -> bool:
    return result.outcome is not Outcome.FAILED


def healed(ports: Collection[ServicePortName], report: SyncReport, frontends: Collection[str]) -> Healed:
    """frontends: every one of these ports, as reports name them."""
    names = {str(port) for port in ports}
    away = report.state is not HostState.HEALTHY
    return Healed(
        tuple(ports),
        report.state,
        tuple(each for each in report.results if names.intersection(each.change.owners)),
        tuple(key for key in report.pending if key in frontends),
        report.conditions if away else (),
    )


def frontends_of(ports: Collection[ServicePortName], pipeline: Pipeline) -> frozenset[str]:
    """Where clients of these ports come in, as reports name it."""
    services = {port.service_key for port in ports}
    rules = (rule for key in services for rule in pipeline.rules.rules_of(key))
    return frozenset(str(rule.key) for rule in rules if rule.owner in ports)


# --- as data, for the way between the two processes and for people ---


def healed_data(found: Healed) -> dict[str, Any]:
    return {
        "ports": [str(port) for port in found.ports],
        "ok": found.ok,
        "hostState": found.state.value,
        "steps": [
            {
                "verb": each.change.verb.value,
                "kind": each.change.kind,
                "key": each.change.key,
                "outcome": each.outcome.value,
                "error": each.error or None,
            }
            for each in found.steps
        ],
        "pending": list(found.pending),
        "conditions": list(found.conditions),
    }


def healed_lines(data: Mapping[str, Any]) -> list[str]:
    """`healed_data` for people: a line for each step, and one that sums up."""
    lines = []
    for step in data["steps"]:
        done = {"done": "made anew", "failed": "failed", "skipped": "left"}[step["outcome"]]
        if step["outcome"] == "done" and step["verb"] != "replace":
            done = {"create": "made", "modify": "changed", "delete": "deleted"}[step["verb"]]
        lines.append(f"{done}: {step['kind']} {step['key']}" + (f": {step['error']}" if step["error"] else ""))
    lines += [f"the host is {data['hostState']}: {text}" for text in data["conditions"]]
    if not data["steps"] and data["hostState"] == HostState.HEALTHY.value:
        lines.append(f"nothing of {', '.join(data['ports'])} is on this host")
    lines += [f"not as it should be yet, and tried again: {key}" for key in data["pending"]]
    return lines


# --- in a running hansa ---


class Healer:
    """Answers `POST /debug/heal` with the name of a Service in JSON. One for a process."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._last: dict[ServicePortName, float] = {}

    async def answer(self, method: str, content_type: str, body: bytes) -> Answer:
        """Only JSON is taken: a page in a browser of this machine could send anything else without being asked."""
        if method != "POST":
            return Answer(405, "ask by POST\n", {"Allow": "POST", "Content-Type": "text/plain; charset=utf-8"})
        if content_type != "application/json":
            return _refused(415, 'the body must be application/json: {"service": "NAMESPACE/NAME:PORT"}')
        try:
            text = json.loads(body)["service"]
        except (ValueError, TypeError, KeyError):
            text = None
        if not isinstance(text, str):
            return _refused(400, 'the body must be {"service": "NAMESPACE/NAME:PORT"}')
        try:
            return await self._heal(text)
        except ConfigError as error:
            return _refused(404, str(error))
        except DataplaneError as error:
            return _refused(503, str(error))

    async def _heal(self, text: str) -> Answer:
        async with self._engine.reading() as pipeline:
            ports = find_ports(text, pipeline)
        now = self._clock.now()
        self._last = {port: at for port, at in self._last.items() if now - at < PAUSE_S}
        if recent := self._last.keys() & set(ports):
            return _refused(429, f"{min(recent)} was made anew less than {PAUSE_S:g} s ago")
        self._last.update(dict.fromkeys(ports, now))
        report = await self._engine.renew(ports)
        async with self._engine.reading() as pipeline:
            frontends = frontends_of(ports, pipeline)
        return Answer(200, json.dumps(healed_data(healed(ports, report, frontends))), _JSON)


def _refused(code: int, text: str) -> Answer:
    return Answer(code, json.dumps({"error": text}), _JSON)
