"""Node ports compared with the ports that Windows gives away by itself (windows-proxy F45). Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from hansa.dataplanes.windows.compare import Situation
from hansa.dataplanes.windows.ownership import DEFAULT_NODE_PORTS
from hansa.hns.port_ranges import PortRange, TakenPorts
from hansa.wording import named

# The API server does not tell nodes its range; node ports that lie elsewhere are looked at one by one.
NODE_PORT_RANGE = PortRange(DEFAULT_NODE_PORTS.start, DEFAULT_NODE_PORTS.stop - 1)


def unread(error: OSError) -> str:
    """The sentence about ports of which the system does not tell."""
    why = error.strerror or error
    return f"the ports that this machine gives away cannot be read: {why}; node ports are not compared with them"


def port_conditions(taken: Collection[TakenPorts], situation: Situation) -> Iterator[str]:
    """Sentences about node ports that may be somebody else's, and what to do.

    A range of one port alone, for which HNS has a load balancer, is HNS's own reservation for it.
    """
    node_ports = situation.wanted.node_ports
    held = [key for key in node_ports if situation.observed.at_frontend(key)]
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
    return f"node port {named(ports)} is" if len(ports) == 1 else f"node ports {named(ports)} are"
