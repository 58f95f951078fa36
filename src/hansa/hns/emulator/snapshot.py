"""An emulated node as JSON text and back: what the CLI keeps in a file between two commands."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from hansa.errors import ConfigError, Fault
from hansa.hns.api import Guid, HnsKind
from hansa.hns.emulator.builds import Build, Machine, Spelling
from hansa.hns.emulator.state import LbFrontend, Listener, State
from hansa.hns.schema import MalformedHnsObject, decode, kind_of, to_document
from hansa.net import Address, IPFamily, parse_address

FORMAT = 1  # of the text; raised when an old file could be misread


@dataclass(frozen=True, slots=True)
class Settings:
    """All of an emulator but its objects. now: seconds on its clock."""

    build: Build
    machine: Machine
    spelling: Spelling
    seed: int
    last_guid: int
    lb_deletes: int
    now: float


class _Frontend(msgspec.Struct, frozen=True):
    family: IPFamily
    address: str | None
    protocol: int
    port: int


class _Listener(msgspec.Struct, frozen=True):
    protocol: int
    port: int
    address: str | None


class Snapshot(msgspec.Struct, frozen=True):
    """The text's own form. Objects are HCN documents."""

    format: int
    settings: Settings
    networks: list[msgspec.Raw]
    endpoints: list[msgspec.Raw]
    load_balancers: list[msgspec.Raw]
    listeners: list[_Listener]
    leaked: list[_Frontend]
    excluded_ports: list[tuple[int, int]]
    port_blocks: dict[Guid, int]
    broken_ports: list[Guid]
    created_at: dict[Guid, float]


def write(state: State, settings: Settings) -> str:
    """Equal states give equal texts."""
    documents: dict[HnsKind, list[msgspec.Raw]] = {kind: [] for kind in HnsKind}
    for value in state.everything():
        documents[kind_of(value)].append(msgspec.Raw(msgspec.json.encode(to_document(value))))
    kept = Snapshot(
        format=FORMAT,
        settings=settings,
        networks=documents[HnsKind.NETWORK],
        endpoints=documents[HnsKind.ENDPOINT],
        load_balancers=documents[HnsKind.LOAD_BALANCER],
        listeners=sorted((_Listener(*each[:2], _text(each.address)) for each in state.listeners), key=repr),
        leaked=sorted((_Frontend(each.family, _text(each.address), *each[2:]) for each in state.leaked), key=repr),
        excluded_ports=state.pool.excluded,
        port_blocks=state.blocks,
        broken_ports=sorted(state.broken_ports),
        created_at=state.created_at,
    )
    return msgspec.json.format(msgspec.json.encode(kept)).decode()


def read(text: str) -> Snapshot:
    """Raises ConfigError if the text is no snapshot of this format."""
    try:
        snapshot = msgspec.json.decode(text, type=Snapshot)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise _not_a_snapshot(str(error)) from None
    if snapshot.format != FORMAT:
        raise _not_a_snapshot(f"format {snapshot.format}, this version of hansa reads {FORMAT}")
    return snapshot


def fill(state: State, snapshot: Snapshot) -> None:
    """Put all of it into an empty state. Raises ConfigError."""
    try:
        for kind, documents in (
            (HnsKind.NETWORK, snapshot.networks),
            (HnsKind.ENDPOINT, snapshot.endpoints),
            (HnsKind.LOAD_BALANCER, snapshot.load_balancers),
        ):
            for document in documents:
                state.put(decode(kind, bytes(document)))
        for each in snapshot.listeners:
            state.listeners.add(Listener(each.protocol, each.port, _address(each.address)))
        for one in snapshot.leaked:
            state.leaked.add(LbFrontend(one.family, _address(one.address), one.protocol, one.port))
    except (MalformedHnsObject, ValueError) as error:
        raise _not_a_snapshot(str(error)) from None
    for first, count in snapshot.excluded_ports:
        state.pool.exclude(first, count)
    for guid, start in snapshot.port_blocks.items():
        state.pool.take_at(start)
        state.blocks[guid] = start
    state.broken_ports.update(snapshot.broken_ports)
    state.created_at.update(snapshot.created_at)


def _not_a_snapshot(text: str) -> ConfigError:
    return ConfigError(Fault("emulated node", text, "make a new one, or use the version of hansa that wrote it"))


def _text(address: object) -> str | None:
    return None if address is None else str(address)


def _address(text: str | None) -> Address | None:
    return None if text is None else parse_address(text)
