"""The difference of two keyed collections, in the order of the keys as given."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Diff(Generic[K]):
    """create: only desired. change: in both, unequal. delete: only observed. Equal keys are in none of them.

    `create` and `change` keep the order of the desired mapping, `delete` that of the observed one.
    """

    create: tuple[K, ...]
    change: tuple[K, ...]
    delete: tuple[K, ...]

    def __bool__(self) -> bool:
        return bool(self.create or self.change or self.delete)

    @property
    def touched(self) -> tuple[K, ...]:
        return self.create + self.change + self.delete


def diff(desired: Mapping[K, V], observed: Mapping[K, V]) -> Diff[K]:
    """Compare by key and then by equality of the values.

    >>> diff({"a": 1, "b": 2, "c": 3}, {"b": 2, "c": 4, "d": 5})
    Diff(create=('a',), change=('c',), delete=('d',))
    """
    create = []
    change = []
    for key, value in desired.items():
        if key not in observed:
            create.append(key)
        elif observed[key] != value:
            change.append(key)
    return Diff(tuple(create), tuple(change), tuple(key for key in observed if key not in desired))
