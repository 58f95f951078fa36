"""YAML as Kubernetes users mean it: documents by themselves, no silent surprises, places for every fault.

Read as YAML 1.2 where PyYAML's YAML 1.1 would surprise: `no`, `on` and `y` are texts, times stay texts, `12:30` is no
number, and neither are `010` and `1e3`, which the two versions read differently. A key given twice is a fault, as YAML
demands and most readers forget.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import yaml

# libyaml is ten times faster, but not every wheel of PyYAML has it.
_Base: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Resolved by first character, as PyYAML wants it. Evidence: YAML 1.2.2, 10.3.2 (core schema), as far as 1.1 agrees.
_RESOLVERS: tuple[tuple[str, str, str], ...] = (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN"),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:0|[1-9][0-9]*)\.[0-9]*(?:[eE][-+][0-9]+)?|\.[0-9]+(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
)

# At the start of a line these end a document wherever they stand, even inside quotes (YAML 1.2.2, 9.1.2).
_MARKER = re.compile(r"^(?:---|\.\.\.)(?=[ \t\r\n]|\Z)", re.MULTILINE)
_DIRECTIVE_OR_NOTHING = re.compile(r"(?:[ \t]*(?:#.*)?|%.*)")


class YamlFault(Exception):
    """A text that is not YAML. line and column count from 1 in the whole text."""

    def __init__(self, line: int, column: int, text: str) -> None:
        self.line = line
        self.column = column
        self.text = text
        super().__init__(f"line {line}, column {column}: {text}")


@dataclass(frozen=True, slots=True)
class Document:
    """The text of one document, and the line of the whole text that it starts in."""

    text: str
    first_line: int


def split_documents(text: str) -> Iterator[Document]:
    """The documents of a text, each to be read by itself, so that a fault in one costs only that one.

    Empty documents and directives (`%YAML 1.2`) are left out.
    """
    text = text.removeprefix("\ufeff")
    begin, line = 0, 1
    for end in (*(match.start() for match in _MARKER.finditer(text)), len(text)):
        piece = text[begin:end]
        body = piece[3:] if piece.startswith(("---", "...")) else piece
        if not all(_DIRECTIVE_OR_NOTHING.fullmatch(one) for one in body.splitlines()):
            # Spaces for the marker keep the columns right; after `---` a value may follow on the same line.
            yield Document("   " + body if body is not piece else body, line)
        line += piece.count("\n")
        begin = end


def load(document: Document, doubled: list[str] | None = None) -> object:
    """The value of a document. Raises YamlFault.

    doubled: takes what is to be said of keys that are given twice, of which the last counts; None = they are a fault.
    """
    try:
        loader = _Loader(document.text)
        loader.first_line = document.first_line
        loader.doubled = doubled
        try:
            value: object = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark is not None else (0, 0)
        text = ", ".join(part for part in (error.context, error.problem) if part)
        raise YamlFault(document.first_line + line, column + 1, text) from None
    except yaml.reader.ReaderError as error:
        before = document.text[: error.position]
        line, column = before.count("\n"), len(before) - before.rfind("\n")
        raise YamlFault(document.first_line + line, column, f"a character is not allowed: {error.reason}") from None
    except RecursionError:
        raise YamlFault(document.first_line, 1, "is nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits, for one
        raise YamlFault(document.first_line, 1, str(error)) from None
    return value


def in_one_line(error: Exception) -> str:
    """What PyYAML, or what Python makes of its values, says in several lines with a picture of the place."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    text = ", ".join(part for part in (error.context, error.problem) if part)
    return f"line {mark.line + 1}, column {mark.column + 1}: {text}" if mark is not None else text


class _Loader(_Base):  # type: ignore[misc]  # chosen at import
    """Plain values only; see the module for what differs from PyYAML's."""

    first_line = 1
    doubled: list[str] | None = None
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: dict[object, yaml.Mark] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = (key_node.tag, key_node.value)
            if key in seen:
                problem = f"the key {key_node.value!r} is given twice, first in line {self.first_line + seen[key].line}"
                if self.doubled is not None:
                    self.doubled.append(problem)
                    continue
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen[key] = key_node.start_mark
        mapping: dict[Hashable, object] = super().construct_mapping(node, deep=deep)
        return mapping


for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(
        _tag, re.compile(rf"(?:{_pattern})\Z"), list(_first) + ([""] if "null" in _tag else [])
    )
