"""The reference says what the code says: its tables are written from it, and everything that can be set is on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.docs.pages import DOCS, MARK, PAGES, UPDATE, page_id
from tests.docs.reference import OWN, TABLES, commands, filled, public

from hansa import cli
from hansa.config import SETTINGS
from hansa.hns.emulator.builds import BUILDS, SWITCHES
from hansa.hns.emulator.refusals import RULES
from hansa.hns.errors import KNOWN_RESULTS, ErrorClass
from hansa.hns.features import Feature
from hansa.hns.quirks import QUIRKS

REFERENCE = DOCS / "reference"
WITH_TABLES = sorted(page for page in PAGES if MARK.search(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", WITH_TABLES, ids=page_id)
def test_tables_are_as_the_code_has_them(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if UPDATE:
        page.write_text(filled(text), encoding="utf-8")
    else:
        assert filled(text) == text, "run: HANSA_UPDATE_DOCS=1 pytest -n 0 tests/docs/test_reference.py"


def test_a_table_that_differs_from_the_code_is_found() -> None:
    stale = "<!-- table exit-codes -->\n\n| code | meaning |\n| --- | --- |\n| 0 | fine |\n\n<!-- end -->\n"
    assert filled(stale) != stale
    assert filled(filled(stale)) == filled(stale)


def test_every_table_stands_on_a_page() -> None:
    found = {match[2] for page in WITH_TABLES for match in MARK.finditer(page.read_text(encoding="utf-8"))}
    assert found == TABLES.keys()


def test_every_command_and_option_is_documented() -> None:
    text = (REFERENCE / "commands.md").read_text(encoding="utf-8")
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    for name, command in commands():
        for parameter in command.params:
            for spelling in parameter.opts:
                shown = spelling if spelling.startswith("-") else spelling.upper()
                assert f"`{shown}`" in sections[name], f"{name} {spelling}"


def test_every_exit_code_setting_and_error_is_documented() -> None:
    texts = {page.stem: page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md")}
    for code in cli.EXIT_CODES:
        assert f"\n| {code} | " in texts["commands"]
    for setting in SETTINGS:
        assert f"`{setting.path}`" in texts["settings"]
    for result in KNOWN_RESULTS:
        assert f"`0x{result:08X}`" in texts["errors"]
    for one in ErrorClass:
        assert f"| `{one.value}` |" in texts["errors"]
    for feature in Feature:
        assert f"| {feature} |" in texts["features"]
    for quirk in QUIRKS:
        assert f"`{quirk.key}`" in texts["quirks"]
    for name in (*RULES, *SWITCHES, *BUILDS):
        assert f"| `{name}` |" in texts["emulator"]


def test_settings_of_our_own_exist() -> None:
    assert {setting.path for setting in SETTINGS} >= OWN


@pytest.mark.parametrize(
    ("evidence", "shown"),
    [
        ("Azure/AKS#1375; hcn.md 5.9", "Azure/AKS#1375"),
        ("windows-proxy 0.4: seen in the field", "seen in the field"),
        ("windows-proxy H.10: unverified", "unverified"),
        ("inferred from the code's meaning (hcn.md 1.6)", "inferred from the code's meaning"),
        ("hcn.md 5.10 B1; kubernetes/kubernetes#74766 for the refusal", "kubernetes/kubernetes#74766 for the refusal"),
        ("hcn.md 4", ""),
    ],
)
def test_evidence_names_what_a_reader_can_look_up(evidence: str, shown: str) -> None:
    assert public(evidence) == shown
