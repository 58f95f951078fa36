"""The demo tells the truth: it heals, its restart writes nothing, and no handle stays open."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hansa.demo import Story, run
from hansa.hns.emulator.builds import BUILDS
from hansa.lab.cni import PodNetwork


def told(network: str, build: str = "ws2022") -> str:
    text = io.StringIO()
    run(Console(file=text, width=1000, highlight=False), network=network, build=build)
    return text.getvalue()


@pytest.mark.parametrize("network", ["overlay", "l2bridge"])
def test_every_step_ends_as_desired(network: str) -> None:
    story = told(network)
    steps = story.split("\n\n")
    assert "drift found: 1 object" in story
    assert "not a single write" in story
    assert "this is a bug" not in story
    assert "open HNS handles: 0" in story
    endings = [step for step in steps if step[:2] in {f"{number}." for number in range(1, 6)}]
    assert len(endings) == 5
    assert all("everything as desired" in step for step in endings), story


@pytest.mark.parametrize("network", PodNetwork)
@pytest.mark.parametrize("build", BUILDS)
def test_it_ends_well_on_every_build(network: PodNetwork, build: str) -> None:
    story = Story(Console(file=io.StringIO(), width=1000), network, build)
    story.tell()
    assert [cost.writes for cost in story.costs][-1] == 0
    assert story.emulator.open_handles == 0
    frontends = {(b.frontend_vips, b.port_mappings[0].external_port) for b in story.emulator.load_balancers()}
    assert len(frontends) == 6  # kubernetes, kube-dns 53 and 9153, web's ClusterIP, NodePort and load balancer IP
    assert len(story.emulator.load_balancers()) == 7


def test_it_is_the_same_story_every_time() -> None:
    assert told("overlay") == told("overlay")
