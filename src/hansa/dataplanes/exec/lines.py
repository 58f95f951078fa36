"""Rules as plain data, one JSON line for each message; and the name under which a command is given."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from hansa.errors import ConfigError, Fault
from hansa.rules.model import Action, Drop, Forward, FrontendKey, Reject, Rule, Surroundings

VERSION = 1
FULL, CHANGES = "exec:", "exec+changes:"


@dataclass(frozen=True, slots=True)
class ExecCommand:
    """changes: after the first line, only what is new."""

    words: tuple[str, ...]
    changes: bool = False


def is_exec(name: str) -> bool:
    return name.startswith((FULL, CHANGES))


def parse_name(name: str) -> ExecCommand:
    """`exec:COMMAND` or `exec+changes:COMMAND`; words as a shell would split them, without a shell. ConfigError."""
    changes = name.startswith(CHANGES)
    text = name.removeprefix(CHANGES if changes else FULL)
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(Fault("--dataplane", f"{text!r} is no command: {error}")) from None
    if not words:
        raise ConfigError(Fault("--dataplane", "names no command", "write exec:COMMAND"))
    return ExecCommand(words, changes)


def line(rules: Iterable[Rule], gone: Iterable[FrontendKey], surroundings: Surroundings, *, complete: bool) -> bytes:
    """One message. complete: `frontends` is everything; else it is what is new, and `gone` what is no more."""
    data: dict[str, Any] = {
        "version": VERSION,
        "complete": complete,
        "node": _node(surroundings),
        "frontends": [frontend(rule) for rule in rules],
    }
    if not complete:
        data["gone"] = [str(key) for key in gone]
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"


def _node(surroundings: Surroundings) -> Mapping[str, Any]:
    node = surroundings.node
    ports = {
        str(family): None if found is None else sorted(map(str, found))
        for family, found in surroundings.node_port_addresses.items()
    }
    return {
        "name": node.name,
        "zone": node.zone,
        "addresses": {str(family): str(address) for family, address in node.node_ips.items()},
        "pods": {str(family): str(prefix) for family, prefix in surroundings.pod_prefixes.items()},
        "nodePortAddresses": ports,
    }


def frontend(rule: Rule) -> Mapping[str, Any]:
    """A rule as data. address: None = the node's own, see `nodePortAddresses`; sourceRanges: None = everybody may."""
    return {
        "key": str(rule.key),
        "kind": rule.kind.value,
        "family": str(rule.key.family),
        "address": None if rule.key.address is None else str(rule.key.address),
        "protocol": str(rule.key.protocol),
        "port": rule.key.port,
        "service": str(rule.owner),
        "pod": _action(rule.pod),
        "node": _action(rule.node),
        "outside": _action(rule.outside),
        "sourceRanges": None if rule.source_ranges is None else [str(one) for one in rule.source_ranges],
        "affinitySeconds": rule.affinity_timeout_s,
        "healthCheckNodePort": rule.health_check_node_port or None,
    }


def _action(action: Action) -> Mapping[str, Any]:
    match action:
        case Forward(endpoints, masquerade, because):
            to = [{"address": str(one.address), "port": one.port, "local": one.local} for one in endpoints]
            return {"do": "forward", "to": to, "masquerade": masquerade, "because": because.value}
        case Drop(because):
            return {"do": "drop", "because": because.value}
        case Reject(because):
            return {"do": "reject", "because": because.value}
        case _:
            assert_never(action)
