"""docs/linux/nftables.md against a kernel: its example is loaded, and what it shows is what `nft` lists there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.docs.pages import DOCS, ROOT, blocks, transcripts
from tests.host.linux.namespaces import Namespace, missing, namespace

from hansa.config import make_config
from hansa.dataplanes.nftables.apply import KernelRuleset, NftablesDataplane
from hansa.pipeline import Pipeline
from hansa.sources.files import read_once

WHY_NOT = missing()
pytestmark = [pytest.mark.host, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run")]

PAGE = DOCS / "linux" / "nftables.md"
# What `nft list` spells otherwise, as the page says.
SPELLINGS = (("priority dstnat", "priority -100"), ("priority srcnat", "priority 100"), ("timeout 10m", "timeout 600s"))


@pytest.fixture(scope="module")
def space() -> Iterator[Namespace]:
    """A namespace with the page's example, as `hansa run` would have put it there."""
    pipeline = Pipeline(make_config({"clusterCIDR": "10.1.0.0/16"}, node_name="n1"), frozenset())
    pipeline.apply(read_once(str(ROOT / "examples" / "shop.yaml")))
    message = pipeline.take()
    assert message is not None
    with namespace("page") as found:
        with closing(NftablesDataplane(found.call(KernelRuleset))) as plane:
            assert plane.sync(message, now=0.0, audit=False).ok
        yield found


def parts(listing: str) -> dict[str, list[str]]:
    """Each set, map and chain with its lines; elements one by one, in an order that does not depend on the kernel."""
    found: dict[str, list[str]] = {}
    for head, body in re.findall(r"^\t((?:map|set|chain) \S+) \{\n(.*?)^\t\}", listing, re.MULTILINE | re.DOTALL):
        for other, ours in SPELLINGS:
            body = body.replace(other, ours)
        lines = [line.strip() for line in body.splitlines()]
        if not head.startswith("chain"):
            lines = sorted(one.strip(" }") for line in lines for one in line.removeprefix("elements = {").split(","))
        found[head] = [line for line in lines if line]
    return found


def test_what_the_page_shows_is_what_the_kernel_holds(space: Namespace) -> None:
    kernel = parts(space.nft("list", "table", "ip", "hansa"))
    shown: dict[str, list[str]] = {}
    for block in blocks(PAGE):
        if block.language == "console":
            for command, output in transcripts(block.text):
                if command.startswith("sed -n"):
                    shown |= parts(output)
    assert len(shown) >= 10
    assert {name: kernel.get(name) for name in shown} == shown


@pytest.mark.parametrize(
    "line",
    [
        line
        for block in blocks(PAGE)
        if block.language == "sh"
        for line in block.text.splitlines()
        if line.startswith("nft ") and not line.startswith("nft monitor")
    ],
)
def test_the_commands_for_a_node_work(space: Namespace, line: str) -> None:
    assert "hansa" in space.nft(*shlex.split(line)[1:])
