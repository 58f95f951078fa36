"""Bytes by chance into everything that reads bytes: a short part of what `make fuzz` does, and what that has found."""

from __future__ import annotations

import pytest
from fuzz.targets import CASES, TARGETS, Target, target
from hypothesis import given
from hypothesis import strategies as st

NAMES = [each.name for each in TARGETS]
# What tends to break readers: numbers out of range, brackets that do not close, bytes that are no text.
TOKENS = st.sampled_from(
    [
        b"",
        b"\0",
        b"\xff\xfe",
        b"\n",
        b"{",
        b"[",
        b'"',
        b":",
        b"-1",
        b"1e999",
        b"9" * 40,
        b"null",
        b"true",
        b"\\ud800",
        b"- ",
    ]
)
DEEP = 2000


@pytest.mark.parametrize("name", NAMES)
def test_what_it_begins_with_is_understood(name: str) -> None:
    """Otherwise chance would never get past the first check."""
    one = target(name)
    for seed in one.seeds:
        one.try_input(seed)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_that_have_shown_a_bug(name: str) -> None:
    for case in target(name).cases():
        target(name).try_input(case.read_bytes())


def test_every_case_has_a_target() -> None:
    assert {each.name for each in CASES.iterdir()} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_bytes_by_chance(name: str, data: st.DataObject) -> None:
    one = target(name)
    one.try_input(data.draw(bent(one) | st.binary(max_size=200)))


@st.composite
def bent(draw: st.DrawFn, one: Target) -> bytes:
    """A seed with some places cut out, doubled or replaced."""
    found = draw(st.sampled_from(one.seeds))
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(found)))
        last = min(len(found), first + draw(st.integers(0, 12)))
        piece = draw(TOKENS | st.binary(max_size=6) | st.just(found[first:last] * 2))
        found = found[:first] + piece + found[last:]
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("opening", [b"[", b'{"a":', b"- ", b"{a: ", b"(", b'[{"', b"\x08\0\x01\0"])
def test_nesting_without_end_is_refused_too(name: str, opening: bytes) -> None:
    target(name).try_input(opening * DEEP)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_without_end_are_refused_too(name: str) -> None:
    target(name).try_input(b'{"a": ' + b"9" * 10_000 + b"}")
    target(name).try_input(b"9" * 10_000)
