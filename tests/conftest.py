"""Counts the numbered scenarios of service-semantics that a run has covered, and says so at its end; `--golden`."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, settings
from tests.command import hansa  # noqa: F401 - a fixture for all tests
from tests.guarantees.listing import listing
from tests.scenarios import summary

# How long an example takes tells of the machine, which others may be busy on, and not of hansa.
settings.register_profile("hansa", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hansa")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="write golden files anew instead of comparing (make golden)")


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    # Properties travel with the reports, also from the workers of pytest-xdist.
    for item in items:
        for mark in item.iter_markers("scenario"):
            item.user_properties.append(("scenario", (mark.args[0], mark.kwargs.get("without", ""))))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    covered: set[str] = set()
    in_full: set[str] = set()
    failed: set[str] = set()
    partly: dict[str, str] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, ()):
            for name, value in getattr(report, "user_properties", ()):
                if name == "say":  # a line that a test wants at the end, such as the seed that it drew
                    terminalreporter.write_line(value)
                if name != "scenario":
                    continue
                scenario, without = value
                if outcome != "passed":
                    failed.add(scenario)
                    continue
                covered.add(scenario)
                if without:
                    partly[scenario] = without
                else:
                    in_full.add(scenario)
    ran = (
        (report.nodeid, outcome)
        for outcome in ("passed", "skipped", "failed", "error")
        for report in terminalreporter.stats.get(outcome, ())
    )
    for line in listing(ran):
        terminalreporter.write_line(line)
    if covered or failed:
        partly = {name: part for name, part in partly.items() if name not in in_full}
        for line in summary(covered - failed, partly, failed):
            terminalreporter.write_line(line)
