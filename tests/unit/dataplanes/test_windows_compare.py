"""What a difference is called, and the examples in the docstrings of pure Windows modules."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from hansa.dataplanes.windows import compare, objects


@pytest.mark.parametrize("module", [compare, objects], ids=lambda module: module.__name__)
def test_the_examples_in_docstrings_hold(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["endpoints"], "endpoints differ"),
        (["mapping flags"], "mapping flags differ"),
        (["provider address"], "provider address differs"),
        (["internal port", "endpoints"], "internal port, endpoints differ"),
    ],
)
def test_one_field_differs_and_several_differ(names: list[str], sentence: str) -> None:
    assert compare.differ(names) == sentence
