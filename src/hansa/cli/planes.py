"""Which dataplane a command works on, and all that hangs on that choice: the one place where dataplanes are made.

A `Plane` is a node as a command sees it: settings with what only the host can add, a dataplane, what it would hold.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from hansa.api.objects import Node
from hansa.cli import options, outside
from hansa.config import Config
from hansa.dataplanes.base import Change, Dataplane, Outcome, Result, Shortfall
from hansa.errors import ConfigError, Fault
from hansa.net import Address, IPFamily
from hansa.rules.model import RuleChanges
from hansa.sources import Source
from hansa.sources.host import read_host

if TYPE_CHECKING:
    from rich.console import Console

    from hansa.dataplanes.nftables.trace import SeenPacket
    from hansa.dataplanes.windows.cleanup import Kept
    from hansa.explain.hns_trace import OnNode
    from hansa.explain.trace import Explanation
    from hansa.pipeline import Pipeline

WINDOWS, NFTABLES = "windows", "nftables"
DATAPLANES = (WINDOWS, NFTABLES)


@dataclass(frozen=True, slots=True)
class WindowsOptions:
    """hns: "" = this machine's. network, build: of a fresh emulated node."""

    hns: str = ""
    network: str = "overlay"
    build: str = ""

    @property
    def native(self) -> bool:
        return self.hns in ("", "native")

    @property
    def fresh(self) -> bool:
        """Whether it is an emulated node that is made for this command, and holds nothing yet."""
        return self.hns == "emulator"


@dataclass(frozen=True, slots=True)
class Rendering:
    """What a kernel would have to hold. documents: as data. text: in the host's own words, None = it has none."""

    documents: dict[str, Any]
    table: Callable[[Console], None]
    text: str | None
    shortfalls: tuple[Shortfall, ...]


class Plane(Protocol):
    """A node that a command works on; a context that closes the way to it.

    config: the settings with what the host adds. host: its HNS, None = it has none. addresses: the machine's;
    rendered_addresses: those that may be used where no host is asked.
    read_addresses: how the engine is to ask for them, None = this machine's. families: those that it can serve.
    """

    config: Config

    @property
    def host(self) -> options.Host | None: ...

    @property
    def addresses(self) -> frozenset[Address]: ...

    @property
    def rendered_addresses(self) -> frozenset[Address]: ...

    @property
    def read_addresses(self) -> Callable[[], frozenset[Address]] | None: ...

    @property
    def families(self) -> frozenset[IPFamily]: ...

    def attend(self, objects: Source) -> Source:
        """The source, with what has to happen beside it on this node."""

    def dataplane(self) -> Dataplane:
        """Ready for its first sync. The host may be prepared for that; raises DataplaneError if it cannot be."""

    def plan(self, message: RuleChanges) -> Sequence[Change]:
        """What a sync would do now; writes nothing."""

    def render(self, message: RuleChanges) -> Rendering:
        """What the host would have to hold; asks no host."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def choose(name: str, hns: str = "") -> str:
    """The name of the dataplane: as given, else by what `--hns` implies, else what this system has.

    Raises ConfigError for an unknown one, and for an HNS where there is none.
    """
    if not name:
        return WINDOWS if hns or sys.platform == "win32" else NFTABLES
    if name not in DATAPLANES and not outside.is_known(name):
        known = ", ".join((*DATAPLANES, *outside.names(), "exec:COMMAND"))
        raise ConfigError(Fault("--dataplane", f"{name!r} is not available", f"this version has: {known}"))
    if hns and name != WINDOWS:
        raise ConfigError(Fault("--hns", f"the dataplane {name} has no HNS", "leave one of the two out"))
    return name


def trace_on_windows(packet: str, plane: Plane, pipeline: Pipeline, message: RuleChanges, *, fresh: bool) -> OnNode:
    """What an HNS does with a packet. fresh: nothing was programmed yet, so hansa does that first."""
    from hansa.explain.hns_trace import explain_on_node
    from hansa.explain.trace import read_packet
    from hansa.hns.client import HnsClient
    from hansa.hns.dumps import likely_build
    from hansa.hns.emulator.vswitch import Switch, switch_of

    host = plane.host
    assert host is not None, "a Windows node has an HNS"
    if fresh:
        plane.dataplane().sync(message, now=0.0, audit=True)
    if host.emulator is not None:
        switch = switch_of(host.emulator)
    else:
        held = options.read_hns(host.api)
        build = likely_build(HnsClient(host.api).version(), options.named_build(""))
        endpoints = {one.guid: one for one in held.endpoints}
        switch = Switch(build, tuple(sorted(host.addresses, key=str)), held.networks, endpoints, held.load_balancers)
    situation = options.windows_dataplane(host, plane.config).survey(message, now=0.0)
    return explain_on_node(read_packet(packet, pipeline), pipeline, switch, situation.wanted.shortfalls)


def check_cleanable(name: str) -> None:
    """Raise ConfigError for a dataplane that leaves nothing of its own that hansa could find again."""
    if name not in DATAPLANES:
        raise ConfigError(Fault("--dataplane", f"{name} keeps nothing that could be cleaned up", "stop `hansa run`"))


def follow(found: Explanation, *, seconds: float, count: int) -> tuple[SeenPacket, ...]:
    """What the kernel tells of real packets like the explained one. Raises DataplaneError."""
    from hansa.dataplanes.nftables import live

    return live.follow(found.packet, found.ruleset, seconds=seconds, count=count)


def open_plane(name: str, config: Config, known: Sequence[Node], windows: WindowsOptions) -> Plane:
    """The node for a dataplane's name. known: the Nodes of the input. Raises ConfigError, DataplaneError."""
    if name == NFTABLES:
        return NftablesPlane(config)
    if name != WINDOWS:
        return OutsidePlane(name, config)
    host = options.open_host(windows.hns or "native", config, known, network=windows.network, build=windows.build)
    return WindowsPlane(host, options.with_source_vip(config, host), real=windows.native)


