"""The page that builds a dataplane shows the file that ships: every line of it, in its order."""

from __future__ import annotations

from tests.docs.pages import DOCS, ROOT, blocks

PAGE = DOCS / "howto" / "write-a-dataplane.md"
FILE = ROOT / "src" / "hansa" / "dataplanes" / "userspace" / "relay.py"


def test_the_page_builds_the_file() -> None:
    pieces = [block.text for block in blocks(PAGE) if block.language == "python"]
    shown = [line for piece in pieces[:-1] for line in piece.splitlines() if line.strip()]
    assert shown == [line for line in FILE.read_text(encoding="utf-8").splitlines() if line.strip()]


def test_the_entry_point_on_the_page_is_the_one_that_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (shown,) = [block.text for block in blocks(PAGE) if "entry-points" in block.text]
    assert all(line in text for line in shown.splitlines())
    init = (FILE.parent / "__init__.py").read_text(encoding="utf-8")
    assert "def open_dataplane(config: Config)" in init
