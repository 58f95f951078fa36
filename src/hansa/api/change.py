"""The one currency in which all sources pay: Upsert, Delete, Malformed, Synced."""

from __future__ import annotations

from dataclasses import dataclass

from hansa.api.objects import ApiObject, Kind, ObjectKey
from hansa.errors import Fault


@dataclass(frozen=True, slots=True)
class Upsert:
    """The object exists and looks like this. `skipped` names entries that were left out (a bad external IP, ...)."""

    object: ApiObject
    skipped: tuple[Fault, ...] = ()

    @property
    def key(self) -> ObjectKey:
        return self.object.object_key


@dataclass(frozen=True, slots=True)
class Delete:
    """The object is gone, or no longer matches what is watched."""

    key: ObjectKey


@dataclass(frozen=True, slots=True)
class Malformed:
    """The object exists but cannot be used; its last good form stays in force."""

    key: ObjectKey
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Synced:
    """Every object of this kind that existed at the start has been delivered once. Repeats are harmless."""

    kind: Kind


Change = Upsert | Delete | Malformed | Synced
