"""The glossary is in order, and says nothing twice."""

from __future__ import annotations

import re

from tests.docs.pages import DOCS

WORD = re.compile(r'^\| <a id="([^"]+)"></a>([^|]+) \|', re.MULTILINE)


def test_words_are_in_alphabetical_order_and_each_stands_once() -> None:
    found = WORD.findall((DOCS / "reference" / "glossary.md").read_text(encoding="utf-8"))
    words = [word.casefold() for _, word in found]
    assert len(found) > 40
    assert words == sorted(words)
    assert len({anchor for anchor, _ in found}) == len(found)
