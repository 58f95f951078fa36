"""Dataplanes that are not part of the commands: by entry point, or as a program that reads standard input."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Self, cast

from hansa.cli import options
from hansa.config import Config
from hansa.dataplanes.base import Change, Dataplane
from hansa.dataplanes.exec.lines import is_exec, line, parse_name
from hansa.errors import ConfigError, Fault
from hansa.net import Address, IPFamily
from hansa.rules.model import RuleChanges
from hansa.sources import Source
from hansa.sources.host import read_host

if TYPE_CHECKING:
    from rich.console import Console

    from hansa.cli.planes import Rendering

GROUP = "hansa.dataplanes"


def names() -> tuple[str, ...]:
    """The dataplanes that are installed, by the names of their entry points."""
    return tuple(sorted({one.name for one in entry_points(group=GROUP)}))


def is_known(name: str) -> bool:
    """Raises ConfigError for a command that is none, so that this is said before anything else happens."""
    return (is_exec(name) and bool(parse_name(name))) or name in names()


def open_dataplane(name: str, config: Config) -> Dataplane:
    """Raises ConfigError if the entry point cannot be loaded; DataplaneError as it sees fit."""
    if is_exec(name):
        from hansa.dataplanes.exec.apply import ExecDataplane

        return ExecDataplane(parse_name(name))
    found: Sequence[EntryPoint] = [one for one in entry_points(group=GROUP) if one.name == name]
    if len({one.value for one in found}) != 1:
        where = ", ".join(sorted({one.value for one in found})) or "nothing"
        raise ConfigError(Fault("--dataplane", f"{name!r} is offered by {where}", "keep one of them installed"))
    try:
        factory = cast("Callable[[Config], Dataplane]", found[0].load())
    except (ImportError, AttributeError) as error:
        raise ConfigError(Fault("--dataplane", f"{name!r} ({found[0].value}) cannot be loaded: {error}")) from error
    return factory(config)


class OutsidePlane:
    """A node with such a dataplane, as `hansa.cli.planes` sees it."""

    def __init__(self, name: str, config: Config) -> None:
        self._name = name
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

    @property
    def families(self) -> frozenset[IPFamily]:
        """What this machine has of them, the dataplane finds out."""
        return frozenset(IPFamily)

    def attend(self, objects: Source) -> Source:
        return objects

    def dataplane(self) -> Dataplane:
        return open_dataplane(self._name, self.config)

    def plan(self, message: RuleChanges) -> Sequence[Change]:
        plane = self.dataplane()
        try:
            return list(plane.plan(message, now=time.monotonic()))
        finally:
            plane.close()

    def render(self, message: RuleChanges) -> Rendering:
        """The rules, as a program that reads standard input is told them; what becomes of them only the host knows."""
        from hansa.cli.planes import Rendering

        rules = [rule for rule in message.rules.values() if rule is not None]
        told: dict[str, Any] = json.loads(line(rules, (), message.surroundings, complete=True))

        def table(console: Console) -> None:
            for rule in rules:
                console.print(f"{rule.key}  {rule.owner}", markup=False)

        return Rendering(told, table, None, ())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """The engine closes what it was given, and `plan` its own."""
