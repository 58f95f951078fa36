"""Reads the cases of tests/cases, and drives the real pipeline with them.

`all_cases()` gives `Case`s whose steps are plain values: the changes that a source would deliver, and what must hold
after them. `CaseNode` is one node's stages 1 to 3; a dataplane's tests feed a dataplane with what its `take` returns.
The notation is described in tests/cases/README.md. Anything in a file that is not understood is an error.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from hansa.api.change import Change, Delete, Malformed, Synced
from hansa.api.decode import decode_object, object_key
from hansa.api.objects import Kind, ObjectKey
from hansa.config import Config, make_config
from hansa.errors import MalformedObject
from hansa.net import Address, IPFamily, Packet, Protocol, address_port, family_of, parse_address
from hansa.pipeline import Pipeline
from hansa.rules.decide import decide, masqueraded, matching_rule
from hansa.rules.model import Forward, FrontendKey, FrontendKind, NotHandled, Rule, RuleChanges, Surroundings, Verdict

FOLDER = Path(__file__).parent / "cases"
STANDING_EXAMPLE = "standing-example.yaml"
SERVICE_LABEL = "kubernetes.io/service-name"

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Expected:
    """A verdict as a case writes it. What is None is not judged.

    endpoints: "ip:port" -> masqueraded, or None where that is not judged; only for `forward`.
    affinity: () = no affinity, (60,) = that many seconds.
    """

    verdict: str
    endpoints: Mapping[str, bool | None] = field(default_factory=dict)
    affinity: tuple[int, ...] | None = None
    because: str | None = None


@dataclass(frozen=True, slots=True)
class PacketLine:
    text: str
    packet: Packet
    expected: Expected


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection. one_of: the endpoints that may be met; same_as: an earlier name; name: what to call it."""

    text: str
    packet: Packet
    name: str = ""
    one_of: frozenset[str] = frozenset()
    same_as: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    text: str
    seconds: int


@dataclass(frozen=True, slots=True)
class GoesOn:
    """The connection called `name` still reaches its endpoint."""

    text: str
    name: str


Connection = Connect | Wait | GoesOn


