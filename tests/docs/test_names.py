"""Every module, function and class that the house tour names exists, so that a renamed one cannot stay on a page."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from tests.docs.pages import DOCS, ROOT, page_id, prose

SOURCE = ROOT / "src" / "hansa"
TOUR = sorted((DOCS / "tour").rglob("*.md"))
SPAN = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w./-]+\.py")
CALL = re.compile(r"((?:\w+\.)*\w+)\([^()]*\)")
WORD = re.compile(r"[A-Z]\w*(?:\.\w+)?")
DOTTED = re.compile(r"hansa(?:\.\w+)+")
# Words of Kubernetes, Windows and Python that look like our own.
FOREIGN = {"EndpointSlice", "KubeProxyConfiguration", "HcnCreateLoadBalancer", "HcnQueryEndpointProperties"} | {
    "Owner",
    "None",
}


@cache
def names_in(file: Path) -> frozenset[str]:
    """Functions, classes, `Class.member`s and constants of a module; imported names do not count."""
    found: set[str] = set()

    def walk(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    found.add(prefix + name)
                case ast.ClassDef(name=name):
                    found.add(prefix + name)
                    walk(node.body, f"{prefix}{name}.")
                case ast.Assign(targets=targets):
                    names = (name for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
                    found.update(prefix + name.id for name in names)
                case ast.AnnAssign(target=ast.Name(id=name)):
                    found.add(prefix + name)

    walk(ast.parse(file.read_text(encoding="utf-8")).body, "")
    return frozenset(found)


@cache
def all_names() -> frozenset[str]:
    """Every name of every module, and the members of classes also by themselves."""
    full = frozenset(name for file in SOURCE.rglob("*.py") for name in names_in(file))
    return full | {name.rpartition(".")[2] for name in full}


def spans(page: Path) -> list[tuple[int, str]]:
    text = prose(page)
    return [(text.count("\n", 0, match.start()) + 1, match[1]) for match in SPAN.finditer(text)]


def file_of(name: str) -> Path | None:
    """A file of the repository, of the package, or, by its last parts, of a package that the page is about."""
    for found in (ROOT / name, SOURCE / name):
        if found.exists():
            return found
    return next((found for found in sorted(SOURCE.rglob(Path(name).name)) if str(found).endswith(f"/{name}")), None)


def is_known(span: str) -> bool:
    if FILE.fullmatch(span):
        return file_of(span) is not None
    if re.fullmatch(r"[\w/]+/", span):
        return (SOURCE / span).is_dir() or (ROOT / span).is_dir()
    if DOTTED.fullmatch(span):
        path = SOURCE.joinpath(*span.split(".")[1:])
        if path.is_dir() or path.with_suffix(".py").exists():
            return True
        module = path.parent / "__init__.py" if path.parent.is_dir() else path.parent.with_suffix(".py")
        return module.exists() and path.name in names_in(module)
    call = CALL.fullmatch(span)
    name = call[1] if call else span
    if call or WORD.fullmatch(name):
        return name in all_names() or name in FOREIGN
    return True


@pytest.mark.parametrize("page", TOUR, ids=page_id)
def test_every_name_on_the_page_exists(page: Path) -> None:
    unknown = [f"{page.name}:{line}: `{span}`" for line, span in spans(page) if not is_known(span)]
    assert not unknown, "\n".join(unknown)


def test_every_step_of_the_tour_is_where_it_says() -> None:
    """Bold functions are in the module that is named right before them."""
    text = prose(DOCS / "tour" / "index.md")
    steps = re.findall(r"^\d+\. .*(?:\n {3}.*)*", text, re.MULTILINE)
    assert len(steps) > 10
    checked = 0
    for step in steps:
        module: Path | None = None
        for name, function in re.findall(r"`([\w/]+\.py)`|\*\*`([\w.]+)\(\)`\*\*", step):
            if name:
                module = file_of(name)
                assert module is not None, f"{name} does not exist: {step}"
                continue
            assert module is not None, f"{function} without a module: {step}"
            assert function in names_in(module), f"{module} has no {function}"
            checked += 1
    assert checked > 20


def test_modules_marked_as_edges_are_edges_and_the_others_are_not() -> None:
    from tests.test_layers import EDGES

    text = prose(DOCS / "tour" / "index.md").partition("## One EndpointSlice update")[2]
    named = re.findall(r"`([\w/]+)\.py`( !)?", text)
    assert len(named) > 20
    for name, mark in named:
        if name.startswith("tests/"):
            continue
        assert (name.replace("/", ".") in EDGES) is bool(mark), f"`{name}.py`"


@pytest.mark.parametrize(
    ("span", "known"),
    [
        ("api/decode.py", True),
        ("api/encode.py", False),
        ("decode()", True),
        ("Store.apply()", True),
        ("Store.forget()", False),
        ("stream_lines()", False),
        ("DesiredLoadBalancer", True),
        ("DesiredBalancer", False),
        ("hansa.testing", True),
        ("hansa.services.store", True),
        ("hansa.services.store.Touched", True),
        ("hansa.services.shop", False),
        ("hansa.services.store.Shop", False),
        ("services/", True),
        ("shops/", False),
        ("--output", True),
    ],
)
def test_a_name_that_does_not_exist_is_found(span: str, known: bool) -> None:
    assert is_known(span) is known
