"""Where a command's objects come from, and what keeps two commands from working on one host."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hansa.cli import options
from hansa.config import Config
from hansa.errors import ConfigError, Fault

if TYPE_CHECKING:
    from hansa.api.objects import Node
    from hansa.engine import Engine
    from hansa.net import Address
    from hansa.pipeline import Pipeline
    from hansa.rules.model import RuleChanges
    from hansa.sources import Source
    from hansa.sources.kubernetes.client import ClientSettings
    from hansa.sources.kubernetes.kubeconfig import Connection


KPNG_FILE = "kpng-file:"


def is_kubernetes(source: str) -> bool:
    return source == options.KUBERNETES


def is_brain(source: str) -> bool:
    from hansa.sources.kpng.target import is_target

    return is_target(source)


def is_manifests(source: str) -> bool:
    """Whether the source can be read once before it is followed."""
    return not (is_kubernetes(source) or is_brain(source) or source.startswith(KPNG_FILE))


def need_grpc(flag: str) -> None:
    """Raise ConfigError if the optional packages for brains are not there."""
    missing = [name for name in ("grpc", "grpc_health", "grpc_reflection", "google.protobuf") if not _is_there(name)]
    if missing:
        raise ConfigError(Fault(flag, f"needs gRPC: {', '.join(missing)} is missing", "pip install 'hansa[kpng]'"))


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def open_source(
    text: str, config: Config, connect: Callable[[], Connection], client: ClientSettings | None = None
) -> Source:
    """The source that `--source` names. connect: asked only if that is an API server. Raises ConfigError."""
    if is_brain(text):
        need_grpc("--source")
        from hansa.sources.kpng.client import KpngSource
        from hansa.sources.kpng.target import parse_target

        return KpngSource(parse_target(text), config)
    if text.startswith(KPNG_FILE):
        need_grpc("--source")
        from hansa.sources.kpng.file_source import KpngFileSource

        return KpngFileSource(text.removeprefix(KPNG_FILE))
    if not is_kubernetes(text):
        from hansa.sources.files import FileSource

        return FileSource(text, config)
    from hansa.sources.kubernetes.client import KubernetesSource

    connection = connect()
    for warning in connection.warnings:
        logging.getLogger("hansa.config").warning("API connection: %s", warning)
    return KubernetesSource(connection, config, client)


def attend(engine: Engine, source: Source) -> None:
    """If the source is a brain, let it hear what becomes of what it says. Before the engine runs."""
    if type(source).__module__ == "hansa.sources.kpng.client":
        from hansa.brain import agent
        from hansa.sources.kpng.client import KpngSource

        assert isinstance(source, KpngSource)
        agent.attend(engine, source)


def connection(kubeconfig: str, master: str) -> Connection:
    """How people reach their API server. Raises ConfigError."""
    from hansa.sources.kubernetes.client import load_connection

    return load_connection(kubeconfig or os.environ.get("KUBECONFIG", ""), master, os.environ)


def cluster_nodes(connection: Connection) -> tuple[Node, ...]:
    """All Nodes, of which a source only says this one's; an emulated overlay needs the other nodes' subnets."""
    from hansa.sources.kubernetes.client import read_nodes

    return asyncio.run(read_nodes(connection))


def nodes_ahead(source: str, connect: Callable[[], Connection], *, fresh: bool) -> Sequence[Node]:
    """The Nodes of a source that is going to be followed, () = they are not known yet, or not needed.

    fresh: an emulated node is to be laid out by them; a real one must start while the API is away. Raises ConfigError.
    """
    if is_manifests(source):
        return options.nodes(read_once(source).changes)
    return cluster_nodes(connect()) if fresh and is_kubernetes(source) else ()


def read_once(text: str) -> options.Input:
    """The objects of a manifest file or folder; what cannot be read is noted, and the rest goes on."""
    from hansa.sources import files

    faults: list[Fault] = []
    changes = files.read_once(text, on_fault=faults.append)
    return options.Input(changes, tuple(faults))


def rules_of(found: options.Input, config: Config, addresses: frozenset[Address]) -> tuple[Pipeline, RuleChanges]:
    """What follows from everything that a source holds. addresses: of the machine that the rules are for."""
    from hansa.pipeline import Pipeline

    pipeline = Pipeline(config, addresses)
    pipeline.apply(found.changes)
    message = pipeline.take()
    assert message is not None, "a source that was read to its end has said Synced for every kind"
    return pipeline, message


def warn_of_node(engine: Engine, config: Config, dataplane: str) -> None:
    """Log once what is probably not meant, as soon as the Node tells which families this node has."""
    from hansa.kubeproxy.settle import warnings_on_node
    from hansa.net import family_of

    has_looked = False

    def look(*_: object) -> None:
        nonlocal has_looked
        node = engine.state.node
        addresses = (*config.bind_addresses, *(node.addresses if node is not None else ()))
        if addresses and not has_looked:
            has_looked = True
            for text in warnings_on_node(config, {family_of(address) for address in addresses}, dataplane):
                logging.getLogger("hansa.config").warning("%s", text)

    engine.on_sync(look)


def hold_lock(keep: Callable[[Any], Any], lock: Path | None, purpose: str, *, always: bool) -> None:
    """Until `keep` ends what it is given. An emulated HNS is somebody's own: there only a lock asked for counts."""
    from hansa.lock import HostLock, default_path

    path = lock or (default_path() if always else None)
    if path is not None:
        keep(HostLock(path, purpose))
