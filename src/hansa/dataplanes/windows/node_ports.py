"""Node ports compared with the ports that Windows gives away by itself (windows-proxy F45). Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from hansa.dataplanes.windows.ownership import DEFAULT_NODE_PORTS
from hansa.hns.port_ranges import PortRange, TakenPorts
from hansa.rules.model import FrontendKey

# The API server does not tell nodes its range; node ports that lie elsewhere are looked at one by one.
NODE_PORT_RANGE = PortRange(DEFAULT_NODE_PORTS.start, DEFAULT_NODE_PORTS.stop - 1)
NAMED = 5


def port_conditions(
    taken: Collection[TakenPorts], node_ports: Collection[FrontendKey], held: Collection[FrontendKey] = ()
) -> Iterator[str]:
    """Sentences about node ports that may be somebody else's, and what to do.

    held: node ports for which HNS has a load balancer. A range of that one port alone is HNS's own reservation for it.
    """
    silent = [f"{one.family} {one.protocol}" for one in taken if one.dynamic is None]
    if silent:
        yield f"netsh does not tell the dynamic ports ({', '.join(silent)}): node ports are not compared with them"
    for one in taken:
        words = f"{one.family} {one.protocol}"
        own = {key.port for key in held if (key.family, key.protocol) == (one.family, one.protocol)}
        wanted = sorted(key.port for key in node_ports if (key.family, key.protocol) == (one.family, one.protocol))
        if one.dynamic is not None and one.dynamic.overlaps(NODE_PORT_RANGE):
            yield (
                f"the node-port range {NODE_PORT_RANGE} overlaps this machine's dynamic ports {one.dynamic} ({words}), "
                "of which Windows gives any to any program: move them, e.g. netsh interface "
                f"{str(one.family).lower()} set dynamicport {one.protocol} start=49152 num=16384"
            )
        elif one.dynamic is not None and (inside := [port for port in wanted if port in one.dynamic]):
            yield (
                f"{_named(inside)} among this machine's dynamic ports {one.dynamic} ({words}), of which Windows gives "
                "any to any program: choose others, or move the dynamic ports"
            )
        for excluded in one.excluded:
            if excluded.first == excluded.last and excluded.first in own:
                continue
            if inside := [port for port in wanted if port in excluded]:
                yield (
                    f"{_named(inside)} in the range {excluded} that is set aside for another component of this machine "
                    f"({words}): choose others, or free it; see netsh interface {str(one.family).lower()} show "
                    f"excludedportrange protocol={one.protocol}"
                )


def _named(ports: list[int]) -> str:
    shown = ", ".join(map(str, ports[:NAMED]))
    more = f" and {len(ports) - NAMED} more" if len(ports) > NAMED else ""
    return f"node port {shown} is" if len(ports) == 1 else f"node ports {shown}{more} are"