@dataclass(frozen=True, slots=True)
class Step:
    """Changes, and what must hold once they are in force. What is None is not judged. sync: see README.md."""

    about: str
    changes: tuple[Change, ...]
    host_addresses: frozenset[Address]
    sync: bool = True
    packets: tuple[PacketLine, ...] = ()
    frontends: frozenset[str] | None = None
    changed: frozenset[str] | None = None
    conflicts: frozenset[str] | None = None
    connections: tuple[Connection, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """One file. steps[0] is the situation at the start; it is () if the configuration must be refused."""

    name: str
    spec: str
    about: str
    quote: str
    config: Mapping[str, object]
    config_error: tuple[str, ...]
    steps: tuple[Step, ...]

    def make_config(self) -> Config:
        """Raises ConfigError if the settings are refused."""
        return make_config(self.config, node_name="n1")

    @property
    def has_connections(self) -> bool:
        return any(step.connections for step in self.steps)


# Reading


class CaseError(Exception):
    """A case file that cannot be understood."""


@cache
def all_cases() -> tuple[Case, ...]:
    return tuple(load_case(path) for path in sorted(FOLDER.glob("*.yaml")) if path.name != STANDING_EXAMPLE)


@cache
def standing_example() -> Tree:
    return _read_yaml(FOLDER / STANDING_EXAMPLE)


@cache
def symbols() -> Mapping[str, Address]:
    """Every name of the standing example that stands for an address."""
    example = standing_example()
    pods = {name: pod["address"] for name, pod in example["pods"].items()}
    return {name: parse_address(text) for name, text in {**pods, **example["addresses"]}.items()}


def load_case(path: Path) -> Case:
    try:
        return read_case(path.stem, _read_yaml(path))
    except (CaseError, KeyError, TypeError, ValueError) as error:
        raise CaseError(f"{path.name}: {error}") from error


_CASE_KEYS = frozenset({"about", "spec", "quote", "config", "expect_config_error", "steps"})
_GIVEN_KEYS = frozenset({"service", "endpoints", "slices", "objects", "node", "host_addresses"})
_EXPECTED_KEYS = frozenset({"packets", "frontends", "changed", "conflicts", "connections"})
_STEP_KEYS = frozenset({"about", "delete", "sync"})


def read_case(name: str, tree: Tree) -> Case:
    _check_keys(tree, _CASE_KEYS | _GIVEN_KEYS | _EXPECTED_KEYS)
    for key in ("about", "spec"):
        if not isinstance(tree.get(key), str):
            raise CaseError(f"`{key}` is missing")
    objects = _Objects()
    first = {key: value for key, value in tree.items() if key in _GIVEN_KEYS | _EXPECTED_KEYS}
    steps = [objects.step({"about": "at the start", **first}, start=True)]
    steps += [objects.step(step) for step in tree.get("steps", ())]
    config_error = tuple(tree.get("expect_config_error", ()))
    if not config_error and not any(_judges(step) for step in steps):
        raise CaseError("nothing is expected")
    return Case(
        name=name,
        spec=tree["spec"],
        about=tree["about"],
        quote=tree.get("quote", ""),
        config=merge(standing_example()["config"], tree.get("config", {})),
        config_error=config_error,
        steps=() if config_error else tuple(steps),
    )


def _judges(step: Step) -> bool:
    listed = (step.frontends, step.changed, step.conflicts)
    return bool(step.packets or step.connections) or any(one is not None for one in listed)


def merge(below: Any, above: Any) -> Any:
    """`above` over `below`: mappings key by key, anything else replaced. Shares nothing with either."""
    if isinstance(below, dict) and isinstance(above, dict):
        return {**copy.deepcopy(below), **{key: merge(below.get(key), value) for key, value in above.items()}}
    return copy.deepcopy(above)


def _read_yaml(path: Path) -> Tree:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise CaseError(f"{path.name} is no mapping")
    return tree


def _check_keys(tree: Tree, allowed: frozenset[str]) -> None:
    unknown = tree.keys() - allowed
    if unknown:
        raise CaseError(f"unknown key {', '.join(sorted(unknown))}")


class _Objects:
    """The manifests in force while the steps of a case are read."""

    def __init__(self) -> None:
        example = standing_example()
        self.service: Tree | None = copy.deepcopy(example["service"])
        self.node: Tree = copy.deepcopy(example["node"])
        self.slices: dict[str, Tree] = {}
        self.host_addresses: list[str] = example["host_addresses"]

    def step(self, tree: Tree, *, start: bool = False) -> Step:
        _check_keys(tree, _GIVEN_KEYS | _EXPECTED_KEYS | _STEP_KEYS)
        changes: list[Change] = []
        if start or "service" in tree:
            changes += self._service_changes(tree.get("service", {}))
        if start or "endpoints" in tree or "slices" in tree:
            changes += self._slice_changes(tree)
        if start or "node" in tree:
            self.node = merge(self.node, tree.get("node", {}))
            changes.append(_change(self.node))
        changes += [_change(manifest) for manifest in tree.get("objects", ())]
        changes += [Delete(_object_key(text)) for text in tree.get("delete", ())]
        if start:
            changes += [Synced(kind) for kind in Kind]
        self.host_addresses = tree.get("host_addresses", self.host_addresses)
        return Step(
            about=tree.get("about", ""),
            changes=tuple(changes),
            host_addresses=frozenset(parse_address(text) for text in self.host_addresses),
            sync=tree.get("sync", True),
            packets=tuple(line for text in tree.get("packets", ()) for line in read_packet_lines(text)),
            frontends=_frontends(tree, "frontends"),
            changed=_frontends(tree, "changed"),
            conflicts=_conflicts(tree),
            connections=tuple(read_connection(text) for text in tree.get("connections", ())),
        )

    def _service_changes(self, given: Any) -> Iterator[Change]:
        before = self.service
        if given == "absent":
            self.service = None
            if before is not None:
                yield Delete(_key_of(before))
            return
        self.service = merge(before if before is not None else standing_example()["service"], given)
        yield _change(self.service)

    def _slice_changes(self, tree: Tree) -> Iterator[Change]:
        if "slices" in tree:
            made = [_slice(given) for given in tree["slices"]]
        else:
            made = list(_slices_of(tree.get("endpoints", standing_example()["endpoints"])))
        after = {manifest["metadata"]["name"]: manifest for manifest in made}
        if len(after) != len(made):
            raise CaseError("two slices have one name")
        for name, manifest in after.items():
            if manifest != self.slices.get(name):
                yield _change(manifest)
        for name, manifest in self.slices.items():
            if name not in after:
                yield Delete(_key_of(manifest))
        self.slices = after


def _slices_of(endpoints: Iterable[Any]) -> Iterator[Tree]:
    """One slice per family that is met; the IPv4 one also if there is no endpoint at all."""
    groups: dict[str, list[Any]] = {}
    for given in endpoints:
        family = "IPv6" if ":" in _endpoint(given)["addresses"][0] else "IPv4"
        groups.setdefault(family, []).append(given)
    for family, group in (groups or {"IPv4": []}).items():
        yield _slice({"name": "web-a" if family == "IPv4" else "web-v6", "addressType": family, "endpoints": group})


def _slice(given: Tree) -> Tree:
    """A slice of a case over the example's slice; `name` and `service` are short for metadata."""
    rest = {key: value for key, value in given.items() if key not in ("name", "service", "endpoints")}
    made: Tree = merge(standing_example()["slice"], rest)
    if "name" in given:
        made["metadata"]["name"] = given["name"]
    if "service" in given:
        made["metadata"]["labels"] = {} if given["service"] is None else {SERVICE_LABEL: given["service"]}
    made["endpoints"] = [_endpoint(one) for one in given.get("endpoints", ())]
    return made


_ENDPOINT_KEYS = frozenset({"name", "address", "addresses", "conditions", "zones", "nodes", "node"})
_CONDITION = {"true": True, "false": False, "nil": None}


def _endpoint(given: Any) -> Tree:
    """An entry of a slice's endpoints, from its short form."""
    if isinstance(given, str):
        given = {"name": given} if given in standing_example()["pods"] else {"address": given}
    _check_keys(given, _ENDPOINT_KEYS)
    pod = standing_example()["pods"][given["name"]] if "name" in given else {}
    found = {**pod, **given}
    texts = found.get("conditions", "true/true/false").split("/")
    ready, serving, terminating = (_CONDITION[text] for text in texts)
    entry: Tree = {
        "addresses": found.get("addresses") or [found["address"]],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
    }
    if found.get("node") is not None:
        entry["nodeName"] = found["node"]
    hints = {
        kind: [{"name": name} for name in found[key]]
        for kind, key in (("forZones", "zones"), ("forNodes", "nodes"))
        if key in found
    }
    if hints:
        entry["hints"] = hints
    return entry


def _change(manifest: Tree) -> Change:
    """What a source would say of this manifest."""
    try:
        return decode_object(manifest)
    except MalformedObject as error:
        return Malformed(_key_of(manifest), error.faults)


def _key_of(manifest: Tree) -> ObjectKey:
    key = object_key(manifest)
    if key is None or not key.name:
        raise CaseError(f"cannot name {manifest}")
    return key


def _object_key(text: str) -> ObjectKey:
    kind, _, path = text.partition(" ")
    namespace, _, name = path.rpartition("/")
    return ObjectKey(Kind(kind), namespace, name)


# Lines

_WORD = r"[A-Za-z][A-Za-z0-9]*"
_TARGET = re.compile(r"(?P<address>\[[^\]]+\]|[^:/]+)(?::(?P<port>\d+))?/(?P<protocol>[a-z0-9]+)")
_SET = re.compile(r"\{(?P<members>[^}]+)\}(?: (?P<all>masq|no masq))?")
_MEMBER = re.compile(r"(?P<endpoint>\S+)(?: (?P<how>masq|no masq))?")
_LINE = re.compile(
    r"(?P<verdict>drop|reject|not handled|\{[^}]+\}(?: masq| no masq)?)"
    r"(?:, (?:(?P<no_affinity>no affinity)|affinity (?P<affinity>\d+) s))?"
    r"(?: \((?P<because>.+)\))?"
)
_CONNECT = re.compile(
    rf"(?:(?P<name>{_WORD}): )?(?P<path>.+ -> \S+) : (?:one of \{{(?P<set>[^}}]+)\}}|same as (?P<same>{_WORD}))"
)
_MASQUERADE = {"masq": True, "no masq": False}


def read_packet_lines(text: str) -> Iterator[PacketLine]:
    """One line of `packets`, as many packets as it has sources times destinations."""
    path, separator, wanted = text.rpartition(" : ")
    if not separator:
        raise CaseError(f"no verdict in {text!r}")
    expected = read_expected(wanted)
    for packet in read_packets(path):
        yield PacketLine(text, packet, expected)


def read_packets(path: str) -> Iterator[Packet]:
    sources, arrow, targets = path.partition(" -> ")
    if not arrow:
        raise CaseError(f"no arrow in {path!r}")
    for source_text in sources.split(","):
        source, _, interface = source_text.strip().partition(" via ")
        for target_text in targets.split(","):
            address, port, protocol = _target(target_text.strip())
            yield Packet(_resolve(source), address, protocol, port, interface or None)


def read_expected(text: str) -> Expected:
    found = _LINE.fullmatch(text)
    if found is None:
        raise CaseError(f"cannot read the verdict {text!r}")
    verdict, because = found["verdict"], found["because"]
    affinity = () if found["no_affinity"] else (int(found["affinity"]),) if found["affinity"] else None
    if not verdict.startswith("{"):
        return Expected(verdict, because=because, affinity=affinity)
    return Expected("forward", _endpoint_set(verdict), affinity, because)


def _endpoint_set(text: str) -> dict[str, bool | None]:
    found = _SET.fullmatch(text)
    if found is None:
        raise CaseError(f"cannot read the set {text!r}")
    endpoints: dict[str, bool | None] = {}
    for member_text in found["members"].split(","):
        member = _MEMBER.fullmatch(member_text.strip())
        if member is None or (member["how"] and found["all"]):
            raise CaseError(f"cannot read the endpoint {member_text!r}")
        how = member["how"] or found["all"]
        endpoints[_endpoint_text(member["endpoint"])] = None if how is None else _MASQUERADE[how]
    return endpoints


def _endpoint_text(text: str) -> str:
    """`L1` is its address and port 8080; anything else is an address with a port."""
    if text in standing_example()["pods"]:
        return address_port(symbols()[text], 8080)
    host, _, port = text.rpartition(":")
    return address_port(parse_address(host.strip("[]")), int(port))


def read_connection(text: str) -> Connection:
    if found := re.fullmatch(r"wait (\d+) s", text):
        return Wait(text, int(found[1]))
    if found := re.fullmatch(rf"({_WORD}) goes on", text):
        return GoesOn(text, found[1])
    found = _CONNECT.fullmatch(text)
    if found is None:
        raise CaseError(f"cannot read the connection {text!r}")
    (packet,) = read_packets(found["path"])
    one_of = frozenset(_endpoint_set("{" + found["set"] + "}")) if found["set"] else frozenset()
    return Connect(text, packet, found["name"] or "", one_of, found["same"] or "")


def _resolve(text: str) -> Address:
    known = symbols().get(text)
    return known if known is not None else parse_address(text.strip("[]"))


def _target(text: str) -> tuple[Address, int | None, Protocol]:
    found = _TARGET.fullmatch(text)
    if found is None:
        raise CaseError(f"cannot read the destination {text!r}")
    return (
        _resolve(found["address"]),
        int(found["port"]) if found["port"] else None,
        Protocol[found["protocol"].upper()],
    )


def _frontend(text: str) -> FrontendKey:
    node_port = re.fullmatch(r"(node6?):(\d+)/([a-z]+)", text)
    if node_port:
        family = IPFamily.IPV6 if node_port[1] == "node6" else IPFamily.IPV4
        return FrontendKey(family, None, Protocol[node_port[3].upper()], int(node_port[2]))
    address, port, protocol = _target(text)
    if port is None:
        raise CaseError(f"no port in {text!r}")
    return FrontendKey(family_of(address), address, protocol, port)


def _frontends(tree: Tree, key: str) -> frozenset[str] | None:
    """Frontends as `FrontendKey` prints them; None if the case does not list them."""
    given = tree.get(key)
    if given is None:
        return None
    return frozenset() if given == "nothing" else frozenset(str(_frontend(text)) for text in given)


def _conflicts(tree: Tree) -> frozenset[str] | None:
    given = tree.get("conflicts")
    if given is None:
        return None
    split = [text.partition(" : ") for text in given]
    return frozenset(f"{_frontend(frontend)} : {parties}" for frontend, _, parties in split)


# Running


class CaseNode:
    """The pipeline of one node, driven by steps as the engine drives it by a source's batches.

    `rules` is what its messages add up to, by frontend: what a dataplane knows. `changed`: where the last step changed
    that.
    """

    def __init__(self, config: Config) -> None:
        self.pipeline = Pipeline(config, frozenset())
        self.rules: dict[FrontendKey, Rule] = {}
        self.changed: frozenset[FrontendKey] = frozenset()

    def take(self, step: Step) -> RuleChanges | None:
        """Take a step's changes in. Returns the message for a dataplane, None if there is none."""
        self.pipeline.set_host_addresses(step.host_addresses)
        self.pipeline.apply(step.changes)
        message = self.pipeline.take() if step.sync and self.pipeline.pending else None
        failures = self.pipeline.take_failures()
        if failures:
            raise AssertionError(f"the pipeline failed at {failures}")
        before = self.rules
        if message is not None:
            merged = {**({} if message.complete else before), **message.rules}
            self.rules = {key: rule for key, rule in merged.items() if rule is not None}
        keys = before.keys() | self.rules.keys()
        self.changed = frozenset(key for key in keys if before.get(key) != self.rules.get(key))
        return message

    @property
    def surroundings(self) -> Surroundings:
        return self.pipeline.surroundings

    def get(self, key: FrontendKey) -> Rule | None:
        return self.rules.get(key)

    def is_cluster_ip(self, address: Address) -> bool:
        return any(key.address == address and rule.kind is FrontendKind.CLUSTER_IP for key, rule in self.rules.items())

    def decide(self, packet: Packet) -> Verdict:
        return decide(self, self.surroundings, packet)

    def affinity(self, packet: Packet) -> tuple[int, ...]:
        """The affinity timeout of the frontend that the packet aims at, () = none."""
        rule = matching_rule(self, self.surroundings, packet)
        return () if rule is None or rule.affinity_timeout_s is None else (rule.affinity_timeout_s,)


def describe(verdict: Verdict, packet: Packet, *, like: Expected, affinity: tuple[int, ...]) -> Expected:
    """A verdict in the terms of a case: only what `like` judges is filled in, so that equal means as expected."""
    because = None if like.because is None else verdict.because.value
    shown = None if like.affinity is None else affinity
    if not isinstance(verdict, Forward):
        word = "not handled" if isinstance(verdict, NotHandled) else type(verdict).__name__.lower()
        return Expected(word, affinity=shown, because=because)
    endpoints: dict[str, bool | None] = {}
    for endpoint in verdict.endpoints:
        judged = like.endpoints.get(str(endpoint), False) is not None
        endpoints[str(endpoint)] = masqueraded(verdict, packet, endpoint) if judged else None
    return Expected("forward", endpoints, shown, because)
