"""Pages of documentation as data: their blocks, and how each sort of block is run.

    ```pycon     doctest (`...` stands for anything); one namespace per page
    ```console   `$ hansa ...`, and `$ echo $?` after a command that is to fail; the lines below are the output
    ```yaml/json must parse; with title="NAME" it is also saved as the file NAME, for the commands that follow
    ```mermaid   a picture: `<!-- $ hansa ... -->` on the line before says which command prints it
    ```text, ```sh and ```python are for reading

One page is one session: its blocks run in their order, in one folder that is empty at first.
"""

from __future__ import annotations

import contextlib
import doctest
import functools
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from hansa import cli

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
LANGUAGES = {"pycon", "console", "yaml", "json", "text", "sh", "python", "mermaid"}
FENCE = re.compile(r"^```(\S*)([^\n]*)\n(?P<text>.*?)^```\s*$", re.MULTILINE | re.DOTALL)
# What the reference writes from the code; see `reference`.
MARK = re.compile(r"(<!-- table ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
TITLE = re.compile(r'title="([^"/]+)"')
PAINTER = re.compile(r"<!-- \$ (.+) -->\n\Z")
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
HANSA = re.compile(r"(?P<words>hansa [^|&;<>$`]*?)(?P<quiet>\s2> /dev/null)?(?:\s> (?P<file>\S+))?")
UPDATE = bool(os.environ.get("HANSA_UPDATE_DOCS"))
# What a terminal of the reader may set and a page must not depend on; and HANSA, the folder of the repository.
ENVIRONMENT = {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb", "KUBE_NETWORK": "", "HANSA": str(ROOT)}


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Ran:
    """A block after it ran. text: the block with what was really printed; faults: where that is not what it says."""

    text: str
    faults: tuple[str, ...]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(m[1], m["text"], text.count("\n", 0, m.start()) + 1) for m in FENCE.finditer(text)]


def prose(page: Path) -> str:
    """The page without its blocks, which keep their lines, so that line numbers stay right."""
    return FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text(encoding="utf-8"))


def run_page(page: Path, folder: Path) -> tuple[str, list[str]]:
    """Run all blocks of a page in `folder`; returns the page with real output, and every difference."""
    session = Session(folder)
    faults: list[str] = []
    texts: list[str] = []
    at = 0
    text = page.read_text(encoding="utf-8")
    generated = [range(mark.start(), mark.end()) for mark in MARK.finditer(text)]
    for match in FENCE.finditer(text):
        place = f"{page.name}:{text.count(chr(10), 0, match.start()) + 1}"
        runner: Callable[[str, str], Ran] | None = {"pycon": session.python, "console": session.console}.get(match[1])
        if match[1] == "mermaid" and not any(match.start() in each for each in generated):
            painter = PAINTER.search(text, 0, match.start())
            runner = functools.partial(session.picture, painter[1] if painter else None)
        if (title := TITLE.search(match[2])) is not None:
            (folder / title[1]).write_text(match["text"], encoding="utf-8")
        if runner is None:
            continue
        ran = runner(match["text"], place)
        faults += ran.faults
        texts += [text[at : match.start("text")], ran.text]
        at = match.end("text")
    return "".join((*texts, text[at:])), faults


