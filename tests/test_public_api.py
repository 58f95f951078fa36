"""What is public is listed, importable, documented, and no more than a person can keep in mind."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import hansa

ROOT = Path(__file__).parent.parent
MOST_NAMES = 15


def test_the_list_is_sorted_and_short() -> None:
    assert hansa.__all__ == sorted(hansa.__all__)
    assert len(hansa.__all__) <= MOST_NAMES


@pytest.mark.parametrize("name", hansa.__all__)
def test_every_name_is_there_with_a_docstring_of_its_own(name: str) -> None:
    value = getattr(hansa, name)
    assert inspect.getdoc(value), f"hansa.{name} has no docstring"
    assert name in dir(hansa)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(hansa.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(hansa.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Proxy'"):
        hansa.Proxy  # noqa: B018


@pytest.mark.parametrize("name", hansa.__all__)
def test_every_name_is_documented(name: str) -> None:
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md")]
    assert any(name in page for page in pages), f"no page mentions {name}"


def test_importing_hansa_loads_nothing_heavy() -> None:
    code = "import sys, hansa; print([m for m in ('aiohttp', 'rich', 'typer', 'yaml', 'msgspec') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
