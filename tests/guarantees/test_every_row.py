"""Each row of windows-proxy section F has a test of its name, or a reason why it cannot be shown on the emulator."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tests.guarantees.listing import listing
from tests.guarantees.not_on_the_emulator import ELSEWHERE

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# Every row of the sheet, written out: a number that is missing here cannot be missed by accident.
ROWS = tuple(
    """
    F01 F02 F03 F04 F05 F06 F07 F08 F09 F10
    F11 F12 F13 F14 F15 F16 F17 F18 F19 F20 F21 F22 F23 F24 F25 F26 F27
    F28 F29 F30 F31 F32 F33 F34
    F35 F36 F37 F38 F39 F40 F41
    F42 F43 F44 F45 F46
    F47 F48 F49 F50 F51 F52 F53 F54 F55
    F56 F57 F58 F59 F60 F61 F62 F63 F64
    F65 F66 F67 F67b F68 F69 F70
    F71 F72 F73 F74 F75 F76 F77 F78 F79 F80 F81 F82 F83 F84 F85
    F86 F87 F88 F89 F90 F91 F92 F93 F94
    """.split()  # noqa: SIM905
)


def guarantees() -> dict[str, list[tuple[str, str]]]:
    """By row: names of its tests, and their docstrings."""
    found: dict[str, list[tuple[str, str]]] = {}
    for file in sorted(HERE.glob("test_f*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                match = re.match(r"test_(F\d+b?)_", node.name)
                if match:
                    found.setdefault(match[1], []).append((node.name, ast.get_docstring(node) or ""))
    return found


TESTED = guarantees()


def test_the_rows_are_those_of_the_sheet() -> None:
    numbers = [row for row in ROWS if not row.endswith("b")]
    assert numbers == [f"F{number:02}" for number in range(1, 95)]
    assert len(ROWS) == len(set(ROWS)) == 95


@pytest.mark.parametrize("row", ROWS)
def test_row_is_tested_or_listed_with_a_reason(row: str) -> None:
    listed = ELSEWHERE.get(row)
    if row in TESTED:
        assert listed is None or not listed.whole, f"{row} is tested, yet listed as wholly impossible"
    else:
        assert listed is not None, f"{row} has neither a test nor a reason"
        assert listed.whole, f"{row} is listed as partly tested, and has no test"
        assert listed.reason
        assert listed.where


def test_no_other_rows_are_named() -> None:
    assert set(TESTED) | set(ELSEWHERE) <= set(ROWS)


@pytest.mark.parametrize("row", sorted(TESTED))
def test_each_guarantee_says_in_one_line_what_it_promises(row: str) -> None:
    for name, text in TESTED[row]:
        first = text.split("\n")[0]
        assert 30 <= len(first) <= 120, f"{name}: {first!r}"
        assert first.endswith("."), f"{name}: {first!r}"
        assert not first.startswith(row), f"{name}: say what it promises, not its number"


@pytest.mark.parametrize("file", sorted(HERE.glob("test_*.py")), ids=lambda file: file.stem)
def test_none_is_skipped(file: Path) -> None:
    """What this machine cannot show is listed with its reason; a test that exists runs everywhere."""
    names = {
        node.attr for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)
    }
    assert not names & {"skip", "skipif", "xfail", "importorskip"}


def test_a_whole_run_lists_every_row_and_a_part_of_it_none() -> None:
    reports = [(f"tests/guarantees/test_f.py::{name}[x]", "passed") for tests in TESTED.values() for name, _ in tests]
    reports += [("tests/guarantees/test_g_scenarios.py::test_G_HashEndpoints", "passed")]
    reports += [("tests/guarantees/test_f.py::test_F01_after_any_changes[y]", "failed")]
    reports += [("tests/unit/test_net.py::test_F02_no", "failed")]
    told = listing(reports)
    assert {line.split()[0] for line in told[1:]} == {*ROWS, "G"}
    assert "F01  failed: after_any_changes" in "\n".join(told)
    assert not [line for line in told if "F02" in line and "failed" in line]
    assert listing(reports[:20]) == []


def test_what_needs_a_node_is_on_the_page_for_nodes() -> None:
    page = (ROOT / "docs/windows/verify-on-a-node.md").read_text(encoding="utf-8")
    for row, listed in ELSEWHERE.items():
        if listed.where.startswith("docs/"):
            assert re.search(rf"\b{row}\b", page), f"{row} is not on the page"