class WindowsPlane:
    """A Windows node behind its HNS, real or emulated."""

    def __init__(self, host: options.Host, config: Config, *, real: bool) -> None:
        self._host = host
        self.config = config
        self._real = real

    @property
    def host(self) -> options.Host:
        return self._host

    @property
    def addresses(self) -> frozenset[Address]:
        return self._host.addresses

    @property
    def rendered_addresses(self) -> frozenset[Address]:
        return self._host.addresses

    @property
    def read_addresses(self) -> Callable[[], frozenset[Address]] | None:
        """An emulated machine has the emulator's addresses; a real one is asked each time."""
        return None if self._real else lambda: self._host.addresses

    @property
    def families(self) -> frozenset[IPFamily]:
        """Which of them a network has, HNS tells with the network, and what it lacks is a shortfall."""
        return frozenset(IPFamily)

    def attend(self, objects: Source) -> Source:
        return options.with_kubelet(objects, self._host, self.config)

    def dataplane(self) -> Dataplane:
        return options.windows_dataplane(self._host, self.config)

    def plan(self, message: RuleChanges) -> Sequence[Change]:
        return self.dataplane().plan(message, now=time.monotonic())

    def render(self, message: RuleChanges) -> Rendering:
        from hansa.dataplanes.windows.render import as_documents
        from hansa.explain import text

        found = options.windows_dataplane(self._host, self.config).render(message, now=time.monotonic())
        documents = {"kind": "WindowsObjects", "node": self.config.node_name, **as_documents(found)}
        return Rendering(documents, lambda console: console.print(text.rendered_table(found)), None, found.shortfalls)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._host.close()


