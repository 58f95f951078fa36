"""hansa: a Kubernetes service proxy for Windows and Linux nodes.

    sources/  ->  services/  ->  rules/  ->  dataplanes/<one>/  ->  host
    (change)      (view)         (verdict)   render diff plan apply   (HNS, nftables, ...)

What `__all__` lists is public: documented, tested, in the changelog when it changes. Names are imported when they
are first used, so that importing hansa costs nothing.

>>> import hansa
>>> config = hansa.make_config({"clusterCIDR": "10.1.0.0/16"}, node_name="n1")
>>> pipeline = hansa.Pipeline(config, frozenset())
>>> pipeline.ready
False
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hansa.config import Config, make_config
    from hansa.dataplanes.base import Dataplane, SyncReport
    from hansa.dataplanes.windows.apply import WindowsDataplane
    from hansa.engine import Engine
    from hansa.errors import HansaError
    from hansa.hns.client import HnsClient
    from hansa.hns.emulator.service import Emulator
    from hansa.pipeline import Pipeline
    from hansa.rules.decide import decide
    from hansa.sources.files import FileSource, read_once
    from hansa.sources.kubernetes.client import KubernetesSource

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Dataplane",
    "Emulator",
    "Engine",
    "FileSource",
    "HansaError",
    "HnsClient",
    "KubernetesSource",
    "Pipeline",
    "SyncReport",
    "WindowsDataplane",
    "decide",
    "make_config",
    "read_once",
]

_HOMES = {
    "Config": "config",
    "Dataplane": "dataplanes.base",
    "Emulator": "hns.emulator.service",
    "Engine": "engine",
    "FileSource": "sources.files",
    "HansaError": "errors",
    "HnsClient": "hns.client",
    "KubernetesSource": "sources.kubernetes.client",
    "Pipeline": "pipeline",
    "SyncReport": "dataplanes.base",
    "WindowsDataplane": "dataplanes.windows.apply",
    "decide": "rules.decide",
    "make_config": "config",
    "read_once": "sources.files",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hansa' has no attribute {name!r}")
    return getattr(import_module(f"hansa.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
