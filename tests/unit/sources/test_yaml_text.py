"""YAML as Kubernetes users mean it: documents by themselves, no silent surprises, places for every fault."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.sources.yaml_text import YamlFault, load, split_documents

laws = settings(max_examples=50, deadline=None, derandomize=True)


def read(text: str) -> list[object]:
    """The values of all documents; a fault stands for the document that it costs."""
    found: list[object] = []
    for document in split_documents(text):
        try:
            found.append(load(document))
        except YamlFault as fault:
            found.append(fault)
    return found


def fault(text: str) -> str:
    (found,) = [one for one in read(text) if isinstance(one, YamlFault)]
    return str(found)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("n", "n"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("12:30", "12:30"),
        ("2026-03-02", "2026-03-02"),
        ("2026-03-02T08:00:01Z", "2026-03-02T08:00:01Z"),
        ("8080", 8080),
        ("-1", -1),
        ("0", 0),
        ("0x1F", 31),
        ("010", "010"),
        ("0o10", "0o10"),
        ("1_000", "1_000"),
        ("1.5", 1.5),
        ("1.5e+3", 1500.0),
        ("1e3", "1e3"),
        ("10.0.0.1", "10.0.0.1"),
        ("fd00::1", "fd00::1"),
        ("=", "="),
        ("'true'", "true"),
        ('"8080"', "8080"),
        ("!!str 8080", "8080"),
    ],
)
def test_plain_values(written: str, value: object) -> None:
    """The traps of YAML 1.1: Norway, sexagesimals, octals, times."""
    (found,) = read(f"key: {written}\n")
    assert found == {"key": value}
    assert isinstance(found, dict)
    assert type(found["key"]) is type(value)


def test_documents() -> None:
    text = "%YAML 1.2\n# head\n---\na: 1\n--- # comment\nb: 2\n...\n---\n\n--- {c: 3}\n"
    text += "--- |\n  text --- here\n---\r\nd: 4\r\n"
    assert read(text) == [{"a": 1}, {"b": 2}, {"c": 3}, "text --- here\n", {"d": 4}]


def test_a_byte_order_mark_is_no_content() -> None:
    assert read("\ufeffa: 1") == [{"a": 1}]


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "---\n---\n", "---\n...\n"])
def test_nothing(text: str) -> None:
    assert [one for one in read(text) if one is not None] == []


def test_anchors_and_merges() -> None:
    assert read("a: &x {p: 1, q: 1}\nb:\n  <<: *x\n  q: 2\n") == [{"a": {"p": 1, "q": 1}, "b": {"p": 1, "q": 2}}]


def test_a_fault_costs_only_its_document_and_says_where() -> None:
    first, broken, last = read("a: 1\n---\nb:\n  - [1\nc: 2\n---\nd: 4\n")
    assert (first, last) == ({"a": 1}, {"d": 4})
    assert isinstance(broken, YamlFault)
    assert (broken.line, broken.column) == (5, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: the key 'a' is given twice, first in line 1"),
        ("---\na: 1\n---\nb: {c: 1,\n  c: 2}\n", "line 5, column 3: the key 'c' is given twice, first in line 4"),
        ("---   {a: 1, a: 2}", "line 1, column 14: the key 'a' is given twice, first in line 1"),
        ("a: \x01", "line 1, column 4: a character is not allowed: control characters are not allowed"),
        ("x: 1\ny: \x01", "line 2, column 4: a character is not allowed: control characters are not allowed"),
        ("a: !!python/object:os.system x", "line 1, column 4: could not determine a constructor for the tag"),
        ("? [1]\n: 2", "line 1, column 3: while constructing a mapping, found unhashable key"),
        ("a: *x", "line 1, column 4: found undefined alias"),
        ("a: 1\n\tb: 2", "line 2, column 1: "),
        ("a: " + "1" * 5000, "line 1, column 1: "),
        ("[" * 5000, "line 1, column "),
    ],
)
def test_faults(text: str, expected: str) -> None:
    assert fault(text).startswith(expected)


@pytest.mark.parametrize("text", ["{'a': 1, a: 2}", "{1: a, 1: b}", "{~: a, null: b, ~: c}"])
def test_keys_that_are_equal_are_given_twice(text: str) -> None:
    assert "given twice" in fault(text)


def test_keys_that_only_look_alike_are_two() -> None:
    assert read("{1: a, '1': b}") == [{1: "a", "1": "b"}]


TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.sampled_from("\né語"), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@laws
@given(st.lists(st.dictionaries(TEXTS, PLAIN, min_size=1, max_size=3), max_size=3))
def test_what_pyyaml_writes_is_read_as_it_was(values: list[dict[str, object]]) -> None:
    text = yaml.safe_dump_all(values, allow_unicode=True, explicit_start=True)
    assert read(text) == values


@laws
@given(st.text(alphabet="ab:-{}[]'\"#&*!|>%.~ \n\t0\x00\u2028é"))
def test_any_text_is_read_or_refused(text: str) -> None:
    for one in read(text):
        assert not isinstance(one, YamlFault) or 1 <= one.line <= len(text.splitlines()) + 1
