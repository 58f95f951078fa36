"""`hansa why`: the reasons for an endpoint, a frontend or a load balancer, on a node or in a lab."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hansa.cli import lab
from hansa.errors import ConfigError, Fault

if TYPE_CHECKING:
    from hansa.explain.why import Case, Line, Question
    from hansa.lab.cluster import Cluster


def ask_lab(file: Path, question: str, node_name: str, faults: list[str] | None) -> dict[str, tuple[Line, ...]]:
    """The answer of every node of a lab, or of one. Raises ConfigError."""
    from hansa.explain.why import read_question, why

    asked = read_question(question)
    cluster = lab.open_lab(file, faults)
    names = [node_name] if node_name else [node.name for node in cluster.lab.nodes]
    unknown = set(names) - {node.name for node in cluster.lab.nodes}
    if unknown:
        known = ", ".join(node.name for node in cluster.lab.nodes)
        raise ConfigError(Fault("--node-name", f"no node is called {node_name!r}", f"the lab has {known}"))
    return {
        name: why(_case(cluster, name), asked) for name in names if _fits(cluster, name, asked, alone=bool(node_name))
    }


def _fits(cluster: Cluster, name: str, question: Question, *, alone: bool) -> bool:
    """Linux nodes of a lab hold no load balancers; asked by name they say so."""
    from hansa.explain.why import AboutBalancer

    return alone or name in cluster.windows or not isinstance(question, AboutBalancer)


def _case(cluster: Cluster, name: str) -> Case:
    from hansa.explain.why import Case

    node = cluster.windows.get(name)
    pipeline = cluster.linux[name] if node is None else node.pipeline
    message = pipeline.take(full=True)
    assert message is not None, "a lab's source has told everything"
    if node is None:
        return Case(pipeline, message)
    situation = node.situation
    return Case(pipeline, message, situation, situation.wanted.shortfalls)


def print_answers(answers: dict[str, tuple[Line, ...]], output: str) -> None:
    """As aligned text, under each node's name if there are several, or as JSON. Raises ConfigError."""
    from hansa.explain.why import why_data, why_lines

    forms: dict[str, Callable[[], str]] = {
        "json": lambda: json.dumps({node: why_data(lines) for node, lines in answers.items()}, indent=2),
        "table": lambda: "\n".join(
            line
            for node, lines in answers.items()
            for line in ((f"{node}:",) if len(answers) > 1 else ()) + tuple(why_lines(lines))
        ),
    }
    if output not in forms:
        raise ConfigError(Fault("-o", f"{output!r} is no output form", "give table or json"))
    print(forms[output]())
