"""From the table of an earlier hansa to today's: one transaction, and nobody notices.

The recorded table has the first layout, in which frontends led to verdicts. Its own shape tells it from today's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.docs.pages import ROOT
from tests.host.linux.hansa_node import lab_of_two
from tests.host.linux.namespaces import Lab, missing

from hansa.config import make_config
from hansa.dataplanes.base import Verb
from hansa.dataplanes.nftables.apply import KernelRuleset, NftablesDataplane
from hansa.net import IPFamily, Packet, Protocol, parse_address
from hansa.pipeline import Pipeline
from hansa.rules.model import RuleChanges
from hansa.sources.files import read_once
from hansa.testing import Client

WHY_NOT = missing()
pytestmark = [pytest.mark.host, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run")]

OLD = ROOT / "tests" / "recorded" / "nftables-verdict-map" / "shop.nft"
WEB = Packet(Client.P, parse_address("10.96.0.10"), Protocol.TCP, 80)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_of_two() as found:
        yield found


def desired() -> RuleChanges:
    pipeline = Pipeline(make_config({"clusterCIDR": "10.1.0.0/16"}, node_name="n1"), frozenset())
    pipeline.apply(read_once(str(ROOT / "examples" / "shop.yaml")))
    message = pipeline.take()
    assert message is not None
    return message


def test_an_earlier_layout_is_replaced_without_a_gap(lab: Lab) -> None:
    lab.node.nft("-f", "-", stdin=OLD.read_text(encoding="utf-8"))
    before, alive = lab.open(WEB)
    assert before.what == "forwarded"
    met: list[str] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            met.append(lab.send(WEB).what)

    client = threading.Thread(target=ask)
    kernel = lab.node.call(KernelRuleset)
    with closing(NftablesDataplane(kernel)) as plane:
        generation = kernel.generation()
        client.start()
        try:
            while len(met) < 10:
                done.wait(0.01)
            report = plane.sync(desired(), now=0.0, audit=False)
            asked = len(met)
            while len(met) < asked + 10:
                done.wait(0.01)
        finally:
            done.set()
            client.join()
        assert report.ok, report.conditions
        replaced = [one.change for one in report.results]
        assert [(one.verb, one.key) for one in replaced] == [(Verb.REPLACE, f"{family} hansa") for family in IPFamily]
        assert kernel.generation() == generation + 2, "one transaction for each family"
        assert set(met) == {"forwarded"}
        assert alive(), "an open connection goes on"
        quiet = NftablesDataplane(kernel).sync(desired(), now=1.0, audit=False)
        assert quiet.results == (), "a second start finds nothing to do"
