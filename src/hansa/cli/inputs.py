"""Where a command's objects come from, and what keeps two commands from working on one host."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hansa.cli import options
from hansa.config import Config
from hansa.errors import Fault

if TYPE_CHECKING:
    from hansa.api.objects import Node
    from hansa.sources import Source
    from hansa.sources.kubernetes.client import ClientSettings
    from hansa.sources.kubernetes.kubeconfig import Connection


def is_kubernetes(source: str) -> bool:
    return source == options.KUBERNETES


def open_source(
    text: str, config: Config, connect: Callable[[], Connection], client: ClientSettings | None = None
) -> Source:
    """The source that `--source` names. connect: asked only if that is an API server. Raises ConfigError."""
    if not is_kubernetes(text):
        from hansa.sources.files import FileSource

        return FileSource(text, config)
    from hansa.sources.kubernetes.client import KubernetesSource

    connection = connect()
    for warning in connection.warnings:
        logging.getLogger("hansa.config").warning("API connection: %s", warning)
    return KubernetesSource(connection, config, client)


def connection(kubeconfig: str, master: str) -> Connection:
    """How people reach their API server. Raises ConfigError."""
    from hansa.sources.kubernetes.client import load_connection

    return load_connection(kubeconfig or os.environ.get("KUBECONFIG", ""), master, os.environ)


def cluster_nodes(connection: Connection) -> tuple[Node, ...]:
    """All Nodes, of which a source only says this one's; an emulated overlay needs the other nodes' subnets."""
    from hansa.sources.kubernetes.client import read_nodes

    return asyncio.run(read_nodes(connection))


def read_once(text: str) -> options.Input:
    """The objects of a manifest file or folder; what cannot be read is noted, and the rest goes on."""
    from hansa.sources import files

    faults: list[Fault] = []
    changes = files.read_once(text, on_fault=faults.append)
    return options.Input(changes, tuple(faults))


def hold_lock(keep: Callable[[Any], Any], lock: Path | None, purpose: str, *, always: bool) -> None:
    """Until `keep` ends what it is given. An emulated HNS is somebody's own: there only a lock asked for counts."""
    from hansa.lock import HostLock, default_path

    path = lock or (default_path() if always else None)
    if path is not None:
        keep(HostLock(path, purpose))
