"""Tables for people and plain data for JSON, made of the values that the stages hand out. Pure.

Tables are rich's; on a terminal they are coloured, in a pipe they are plain text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from hansa.dataplanes.base import Change, HostState, Outcome, Shortfall, SyncReport, Verb
from hansa.dataplanes.windows.render import Rendered
from hansa.dataplanes.windows.table import Row
from hansa.explain.checkup import Check
from hansa.explain.defects import DEFECTS, Severity
from hansa.explain.doctor import Diagnosis

_VERB_STYLES = {Verb.CREATE: "green", Verb.MODIFY: "yellow", Verb.REPLACE: "magenta", Verb.DELETE: "red"}


def _add_plain(table: Table, *cells: str) -> None:
    """Cells as they are: rich would take the brackets of an IPv6 frontend for markup, and swallow it."""
    table.add_row(*map(Text, cells))


def service_table(rows: Iterable[Row]) -> Table:
    """Service port, frontend, HNS load balancer, its flags, its endpoints: one line per frontend."""
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for heading in ("SERVICE PORT", "FRONTEND", "LOAD BALANCER", "FLAGS", "PORT", "ENDPOINTS", "STATE"):
        table.add_column(heading, overflow="fold")
    previous: tuple[str, ...] = ()
    for row in rows:
        _add_plain(
            table,
            "" if row.owners == previous else "\n".join(row.owners),
            f"{row.kind} {row.frontend}",
            row.guid[:8].lower() if row.guid else "-",
            " ".join(flag.lower().replace("_", "-") for flag in row.flags) or "-",
            str(row.internal_port) if row.internal_port else "-",
            "\n".join(
                f"{endpoint.address} {endpoint.guid[:8].lower() if endpoint.guid else '-'} ({endpoint.place})"
                for endpoint in row.endpoints
            )
            or "-",
            row.state or "as desired",
        )
        previous = row.owners
    return table


def rendered_table(found: Rendered) -> Table:
    """What a host would have to hold, without a host: load balancers, then the endpoints that hansa makes."""
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for heading in ("FOR", "OBJECT", "FLAGS", "PORT", "SOURCE VIP", "ENDPOINTS"):
        table.add_column(heading, overflow="fold")
    for one in found.load_balancers:
        flags = [flag.name for flags in (one.lb_flags, one.mapping_flags) for flag in flags if flag.name]
        backends = [f"{address}{' (local)' if address in one.local else ''}" for address in one.backends]
        _add_plain(
            table,
            "\n".join(one.owners),
            f"load balancer {one.key}",
            " ".join(flag.lower().replace("_", "-") for flag in flags) or "-",
            str(one.internal_port),
            str(one.source_vip or "not known"),
            "\n".join(backends),
        )
    for endpoint in found.endpoints:
        provider = f"on node {endpoint.provider}" if endpoint.provider else "-"
        _add_plain(table, "", f"{endpoint.kind.value} {endpoint.address}", "-", "-", "-", provider)
    return table


def change_table(changes: Sequence[Change]) -> Table:
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for heading in ("STEP", "OBJECT", "KEY", "FOR", "WHY"):
        table.add_column(heading, overflow="fold")
    for change in changes:
        verb = change.verb.value + (" (gap in traffic)" if change.disruptive else "")
        style = _VERB_STYLES[change.verb]
        rest = (change.kind, change.key, "\n".join(change.owners) or "-", change.why)
        table.add_row(Text(verb, style=style), *map(Text, rest))
    return table


def change_data(changes: Iterable[Change]) -> list[dict[str, Any]]:
    return [
        {
            "verb": change.verb.value,
            "kind": change.kind,
            "key": change.key,
            "why": change.why,
            "disruptive": change.disruptive,
            "owners": list(change.owners),
        }
        for change in changes
    ]


_SEVERITY_STYLES = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}


def check_table(checks: Iterable[Check]) -> Table:
    """What was looked at, in the order in which it was; what is wrong with the remedy beside it."""
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for heading in ("RESULT", "WHERE", "WHAT", "WHAT TO DO"):
        table.add_column(heading, overflow="fold")
    for one in checks:
        style = _SEVERITY_STYLES[one.severity] if one.severity is not None else "green"
        word = one.severity.value if one.severity is not None else "well"
        table.add_row(Text(word, style=style), Text(one.topic.value), Text(one.text), Text(one.remedy or "-"))
    return table


def check_data(checks: Iterable[Check]) -> list[dict[str, Any]]:
    return [
        {
            "topic": one.topic.value,
            "result": one.severity.value if one.severity is not None else "well",
            "text": one.text,
            "remedy": one.remedy,
        }
        for one in checks
    ]


def finding_table(diagnosis: Diagnosis) -> Table:
    """One line per finding; the meaning of each defect and what to do by hand are in `finding_notes`."""
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for heading in ("SEVERITY", "FOR", "OBJECT", "FINDING", "KNOWN AS", "HANSA WOULD", "ID"):
        table.add_column(heading, overflow="fold")
    for one in diagnosis.findings:
        style = _SEVERITY_STYLES[one.severity]
        table.add_row(
            Text(one.severity.value, style=style),
            Text("\n".join(one.owners) or "-"),
            Text(f"{one.kind} {one.key}"),
            Text(f"{one.symptom.value}: {one.text}"),
            Text(one.defect.known_as or "-"),
            Text(one.step),
            Text("\n".join(guid.lower() for guid in one.guids) or "-"),
        )
    return table


def finding_notes(diagnosis: Diagnosis) -> list[str]:
    """Each symptom that was found, once: what it means, where it is known from, what to do without hansa."""
    lines = []
    for symptom in dict.fromkeys(one.symptom for one in diagnosis.findings):
        defect = DEFECTS[symptom]
        known = f" ({', '.join(defect.issues)})" if defect.issues else ""
        lines.append(f"{symptom.value}: {defect.meaning}{known}")
        lines.append(f"  by hand: {defect.remedy}")
    return lines


def finding_data(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "findings": [
            {
                "severity": one.severity.value,
                "symptom": one.symptom.value,
                "kind": one.kind,
                "key": one.key,
                "ids": [guid.lower() for guid in one.guids],
                "owners": list(one.owners),
                "text": one.text,
                "step": one.step,
                "knownAs": one.defect.known_as or None,
                "upstream": list(one.defect.issues),
                "meaning": one.defect.meaning,
                "remedy": one.defect.remedy,
            }
            for one in diagnosis.findings
        ],
        "foreign": [
            {"kind": one.kind, "key": one.key, "id": one.guid.lower(), "why": one.why} for one in diagnosis.foreign
        ],
    }


def shortfall_lines(shortfalls: Iterable[Shortfall]) -> list[str]:
    """One line each; several frontends of one owner that fall short in the same way share a line."""
    grouped: dict[tuple[str, str, str, str, str], list[str]] = {}
    for one in shortfalls:
        identity = (str(one.owner or ""), one.feature, one.text, one.needed, one.found)
        grouped.setdefault(identity, []).append(str(one.frontend) if one.frontend else "")
    lines = []
    for (owner, feature, text, needed, found), frontends in grouped.items():
        where = ", ".join(frontend for frontend in frontends if frontend)
        tail = f" (needs {needed}, found {found})" if needed else ""
        lines.append(f"{feature}: {owner}{' at ' + where if where else ''}: {text}{tail}")
    return lines


def shortfall_data(shortfalls: Iterable[Shortfall]) -> list[dict[str, Any]]:
    return [
        {
            "feature": one.feature,
            "frontend": str(one.frontend) if one.frontend else None,
            "owner": str(one.owner) if one.owner else None,
            "text": one.text,
            "needed": one.needed,
            "found": one.found,
        }
        for one in shortfalls
    ]


def report_line(report: SyncReport) -> str:
    """What a sync did, in one sentence: `3 created, 1 modified; 17 host calls; everything as desired`."""
    done: dict[str, int] = {}
    failed = 0
    for result in report.results:
        if result.outcome is Outcome.DONE:
            done[_PAST[result.change.verb]] = done.get(_PAST[result.change.verb], 0) + 1
        elif result.outcome is Outcome.FAILED:
            failed += 1
    parts = [f"{count} {verb}" for verb, count in done.items()] or ["nothing written"]
    if failed:
        parts.append(f"{failed} failed")
    if report.state is not HostState.HEALTHY:
        ending = f"host {report.state.value}"
    elif report.pending:
        ending = f"{len(report.pending)} pending"
    else:
        ending = "everything as desired"
    return f"{', '.join(parts)}; {report.host_calls} host calls; {ending}"


_PAST = {Verb.CREATE: "created", Verb.MODIFY: "modified", Verb.REPLACE: "replaced", Verb.DELETE: "deleted"}
