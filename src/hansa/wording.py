"""How sentences name many things. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

_T = TypeVar("_T")

NAMED = 5  # how many objects a sentence names before it only counts the rest


def named(things: Iterable[_T], separator: str = ", ", *, most: int = NAMED) -> str:
    """The first few, and how many more there are.

    >>> named([80, 443]), named(range(7)), named("abc", "; ", most=2)
    ('80, 443', '0, 1, 2, 3, 4 and 2 more', 'a; b and 1 more')
    """
    texts = [str(one) for one in things]
    more = len(texts) - most
    return separator.join(texts[:most]) + (f" and {more} more" if more > 0 else "")
