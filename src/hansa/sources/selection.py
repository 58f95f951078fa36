"""Which objects this proxy watches: one choice, as a query for the API server and as a test on a manifest.

Evidence: service-semantics section 1, S1, S4, S5; operations.md section 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from msgspec import UNSET, Struct, UnsetType, field

from hansa.api.objects import Kind
from hansa.config import Config

PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
NODES_PATH = "/api/v1/nodes"


@dataclass(frozen=True, slots=True)
class Selection:
    """What to ask the API server for. Selectors are in its own syntax; "" means everything."""

    kind: Kind
    path: str
    label_selector: str = ""
    field_selector: str = ""


class HeaderLabels(Struct, gc=False):
    proxy_name: str | UnsetType | None = field(default=UNSET, name=PROXY_NAME_LABEL)
    headless: str | UnsetType | None = field(default=UNSET, name=HEADLESS_LABEL)


class HeaderMetadata(Struct, gc=False):
    name: str | None = None
    namespace: str | None = None
    labels: HeaderLabels | None = None


class HeaderSpec(Struct, gc=False):
    clusterIP: str | None = None


class Header(Struct, gc=False):
    """The fields of any object by which it is named and selected."""

    apiVersion: str | None = None
    kind: str | None = None
    metadata: HeaderMetadata | None = None
    spec: HeaderSpec | None = None


def selection(kind: Kind, config: Config) -> Selection:
    """What the API server is asked for, so that objects of no interest never travel.

    A proxy asks for its own Node; who has no node, a brain, asks for all.
    """
    match kind:
        case Kind.SERVICE:
            mine = f"!{PROXY_NAME_LABEL}" if config.proxy_name is None else f"{PROXY_NAME_LABEL}={config.proxy_name}"
            return Selection(kind, "/api/v1/services", mine, "spec.clusterIP!=None")
        case Kind.ENDPOINT_SLICE:
            return Selection(kind, "/apis/discovery.k8s.io/v1/endpointslices", f"!{HEADLESS_LABEL}")
        case Kind.NODE:
            return Selection(
                kind, NODES_PATH, field_selector=f"metadata.name={config.node_name}" if config.node_name else ""
            )
        case Kind.SERVICE_CIDR:
            return Selection(kind, "/apis/networking.k8s.io/v1/servicecidrs")
        case _:
            assert_never(kind)


def is_selected(kind: Kind, header: Header, config: Config) -> bool:
    """Whether the API server would send this object to this proxy; for sources that have no server to ask."""
    metadata = header.metadata or HeaderMetadata()
    labels = metadata.labels or HeaderLabels()
    match kind:
        case Kind.SERVICE:
            given = None if isinstance(labels.proxy_name, UnsetType) else labels.proxy_name or ""
            return given == config.proxy_name and (header.spec or HeaderSpec()).clusterIP != "None"
        case Kind.ENDPOINT_SLICE:
            return isinstance(labels.headless, UnsetType)
        case Kind.NODE:
            return not config.node_name or metadata.name == config.node_name
        case Kind.SERVICE_CIDR:
            return True
        case _:
            assert_never(kind)
