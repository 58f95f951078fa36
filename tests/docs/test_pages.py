"""Every code block of README and docs runs, and shows what it really prints.

    ```pycon     doctest, one namespace per page (`...` stands for anything)
    ```console   `$ hansa ...` lines run in an empty folder, one after the other; the lines below are the output, `...` as above
    ```yaml/json must parse;  ```text, ```sh and ```mermaid are for reading

`HANSA_UPDATE_DOCS=1 pytest tests/docs` writes the real output of console blocks into the pages.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
LANGUAGES = {"pycon", "console", "yaml", "json", "text", "sh", "mermaid"}
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
UPDATE = bool(os.environ.get("HANSA_UPDATE_DOCS"))


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in FENCE.finditer(text)]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def matches(wanted: str, got: str) -> bool:
    """Whether the lines agree; a line `...` stands for any lines, `...` inside a line for any text."""
    pattern = ""
    for line in wanted.rstrip("\n").split("\n"):
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*?".join(re.escape(part.rstrip()) for part in line.split("...")) + r"[ ]*\n"
    return re.fullmatch(pattern, got.rstrip("\n") + "\n") is not None


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_block_has_a_known_language(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{page.name}:{block.line}: ```{block.language or '(none)'}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_sessions_print_what_the_page_says(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    parser = doctest.DocTestParser()
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.language == "pycon":
            test = parser.get_doctest(block.text, names, f"{page.name}:{block.line}", str(page), block.line)
            report: list[str] = []
            runner.run(test, out=report.append, clear_globs=False)
            names = test.globs
            assert not report, "".join(report)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_data_blocks_parse(page: Path) -> None:
    for block in blocks(page):
        if block.language in {"yaml", "json"}:
            assert list(yaml.safe_load_all(block.text)), f"{page.name}:{block.line} is empty"


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language == "console" for b in blocks(p))], ids=page_id)
def test_commands_print_what_the_page_says(page: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "120",
        "NO_COLOR": "1",
        "TERM": "dumb",
    }
    updated = page.read_text(encoding="utf-8")
    for block in blocks(page):
        if block.language != "console":
            continue
        new = ""
        for command, wanted in transcripts(block.text):
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
            )
            got = done.stdout + done.stderr
            new += f"$ {command}\n{got if '...' not in wanted else wanted}"
            if not UPDATE:
                assert matches(wanted, got) or wanted.strip() == got.strip(), (
                    f"{page.name}:{block.line}: $ {command}\n--- page\n{wanted}\n--- real (exit {done.returncode})\n{got}"
                )
        updated = updated.replace(f"```console\n{block.text}", f"```console\n{new.rstrip()}\n")
    if UPDATE:
        page.write_text(updated, encoding="utf-8")


def transcripts(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for line in text.splitlines(keepends=True):
        if line.startswith("$ "):
            command = line[2:].rstrip("\n")
            assert shlex.split(command), "an empty command"
            found.append((command, ""))
        else:
            assert found, "a console block begins with `$ command`"
            found[-1] = (found[-1][0], found[-1][1] + line)
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
