"""A reader can follow what docstrings cite: the rows of fact sheets that the source names are on their pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.pages import DOCS
from tests.docs.test_names import SOURCE
from tests.docs.test_pages import anchors

SHEETS = {"windows-proxy", "hcn", "service-semantics", "operations", "kpng"}
_ID = r"(?:EV-\d\d|[A-Z]{1,2}\d{1,3}b?|[A-H]\.\d+|\d{1,2}(?:\.\d{1,2})?|[A-H]\b)"
_JOIN = r"(?:,? and |, | to |-|, and )(?:sections? )?"
CITATION = re.compile(
    rf"\b({'|'.join(sorted(SHEETS))})(?:\.md)?,? (?:sections? )?({_ID}(?:{_JOIN}{_ID})*)(?![\w.]*\d)", re.MULTILINE
)
# Rows whose names no other sheet has; they are cited without it.
ALONE = {re.compile(r"\bF\d\db?\b"): "windows-proxy", re.compile(r"\bEV-\d\d\b"): "hcn"}


def anchor_of(cited: str) -> str:
    """The row or section that a citation means, as the id that its page has."""
    if re.fullmatch(r"[A-H]|[A-H]\.\d+|\d[\d.]*", cited):
        return f"s-{cited.lower().replace('.', '-')}"
    return cited.lower()


def citations(text: str) -> Iterator[tuple[str, str]]:
    joined = re.sub(r"\s*\n\s*(?:#\s*)?", " ", text)
    for match in CITATION.finditer(joined):
        for cited in re.findall(_ID, match[2]):
            yield match[1], cited
    for pattern, sheet in ALONE.items():
        yield from ((sheet, cited) for cited in pattern.findall(joined))


def test_everything_that_the_source_cites_is_on_a_page() -> None:
    missing, count = set(), 0
    for file in sorted(SOURCE.rglob("*.py")):
        for sheet, cited in citations(file.read_text(encoding="utf-8")):
            count += 1
            if anchor_of(cited) not in anchors(DOCS / "evidence" / f"{sheet}.md"):
                missing.add(f"{file.relative_to(SOURCE)}: {sheet} {cited}")
    assert not missing, "\n".join(sorted(missing))
    assert count > 200, "citations are not found any more"


def test_no_other_notes_are_cited() -> None:
    """A name of a document that is not on the site would lead nowhere."""
    known = re.compile(rf"\b({'|'.join(SHEETS)})\.md\b")
    for file in SOURCE.rglob("*.py"):
        named = set(re.findall(r"\b[\w-]+\.md\b", file.read_text(encoding="utf-8")))
        unknown = {name for name in named if not known.fullmatch(name) and not list(DOCS.rglob(name))}
        assert not unknown, f"{file.relative_to(SOURCE)}: {sorted(unknown)}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Evidence: windows-proxy H.2 and F11.", {("windows-proxy", "H.2"), ("windows-proxy", "F11")}),
        ("(hcn.md 5.9)", {("hcn", "5.9")}),
        ("service-semantics sections 8 to 10;", {("service-semantics", "8"), ("service-semantics", "10")}),
        ("an answer (EV-19)", {("hcn", "EV-19")}),
        ("windows-proxy section C", {("windows-proxy", "C")}),
        ("nothing cited", set()),
    ],
)
def test_citations_are_found(text: str, found: set[tuple[str, str]]) -> None:
    assert set(citations(text)) == found


def test_a_row_that_is_on_no_page_is_seen() -> None:
    page: Path = DOCS / "evidence" / "windows-proxy.md"
    assert anchor_of("F11") in anchors(page)
    assert anchor_of("F99") not in anchors(page)
