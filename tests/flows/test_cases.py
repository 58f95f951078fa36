"""Every case of the corpus: decide() says what the case says, by the real pipeline from manifests to verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.case_format import Case, CaseNode, Connect, GoesOn, Step, all_cases, describe
from tests.scenarios import LAST_CASE, scenario_name

from hansa.errors import ConfigError
from hansa.rules.model import Forward


def _param(case: Case) -> object:
    part = {"without": "memory of connections"} if case.has_connections else {}
    return pytest.param(case, id=case.name, marks=pytest.mark.scenario(case.spec, **part))


WITH_STEPS = [_param(case) for case in all_cases() if not case.config_error]
REFUSED = [_param(case) for case in all_cases() if case.config_error]


def check_step(node: CaseNode, step: Step) -> None:
    for line in step.packets:
        verdict = node.decide(line.packet)
        found = describe(verdict, line.packet, like=line.expected, affinity=node.affinity(line.packet))
        assert found == line.expected, f"{step.about}: {line.text}"
    if step.frontends is not None:
        assert {str(key) for key in node.rules} == step.frontends, step.about
    if step.changed is not None:
        assert {str(key) for key in node.changed} == step.changed, step.about
    if step.conflicts is not None:
        found_conflicts = {f"{one.key} : {one.winner}, not {one.loser}" for one in node.pipeline.rules.conflicts}
        assert found_conflicts == step.conflicts, step.about


def check_connections(node: CaseNode, step: Step, met: dict[str, frozenset[str]]) -> None:
    """What rules can say of connections: where new ones may go, and that a remembered endpoint can still be chosen.

    `met` holds the endpoints that a named connection may have met.
    """
    for line in step.connections:
        match line:
            case Connect():
                verdict = node.decide(line.packet)
                assert isinstance(verdict, Forward), f"{step.about}: {line.text}"
                choice = frozenset(str(endpoint) for endpoint in verdict.endpoints)
                if line.one_of:
                    assert line.one_of == choice, f"{step.about}: {line.text}"
                if line.same_as:
                    assert met[line.same_as] <= choice, f"{step.about}: {line.text}"
                    assert len(met[line.same_as]) == 1 or node.affinity(line.packet), f"{step.about}: {line.text}"
                if line.name:
                    met[line.name] = line.one_of or met[line.same_as]
            case GoesOn():
                assert line.name in met, f"{step.about}: {line.text}"


@pytest.mark.parametrize("case", WITH_STEPS)
def test_rules_say_what_the_case_says(case: Case) -> None:
    node = CaseNode(case.make_config())
    met: dict[str, frozenset[str]] = {}
    for step in case.steps:
        node.take(step)
        check_step(node, step)
        check_connections(node, step, met)


@pytest.mark.parametrize("case", WITH_STEPS)
def test_the_order_of_arrival_does_not_matter(case: Case) -> None:
    """P8: within a step, the last object may as well come first."""
    node = CaseNode(case.make_config())
    for step in case.steps:
        node.take(replace(step, changes=step.changes[::-1]))
        check_step(node, step)


@pytest.mark.parametrize("case", REFUSED)
def test_the_proxy_refuses_to_start(case: Case) -> None:
    with pytest.raises(ConfigError) as caught:
        case.make_config()
    assert sorted({fault.field for fault in caught.value.faults}) == sorted(case.config_error)


def test_every_scenario_about_packets_is_a_case() -> None:
    cases = {case.name: case.spec for case in all_cases()}
    numbered = {name: spec for name, spec in cases.items() if spec.startswith("t")}
    wanted = [scenario_name(number) for number in range(1, LAST_CASE + 1)]
    assert numbered == {name: name for name in wanted}
