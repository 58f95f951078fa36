"""Every code block of README and docs runs, and shows what it really prints; see `pages` for the rules.

`HANSA_UPDATE_DOCS=1 pytest -n 0 tests/docs` writes real output into the pages: read the difference before you keep it.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from tests.docs.pages import (
    DOCS,
    FENCE,
    LANGUAGES,
    PAGES,
    ROOT,
    UPDATE,
    HansaCall,
    Session,
    blocks,
    matches,
    page_id,
    run_page,
)

RUN = {"pycon", "console", "mermaid"}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_block_has_a_known_language(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{page.name}:{block.line}: ```{block.language or '(none)'}"


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language in RUN for b in blocks(p))], ids=page_id)
def test_the_page_shows_what_its_blocks_print(page: Path, tmp_path: Path) -> None:
    updated, faults = run_page(page, tmp_path)
    assert "Traceback (most recent call last):\n  File" not in updated, "a program that falls over is nothing to show"
    if UPDATE and updated != page.read_text(encoding="utf-8"):
        page.write_text(updated, encoding="utf-8")
    else:
        assert not faults, "\n".join(faults)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_data_blocks_parse(page: Path) -> None:
    for block in blocks(page):
        if block.language in {"yaml", "json"}:
            assert list(yaml.safe_load_all(block.text)), f"{page.name}:{block.line} is empty"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        found = page if not target else page.parent / target
        assert found.exists(), f"{page.name} links to {target}"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{page.name} links to {target}#{anchor}"


@cache
def anchors(page: Path) -> frozenset[str]:
    """The ids that the site gives to headings, or that the page gives by `{#id}` or `<a id="id">`."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found = set(re.findall(r'<a id="([^"]+)">', text))
    for heading in re.findall(r"^#+\s+(.*)$", text, re.MULTILINE):
        if (given := re.search(r"\{#([\w-]+)\}", heading)) is not None:
            found.add(given[1])
            continue
        plain = re.sub(r"\]\([^)]*\)|[`*\[]", "", heading).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain)).strip("-"))
    return frozenset(found)


@pytest.mark.parametrize("page", [p for p in PAGES if p.is_relative_to(DOCS)], ids=page_id)
def test_every_page_has_a_place_in_the_navigation(page: Path) -> None:
    assert str(page.relative_to(DOCS)) in navigation(), f"add {page.relative_to(DOCS)} to nav in mkdocs.yml"


def test_the_navigation_names_no_page_that_does_not_exist() -> None:
    missing = [name for name in navigation() if not (DOCS / name).exists()]
    assert not missing, f"mkdocs.yml names {missing}"


def navigation() -> list[str]:
    found: list[str] = []

    def walk(entry: object) -> None:
        match entry:
            case str():
                found.append(entry)
            case list():
                for each in entry:
                    walk(each)
            case dict():
                for each in entry.values():
                    walk(each)

    walk(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert len(found) == len(set(found)), "a page stands twice in the navigation"
    return found


# --- the runner itself: a check that cannot fail proves nothing ---


@pytest.mark.parametrize(
    ("wanted", "got", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\nb\n", "a\nb\nc\n", False),
        ("a\n...\nc\n", "a\nb\nb\nc\n", True),
        ("a\n...\n", "a\n", True),
        ("took ... s\n", "took 12 s\n", True),
        ("took ... s\n", "took 12 ms\n", False),
        ("a\n", "a   \n", True),
        ("", "", True),
        ("", "something\n", False),
    ],
)
def test_dots_stand_for_anything_and_nothing_else_does(wanted: str, got: str, same: bool) -> None:
    assert matches(wanted, got) is same


def test_a_block_that_prints_something_else_is_a_fault_and_can_be_mended(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```pycon\n>>> 1 + 1\n3\n>>> 'b'\n'b'\n```\n\n```console\n$ hansa --version\nhansa 0\n```\n")
    mended, faults = run_page(page, tmp_path)
    assert len(faults) == 2
    assert ">>> 1 + 1\n2\n>>> 'b'\n'b'\n" in mended
    page.write_text(mended)
    assert run_page(page, tmp_path) == (mended, [])


def test_a_picture_is_what_its_command_prints_and_never_drawn_by_hand(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```mermaid\nflowchart LR\n```\n")
    assert "without" in run_page(page, tmp_path)[1][0]
    page.write_text('```yaml title="file.yaml"\na: 1\n```\n\n<!-- $ cat file.yaml -->\n```mermaid\nflowchart LR\n```\n')
    mended, faults = run_page(page, tmp_path)
    assert len(faults) == 1
    assert "```mermaid\na: 1\n```" in mended
    page.write_text(mended)
    assert run_page(page, tmp_path) == (mended, [])


def test_an_exception_on_a_page_is_a_fault(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```pycon\n>>> [][0]\n```\n")
    assert "IndexError" in run_page(page, tmp_path)[1][0]


@pytest.mark.parametrize(
    ("command", "call"),
    [
        ("hansa demo", HansaCall(["hansa", "demo"])),
        ("hansa demo --manifests > c.yaml", HansaCall(["hansa", "demo", "--manifests"], file="c.yaml")),
        ("hansa trace 'a -> b' | tail -2", HansaCall(["hansa", "trace", "a -> b"], rest="tail -2")),
        ("hansa x 2> /dev/null | sort | uniq", HansaCall(["hansa", "x"], quiet=True, rest="sort | uniq")),
        ('hansa x "a|b" 2> /dev/null > f', HansaCall(["hansa", "x", "a|b"], quiet=True, file="f")),
        ("hansa x $HANSA", None),
        ("hansa a && hansa b", None),
        ("ls", None),
    ],
)
def test_what_runs_in_this_process(command: str, call: HansaCall | None) -> None:
    assert HansaCall.read(command) == call


def test_blocks_of_a_page_share_folder_names_and_exit_code(tmp_path: Path) -> None:
    session = Session(tmp_path)
    assert session.python(">>> from pathlib import Path\n>>> n = Path('f').write_text('x')\n", "").faults == ()
    assert session.python(">>> n\n1\n", "").faults == ()
    assert session.shell("cat f | tr x y") == "y"
    assert session.shell("hansa demo --manifests > cluster.yaml") == ""
    assert (tmp_path / "cluster.yaml").read_text().startswith("#")
    assert "no Node is called" in session.shell("hansa render --source cluster.yaml --node-name nobody")
    assert session.shell("echo $?") == "2\n"