class Session:
    """What the blocks of one page share: a folder, Python's names, the last exit code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, object] = {}
        self.exit_code = 0

    def python(self, text: str, place: str) -> Ran:
        parsed = doctest.DocTestParser().parse(text, place)
        examples = [each for each in parsed if isinstance(each, doctest.Example)]
        runner = _Recorder(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
        test = doctest.DocTest(examples, self.names, place, None, 0, text)
        with contextlib.chdir(self.folder):
            runner.run(test, out=lambda _: None, clear_globs=False)
        self.names = test.globs
        new = "".join(
            each if isinstance(each, str) else _with_prompts(each.source) + runner.printed.get(each.lineno, each.want)
            for each in parsed
        )
        return Ran(new, tuple(runner.faults))

    def console(self, text: str, place: str) -> Ran:
        new: list[str] = []
        faults: list[str] = []
        for command, wanted in transcripts(text):
            got = "\n".join(line.rstrip() for line in self.shell(command).rstrip("\n").split("\n"))
            got = got + "\n" if got else ""
            same = matches(wanted, got)
            if not same:
                faults.append(f"{place}: $ {command}\n--- page\n{wanted}\n--- real (exit {self.exit_code})\n{got}")
            new += [f"$ {command}\n", wanted if same else got]
        return Ran("".join(new), tuple(faults))

    def picture(self, painter: str | None, text: str, place: str) -> Ran:
        """Nobody draws by hand: a picture is what the command before it prints."""
        if painter is None:
            return Ran(text, (f"{place}: a picture without `<!-- $ command -->` on the line before",))
        got = self.shell(painter).rstrip("\n") + "\n"
        return Ran(got, () if got == text else (f"{place}: $ {painter}\n--- page\n{text}\n--- real\n{got}",))

    def shell(self, command: str) -> str:
        """Both outputs of a command, standard output first.

        `hansa` runs in this process, also at the beginning of a pipe: starting one takes 0.5 s.
        """
        if command == "echo $?":
            return f"{self.exit_code}\n"
        call = HansaCall.read(command)
        if call is None:
            return "".join(self._bash(command))
        out, errors = self._hansa(call.words)
        if call.quiet:
            errors = ""
        if call.file:
            (self.folder / call.file).write_text(out, encoding="utf-8")
            out = ""
        if call.rest:
            out, more = self._bash(call.rest, given=out)
            errors += more
        return out + errors

    def _hansa(self, words: list[str]) -> tuple[str, str]:
        out, errors = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(self.folder),
            mock.patch.dict(os.environ, ENVIRONMENT),
            mock.patch.object(sys, "argv", words),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(errors),
        ):
            try:
                cli.main()
                self.exit_code = 0
            except SystemExit as ended:
                self.exit_code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        return out.getvalue(), errors.getvalue()

    def _bash(self, command: str, given: str | None = None) -> tuple[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env={**os.environ, **ENVIRONMENT, "PATH": path},
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.exit_code = done.returncode
        return done.stdout, done.stderr


@dataclass(frozen=True)
class HansaCall:
    """`hansa WORDS [2> /dev/null] [> FILE] [| REST]`; rest: the commands behind the pipe, "" = none."""

    words: list[str]
    quiet: bool = False
    file: str = ""
    rest: str = ""

    @classmethod
    def read(cls, command: str) -> HansaCall | None:
        """None if it is anything else, something with variables for example."""
        bare = QUOTED.sub(lambda match: "x" * len(match[0]), command)
        end = bare.find("|") if "|" in bare else len(command)
        parts = HANSA.fullmatch(bare[:end].rstrip())
        if parts is None or "$" in command[:end] or "`" in command[:end]:
            return None
        return cls(
            shlex.split(command[: parts.end("words")]),
            quiet=parts["quiet"] is not None,
            file=parts["file"] or "",
            rest=command[end + 1 :].strip(),
        )


class _Recorder(doctest.DocTestRunner):
    """Notes what was printed where something else stands on the page."""

    def __init__(self, *, optionflags: int, verbose: bool) -> None:
        super().__init__(optionflags=optionflags, verbose=verbose)
        self.faults: list[str] = []
        self.printed: dict[int, str] = {}

    def report_failure(self, out: object, test: doctest.DocTest, example: doctest.Example, got: str) -> None:
        self.printed[example.lineno] = "".join(f"{line.rstrip()}\n" for line in got.splitlines())
        self.faults.append(f"{test.name}: >>> {example.source}--- page\n{example.want}\n--- real\n{got}")

    def report_unexpected_exception(
        self, out: object, test: doctest.DocTest, example: doctest.Example, exc_info: tuple[object, ...]
    ) -> None:
        self.faults.append(f"{test.name}: >>> {example.source}raised {exc_info[1]!r}")


def _with_prompts(source: str) -> str:
    first, *rest = source.splitlines()
    return "".join((f">>> {first}\n", *(f"... {line}\n" if line else "...\n" for line in rest)))


def transcripts(text: str) -> list[tuple[str, str]]:
    """Commands with what follows them."""
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


def matches(wanted: str, got: str) -> bool:
    """Whether the lines agree; a line `...` stands for any lines, `...` inside a line for any text."""
    pattern = ""
    for line in wanted.rstrip("\n").split("\n"):
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*?".join(re.escape(part.rstrip()) for part in line.split("...")) + r"[ ]*\n"
    return re.fullmatch(pattern, got.rstrip("\n") + "\n") is not None
