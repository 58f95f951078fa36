"""diff(): two keyed collections to what is to be created, changed and deleted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.dataplanes.diff import Diff, diff

keyed = st.dictionaries(st.integers(0, 9), st.integers(0, 2), max_size=8)


@pytest.mark.parametrize(
    "desired, observed, expected",
    [
        ({}, {}, Diff((), (), ())),
        ({"a": 1}, {}, Diff(("a",), (), ())),
        ({}, {"a": 1}, Diff((), (), ("a",))),
        ({"a": 1}, {"a": 1}, Diff((), (), ())),
        ({"a": 2}, {"a": 1}, Diff((), ("a",), ())),
        ({"b": 1, "a": 1}, {"d": 1, "c": 1}, Diff(("b", "a"), (), ("d", "c"))),
    ],
)
def test_diff(desired: dict[str, int], observed: dict[str, int], expected: Diff[str]) -> None:
    assert diff(desired, observed) == expected


@given(keyed, keyed)
def test_applying_a_diff_leads_to_the_desired_state(desired: dict[int, int], observed: dict[int, int]) -> None:
    found = diff(desired, observed)
    result = {key: value for key, value in observed.items() if key not in found.delete}
    result.update({key: desired[key] for key in (*found.create, *found.change)})
    assert result == desired
    assert bool(found) == (desired != observed)
    assert len(set(found.touched)) == len(found.touched)
