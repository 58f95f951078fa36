"""Listings of HNS objects in the layout that Windows administrators know from hnsdiag.exe. Evidence: hcn.md 7.1.

Two layouts: tables as Windows Server 2019 prints them, blocks as later releases do. Column widths are not published;
here they follow the content.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

import msgspec

from hansa.hns.schema import HnsEndpoint, HnsLoadBalancer, HnsNetwork, HnsObject, to_document


class DiagLayout(enum.Enum):
    """TABLE: Windows Server 2019. BLOCKS: Windows Server 2022 and later."""

    TABLE = "table"
    BLOCKS = "blocks"


def list_networks(networks: Iterable[HnsNetwork], layout: DiagLayout = DiagLayout.TABLE) -> str:
    rows = [(network.name, network.guid) for network in networks]
    if layout is DiagLayout.BLOCKS:
        return _blocks((("Network", guid), ("Name", name)) for name, guid in rows)
    return _table("Networks:", ("Name", "ID"), rows)


def list_endpoints(
    endpoints: Iterable[HnsEndpoint], networks: Iterable[HnsNetwork], layout: DiagLayout = DiagLayout.TABLE
) -> str:
    """networks: for the names; an endpoint of a network that is not among them shows the network's id."""
    names = {network.guid: network.name for network in networks}
    rows = [(each.name, each.guid.lower(), names.get(each.network) or each.network) for each in endpoints]
    if layout is DiagLayout.BLOCKS:
        return _blocks((("Endpoint", guid), ("Name", name), ("Network", network)) for name, guid, network in rows)
    return _table("Endpoints:", ("Name", "ID", "Virtual Network Name"), rows)


def list_load_balancers(balancers: Iterable[HnsLoadBalancer], layout: DiagLayout = DiagLayout.TABLE) -> str:
    """One on the node's own addresses (NodePort) has a blank where the VIPs are."""
    rows = [
        (
            each.guid.lower(),
            " ".join(str(vip) for vip in each.frontend_vips),
            " ".join(endpoint.lower() for endpoint in each.endpoints),
        )
        for each in balancers
    ]
    if layout is DiagLayout.BLOCKS:
        return _blocks(
            (("Load Balancer", guid), ("Virtual IPs", vips), ("Direct IP IDs", direct)) for guid, vips, direct in rows
        )
    return _table("LoadBalancers:", ("ID", "Virtual IPs", "Direct IP IDs"), rows, separator=" | ")


def list_json(objects: Iterable[HnsObject]) -> str:
    """All objects as one JSON list of HCN documents."""
    documents = [to_document(value) for value in objects]
    return msgspec.json.format(msgspec.json.encode(documents)).decode() + "\n"


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], separator: str = "   ") -> str:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        separator.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join((title, *lines)) + "\n"


def _blocks(blocks: Iterable[Sequence[tuple[str, str]]]) -> str:
    """First line of a block at the margin, the others indented, colons in one column."""
    texts = []
    for block in blocks:
        lines = [f"{'' if index == 0 else '  '}{name}" for index, (name, _) in enumerate(block)]
        width = max(17, *(len(line) + 1 for line in lines))
        texts.append(
            "".join(
                f"{line.ljust(width)}: {value}".rstrip() + "\n" for line, (_, value) in zip(lines, block, strict=True)
            )
        )
    return "\n".join(texts)
