#!/usr/bin/env python3
"""Write deploy/grafana/hansa.json out of panels.yaml beside it; the rest of Grafana's format is always the same.

    tools/make_dashboard.py [FILE]      FILE instead of deploy/grafana/hansa.json

Names, labels and types of metrics are checked against hansa's own table by tests/deploy/test_monitoring.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "grafana"
WIDTH, HEIGHT, STAT_HEIGHT = 24, 7, 4  # of Grafana's grid, and of panels in it
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
HERE = 'instance=~"$instance"'

Document = dict[str, Any]


def quantiles(metric: str, by: str) -> list[Document]:
    grouped = f"le, {by}" if by else "le"
    rates = f"sum by ({grouped}) (rate({metric}_bucket{{{HERE}}}[$__rate_interval]))"
    legend = f" {{{{{by}}}}}" if by else ""
    return [{"expr": f"histogram_quantile({q}, {rates})", "legend": f"p{q * 100:g}{legend}"} for q in (0.5, 0.99)]


def layout() -> Iterator[Document]:
    """Rows of panels from left to right, as many beside each other as fit."""
    number, y = 0, 0
    for row in yaml.safe_load((FOLDER / "panels.yaml").read_text(encoding="utf-8")):
        number += 1
        at = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        yield {"type": "row", "id": number, "title": row["row"], "collapsed": False, "panels": [], "gridPos": at}
        y += 1
        x = 0
        height = STAT_HEIGHT if all(panel.get("kind") == "stat" for panel in row["panels"]) else HEIGHT
        for panel in row["panels"]:
            columns = panel.get("columns", 8)
            if x + columns > WIDTH:
                x, y = 0, y + height
            number += 1
            yield as_grafana(panel, number) | {"gridPos": {"x": x, "y": y, "w": columns, "h": height}}
            x += columns
        y += height


def as_grafana(panel: Document, number: int) -> Document:
    steps: list[Document] = [{"color": "green", "value": None}]
    if "badAbove" in panel:
        steps.append({"color": "red", "value": panel["badAbove"]})
    queries = panel.get("queries") or quantiles(panel["quantiles"], panel.get("by", ""))
    return {
        "type": panel.get("kind", "timeseries"),
        "id": number,
        "title": panel["title"],
        "description": panel["about"],
        "datasource": SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": query["expr"],
                "legendFormat": query.get("legend", "__auto"),
            }
            for index, query in enumerate(queries)
        ],
        "fieldConfig": {
            "defaults": {
                "unit": panel.get("unit", "short"),
                "min": 0,
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
        "options": {},
    }


def dashboard() -> Document:
    instances = {
        "name": "instance",
        "label": "node",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": "label_values(hansa_build_info, instance)", "refId": "instance"},
        "definition": "label_values(hansa_build_info, instance)",
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
        "sort": 1,
    }
    return {
        "title": "hansa",
        "uid": "hansa",
        "tags": ["kubernetes", "hansa"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "1m",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "data source", "type": "datasource", "query": "prometheus"},
                instances,
            ]
        },
        "panels": list(layout()),
    }


def main(arguments: list[str]) -> None:
    target = Path(arguments[0]) if arguments else FOLDER / "hansa.json"
    target.write_text(json.dumps(dashboard(), indent=2) + "\n", encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main(sys.argv[1:])
