"""The rows of windows-proxy F and G with their tests by name: what a whole run says at its end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tests.guarantees.not_on_the_emulator import ELSEWHERE

# A run that comes this far was meant to be a whole one; a single test does not need the list.
WHOLE = 80
_NAME = re.compile(r"tests/guarantees/test_\w+\.py::(test_(?:(F\d+b?)|(G))_\w+)")


def listing(reports: Iterable[tuple[str, str]]) -> list[str]:
    """reports: id and outcome of each test. A line per row of F: its tests, or why there is none; then those of G."""
    rows: dict[str, dict[str, str]] = {}
    for test, outcome in reports:
        match = _NAME.match(test.replace("\\", "/"))
        if match is not None:
            tests = rows.setdefault(match[2] or match[3], {})
            tests[match[1]] = _worse(tests.get(match[1], outcome), outcome)
    if len(rows) < WHOLE:
        return []
    return list(_lines(rows))


def _lines(rows: dict[str, dict[str, str]]) -> Iterator[str]:
    known = sorted({*rows, *ELSEWHERE} - {"G"}, key=lambda row: (int(re.sub(r"\D", "", row)), row))
    tested, scenarios = len(rows.keys() - {"G"}), rows.get("G", {})
    yield f"windows-proxy F: {tested} of {len(known)} rows have tests; G: {len(scenarios)} scenarios"
    for row in known:
        for name, outcome in sorted(rows.get(row, {}).items()):
            yield f"  {row:4} {outcome}: {name.removeprefix(f'test_{row}_')}"
        if row in ELSEWHERE:
            part = "on a node only" if ELSEWHERE[row].whole else "and on a node"
            yield f"  {row:4} {part}: {ELSEWHERE[row].reason} ({ELSEWHERE[row].where})"
    for name, outcome in sorted(scenarios.items()):
        yield f"  G    {outcome}: {name.removeprefix('test_G_')}"


def _worse(one: str, other: str) -> str:
    return max(one, other, key=("passed", "skipped", "error", "failed").index)
