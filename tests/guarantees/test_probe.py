"""tools/probe_hns.py: the questions of docs/windows/verify-on-a-node.md, answered by each build of the emulator."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from tools.probe_hns import Probe

from hansa.hns.emulator import BUILDS, OVERLAY, Build, Emulator, Modify, l2bridge_node, overlay_node
from hansa.hns.schema import HnsEndpoint


def ask(emulator: Emulator, load: int = 0) -> dict[str, str]:
    return {one.question: one.answer for one in Probe(emulator, emulator.networks()[0].name).run(load)}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_the_answers_are_the_switches_of_the_build(build: Build) -> None:
    told = ask(l2bridge_node(build), load=3)
    assert told["a GUID of our choice is kept"] == str(build.keeps_caller_guid)
    assert told["Owner is told back"] == str(build.echoes_owner)
    assert (
        told["Modify of the endpoints"]
        == {
            Modify.WORKS: "works",
            Modify.UNSUPPORTED: "0x80004001",
            Modify.DOES_NOTHING: Modify.DOES_NOTHING.value,
        }[build.modify]
    )
    assert told["a load balancer of an endpoint that does not exist"] == f"0x{build.unknown_endpoint:08X}"


def test_other_switches_give_other_answers() -> None:
    build = replace(
        BUILDS["future"],
        keeps_caller_guid=False,
        echoes_owner=False,
        refuses_delete_of_used_endpoint=False,
        modify_changes_everything=True,
        allows_remote_twins=True,
        lb_protocols=frozenset({6, 17, 132}),
    )
    told = ask(l2bridge_node(build))
    assert told["a GUID of our choice is kept"] == told["Owner is told back"] == "False"
    assert told["deleting an endpoint that a load balancer uses"] == "S_OK"
    assert told["Modify of the distribution"] == "works"
    assert told["a second remote endpoint with one address"] == "S_OK"
    assert told["SCTP (H.10)"] == "S_OK"


@pytest.mark.parametrize("make", [l2bridge_node, overlay_node], ids=["l2bridge", "overlay"])
def test_it_leaves_nothing_behind_and_names_real_switches(make: object) -> None:
    emulator: Emulator = make()  # type: ignore[operator]
    before = emulator.endpoints(), emulator.load_balancers()
    answers = Probe(emulator, emulator.networks()[0].name).run(2)
    assert (emulator.endpoints(), emulator.load_balancers()) == before
    assert all(isinstance(each, HnsEndpoint) for each in before[0])
    assert emulator.open_handles == 0
    assert {one.switch for one in answers if one.switch} <= {each.name for each in fields(Build)}
    assert OVERLAY.network
