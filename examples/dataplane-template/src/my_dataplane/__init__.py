"""A dataplane whose host is a JSON file: frontends, and where each sends whom."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from hansa.config import Config
from hansa.dataplanes.base import Change, HostState, Outcome, Result, SyncReport, Verb
from hansa.net import IPFamily
from hansa.rules.model import Action, Forward, FrontendKey, Rule, RuleChanges

RETRY_S = 5.0
Held = dict[str, dict[str, list[str]]]


def open_dataplane(config: Config) -> FileDataplane:
    """For the entry point. Raise hansa.errors.DataplaneError here if the host cannot be used at all."""
    del config
    return FileDataplane(Path(os.environ.get("MY_DATAPLANE", "/run/my-dataplane.json")))


class FileDataplane:
    name = "mine"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._desired: dict[FrontendKey, Rule] = {}

    def sync(self, changes: RuleChanges, *, now: float, audit: bool) -> SyncReport:
        asked = self._take_in(changes)
        held = self.read()
        planned = self._differences(held)
        error = self.write({str(key): render(rule) for key, rule in self._desired.items()}) if planned else ""
        outcome = Outcome.FAILED if error else Outcome.DONE
        pending = [key for _, key in planned] if error else []
        return SyncReport(
            HostState.HEALTHY,
            results=tuple(Result(change, outcome, error) for change, _ in planned),
            # What differs though no rule asked for it, somebody else has changed.
            drift=tuple(change for change, key in planned if audit and key not in asked),
            pending=tuple(map(str, pending)),
            pending_by_family={family: tuple(str(k) for k in pending if k.family is family) for family in IPFamily},
            retry_at=now + RETRY_S if error else None,
            host_calls=1 + bool(planned),
        )

    def plan(self, changes: RuleChanges, *, now: float) -> Sequence[Change]:
        del now
        self._take_in(changes)
        return [change for change, _ in self._differences(self.read())]

    def close(self) -> None:
        """There is nothing to let go of; the file stays."""

    def _take_in(self, changes: RuleChanges) -> set[FrontendKey]:
        before = dict(self._desired)
        changes.apply_to(self._desired)
        return {key for key in before.keys() | self._desired.keys() if before.get(key) != self._desired.get(key)}

    def _differences(self, held: Held) -> list[tuple[Change, FrontendKey]]:
        wanted = {str(key): key for key in self._desired}
        known = {**wanted, **{str(key): key for key in map(parse_key, held.keys() - wanted.keys())}}
        found = []
        for text, key in sorted(known.items()):
            rule = self._desired.get(key)
            if rule is None:
                found.append((Change(Verb.DELETE, "frontend", text, "nobody asks for it"), key))
            elif text not in held:
                found.append((Change(Verb.CREATE, "frontend", text, "missing"), key))
            elif held[text] != render(rule):
                found.append((Change(Verb.MODIFY, "frontend", text, "differs"), key))
        return found

    # -- the host: put yours here --

    def read(self) -> Held:
        """What the host holds now."""
        try:
            held: Held = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return held

    def write(self, wanted: Held) -> str:
        """Bring the host there; returns its own words for why not, "" if it worked."""
        draft = self._path.with_suffix(".new")
        try:
            draft.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
            draft.replace(self._path)
        except OSError as error:
            return str(error)
        return ""


def render(rule: Rule) -> dict[str, list[str]]:
    """A rule in the host's words: where each origin is sent; a single word if nowhere."""

    def told(action: Action) -> list[str]:
        if isinstance(action, Forward):
            return [str(one) for one in action.endpoints]
        return [type(action).__name__.lower()]

    ranges = {} if rule.source_ranges is None else {"only": [str(one) for one in rule.source_ranges]}
    affinity = {} if rule.affinity_timeout_s is None else {"sticky": [f"{rule.affinity_timeout_s} s"]}
    sets = {"pod": told(rule.pod), "node": told(rule.node), "outside": told(rule.outside)}
    return {**sets, **ranges, **affinity}


def parse_key(text: str) -> FrontendKey:
    """The frontend of a line that is in the file and that nobody asks for any more."""
    from hansa.net import Protocol, family_of, parse_address

    where, _, protocol = text.rpartition("/")
    address, _, port = where.rpartition(":")
    if address.startswith("node("):
        return FrontendKey(IPFamily(address[5:-1]), None, Protocol[protocol.upper()], int(port))
    found = parse_address(address.strip("[]"))
    return FrontendKey(family_of(found), found, Protocol[protocol.upper()], int(port))
