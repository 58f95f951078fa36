"""Dataplanes that are not part of the commands: by entry point, or as a program that reads standard input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from hansa.config import Config
from hansa.dataplanes.base import Dataplane
from hansa.dataplanes.exec.lines import is_exec, parse_name
from hansa.errors import ConfigError, Fault

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
