"""Dashboard and alerts speak of metrics that hansa has: by name, labels, type, and the values that labels take."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from tests.deploy.manifests import DEPLOY, ROOT

from hansa.dataplanes.base import HostState
from hansa.metrics import METRICS, Metric, MetricType

promql = pytest.importorskip("promql_parser", reason="a parser of PromQL has no wheel for this system")

TABLE = {metric.name: metric for metric in METRICS}
# What the scraper adds; for the rest see hansa's table.
TARGET_LABELS = {"instance", "job"}
HISTOGRAM_SERIES = ("_bucket", "_sum", "_count")
RATES = {"rate", "increase"}
# Of these labels, the values that hansa gives them; a matcher with another one never matches.
VALUES: dict[tuple[str, str], set[str]] = {
    ("hansa_host_state", "state"): {each.value for each in HostState},
    ("hansa_health_check_ports", "state"): {"listening", "failed"},
    ("hansa_events_total", "outcome"): {"sent", "limited", "refused", "failed", "dropped"},
}


class Query(NamedTuple):
    """where: alert, or panel. shown: labels that a legend or a sentence shows."""

    where: str
    expression: str
    shown: frozenset[str]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana" / "hansa.json").read_text(encoding="utf-8"))
    return found


def alerts() -> list[dict[str, Any]]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text(encoding="utf-8"))
    return [rule for group in rules["groups"] for rule in group["rules"]]


def queries() -> list[Query]:
    found = [
        Query(
            f"panel {panel['title']}: {target['refId']}",
            target["expr"].replace("$__rate_interval", "5m"),
            frozenset(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])),
        )
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    ]
    for rule in alerts():
        shown = re.findall(r"\$labels\.(\w+)", "".join(rule["annotations"].values()))
        found.append(Query(f"alert {rule['alert']}", rule["expr"], frozenset(shown)))
    return found


def metric_of(series: str) -> Metric:
    if series in TABLE:
        assert TABLE[series].type is not MetricType.HISTOGRAM, (
            f"{series} is a histogram: name its _bucket, _sum or _count"
        )
        return TABLE[series]
    base = next((series.removesuffix(end) for end in HISTOGRAM_SERIES if series.endswith(end)), "")
    assert base in TABLE, f"hansa has no metric {series}"
    assert TABLE[base].type is MetricType.HISTOGRAM, f"{base} is no histogram"
    return TABLE[base]


def labels_of(series: str) -> set[str]:
    return {*metric_of(series).labels, *TARGET_LABELS, *(("le",) if series.endswith("_bucket") else ())}


def selectors(expression: Any, inside: str = "") -> Iterator[tuple[Any, str]]:
    """Every selector with the function that is applied to its range, "" = none."""
    match type(expression).__name__:
        case "VectorSelector":
            yield expression, inside
        case "MatrixSelector":
            yield expression.vector_selector, inside
        case "Call":
            for argument in expression.args:
                yield from selectors(argument, expression.func.name)
        case "AggregateExpr" | "ParenExpr" | "UnaryExpr":
            yield from selectors(expression.expr, inside)
        case "BinaryExpr":
            yield from selectors(expression.lhs, inside)
            yield from selectors(expression.rhs, inside)
        case "NumberLiteral" | "StringLiteral":
            pass
        case kind:
            raise AssertionError(f"{kind} is not used so far: teach this test")


def labels_out(expression: Any) -> set[str]:
    """Labels that the result has."""
    match type(expression).__name__:
        case "AggregateExpr":
            by = set(expression.modifier.labels) if expression.modifier is not None else set()
            unknown = by - labels_out(expression.expr)
            assert not unknown, f"{expression}: nothing inside has {sorted(unknown)}"
            return by
        case "Call":
            inner = set[str]().union(*(labels_out(each) for each in expression.args))
            if expression.func.name == "histogram_quantile":
                assert "le" in inner, f"{expression}: a quantile needs le"
                inner.discard("le")
            return inner
        case "BinaryExpr":
            return labels_out(expression.lhs) | labels_out(expression.rhs)
        case "NumberLiteral" | "StringLiteral":
            return set()
        case _:
            return set[str]().union(*(labels_of(selector.name) for selector, _ in selectors(expression)))


def check(query: Query) -> None:
    tree = promql.parse(query.expression)
    found = list(selectors(tree))
    assert found
    for selector, function in found:
        metric, known = metric_of(selector.name), labels_of(selector.name)
        for matcher in selector.matchers.matchers:
            assert matcher.name in known, f"{selector.name} has no label {matcher.name}"
            values = VALUES.get((metric.name, matcher.name))
            assert values is None or matcher.value in values, f"{matcher.name} is never {matcher.value}"
        counts = metric.type is not MetricType.GAUGE
        assert (function in RATES) is counts, f"{selector.name} is a {metric.type.value}, under {function or 'nothing'}"
    unknown = query.shown - labels_out(tree)
    assert not unknown, f"the result has no {sorted(unknown)}"


@pytest.mark.parametrize("query", queries(), ids=lambda each: each.where)
def test_every_expression_parses_and_speaks_of_hansas_metrics(query: Query) -> None:
    check(query)


@pytest.mark.parametrize(
    "wrong",
    [
        "sum(hansa_sync_total)",
        "rate(hansa_pending_objects[5m])",
        "sum(hansa_syncs_total)",
        "sum by (nodes) (hansa_pending_objects)",
        'hansa_host_state{state="broken"}',
        'hansa_host_state{kind="x"}',
        "hansa_sync_phase_duration_seconds",
        "histogram_quantile(0.5, sum by (phase) (rate(hansa_sync_phase_duration_seconds_bucket[5m])))",
        "sum(rate(hansa_pending_objects_bucket[5m]))",
        "sum by (le) (hansa_waiting_seconds)",
        "sum(rate(hansa_syncs_total[5m])",
    ],
)
def test_the_check_notices_what_is_wrong(wrong: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check(Query("", wrong, frozenset()))


def test_a_legend_that_shows_nothing_is_noticed() -> None:
    with pytest.raises(AssertionError, match="the result has no"):
        check(Query("", "sum by (kind) (rate(hansa_syncs_total[5m]))", frozenset({"result"})))


def test_the_dashboard_is_made_of_its_panels(tmp_path: Path) -> None:
    made = tmp_path / "hansa.json"
    subprocess.run([sys.executable, ROOT / "tools/make_dashboard.py", made], check=True, capture_output=True)
    assert made.read_bytes() == (DEPLOY / "grafana" / "hansa.json").read_bytes()


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["description"]
    numbers = [panel["id"] for panel in dashboard()["panels"]]
    assert len(numbers) == len(set(numbers))


def test_every_metric_of_hansas_own_that_says_how_it_is_is_shown() -> None:
    """A metric that nobody looks at is not worth its series; these few are for people who search for something."""
    rare = {
        *("hansa_conditions", "hansa_next_retry_seconds", "hansa_start_steps", "hansa_adopted_objects"),
        *("hansa_log_suppressed_total",),
    }
    shown = {
        metric_of(selector.name) for query in queries() for selector, _ in selectors(promql.parse(query.expression))
    }
    own = {metric.name for metric in METRICS if metric.is_own}
    assert own - {metric.name for metric in shown} == rare & own


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(names) == len(set(names))
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