class _PlaneOfThisMachine:
    """What nodes have in common whose addresses are this machine's and that have no HNS. Nothing is opened ahead."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def host(self) -> options.Host | None:
        return None

    @property
    def addresses(self) -> frozenset[Address]:
        return read_host().addresses

    @property
    def rendered_addresses(self) -> frozenset[Address]:
        return frozenset()

    @property
    def read_addresses(self) -> Callable[[], frozenset[Address]] | None:
        return None

    def attend(self, objects: Source) -> Source:
        return objects

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """The engine closes what it was given, and `plan` its own."""


class NftablesPlane(_PlaneOfThisMachine):
    """The network namespace that this process is in."""

    @property
    def families(self) -> frozenset[IPFamily]:
        from hansa.dataplanes.nftables.host import node_families

        return frozenset(node_families())

    def dataplane(self) -> Dataplane:
        from hansa.dataplanes.nftables.host import open_dataplane

        made, prepared = open_dataplane(self.config)
        for note in prepared.notes:
            logging.getLogger("hansa.nftables").warning("host: %s", note)
        return made

    def plan(self, message: RuleChanges) -> Sequence[Change]:
        from hansa.dataplanes.nftables.host import open_for_reading

        reader = open_for_reading(self.config)
        try:
            return reader.plan(message, now=time.monotonic())
        finally:
            reader.close()

    def render(self, message: RuleChanges) -> Rendering:
        from hansa.dataplanes.nftables.objects import write
        from hansa.dataplanes.nftables.render import render
        from hansa.explain import nftables

        rules = [rule for rule in message.rules.values() if rule is not None]
        rendered = [
            render([rule for rule in rules if rule.key.family is family], message.surroundings, family)
            for family in IPFamily
        ]
        tables = [table for table, _ in rendered]
        documents = {
            "kind": "NftablesTables",
            "node": self.config.node_name,
            "tables": [nftables.table_data(table) for table in tables],
        }
        return Rendering(
            documents,
            lambda console: console.print(nftables.frontend_table(tables)),
            "\n".join(write(table) for table in tables),
            tuple(shortfall for _, shortfalls in rendered for shortfall in shortfalls),
        )


class OutsidePlane(_PlaneOfThisMachine):
    """A node with a dataplane that is not part of the commands, as `hansa.cli.outside` finds it."""

    def __init__(self, name: str, config: Config) -> None:
        super().__init__(config)
        self._name = name

    @property
    def families(self) -> frozenset[IPFamily]:
        """What this machine has of them, the dataplane finds out."""
        return frozenset(IPFamily)

    def dataplane(self) -> Dataplane:
        return outside.open_dataplane(self._name, self.config)

    def plan(self, message: RuleChanges) -> Sequence[Change]:
        plane = self.dataplane()
        try:
            return list(plane.plan(message, now=time.monotonic()))
        finally:
            plane.close()

    def render(self, message: RuleChanges) -> Rendering:
        """The rules, as a program that reads standard input is told them; what becomes of them only the host knows."""
        from hansa.dataplanes.exec.lines import line

        rules = [rule for rule in message.rules.values() if rule is not None]
        told: dict[str, Any] = json.loads(line(rules, (), message.surroundings, complete=True))

        def table(console: Console) -> None:
            for rule in rules:
                console.print(f"{rule.key}  {rule.owner}", markup=False)

        return Rendering(told, table, None, ())


# -- leaving ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was deleted, or would be. kept: what was looked at and stays, None = only hansa's own was looked at.

    saved: the file of an emulated node that has been written back, None = there is none.
    """

    changes: tuple[Change, ...]
    failed: tuple[str, ...]
    kept: tuple[Kept, ...] | None = None
    saved: Path | None = None


def _cleaned(results: Sequence[Result], kept: tuple[Kept, ...] | None) -> Cleaned:
    failed = tuple(f"{each.change.kind} {each.change.key}: {each.error}" for each in results if each.error)
    return Cleaned(tuple(each.change for each in results if each.outcome is Outcome.DONE), failed, kept)


def clean_windows(host: options.Host, config: Config, *, dry_run: bool) -> Cleaned:
    """Delete what is hansa's in an HNS, or say what that would be."""
    from hansa.dataplanes.windows import cleanup

    settled = cleanup.cleanup_config(config)
    planned = cleanup.preview(options.windows_dataplane(host, settled), settled, now=time.monotonic())
    if dry_run:
        return Cleaned(planned.changes, (), planned.kept)
    results = cleanup.clean(options.windows_dataplane(host, settled), settled, now=time.monotonic())
    return replace(_cleaned(results, planned.kept), saved=host.save())


def clean_nftables(*, dry_run: bool) -> Cleaned:
    """Delete hansa's tables, or say which there are."""
    from hansa.dataplanes.nftables import host

    if dry_run:
        return Cleaned(host.what_to_clean_up(), ())
    return _cleaned(host.clean_up(), None)


def clean_kube_proxy() -> Cleaned:
    """Delete what kube-proxy has left on this Linux node."""
    from hansa.dataplanes.nftables import host

    return _cleaned(host.clean_up_kube_proxy(), None)


def set_up_linux(config: Config) -> list[str]:
    """Set in the kernel what the configuration asks for, and nothing else; what the operator should know."""
    from hansa.dataplanes.nftables import host

    return host.set_up(config, host.node_families())
