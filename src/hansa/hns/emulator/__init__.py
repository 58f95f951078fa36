"""An HNS in memory: the HnsApi of one Windows node, with its refusals, defects, outages and prices.

What comes in: the calls of `HnsApi`, a `Build` (which Windows), a clock that moves only when told.
What goes out: JSON texts and HRESULTs as HNS gives them; counts of calls and handles; `dump()` as JSON.
Who calls it: every test of the Windows dataplane, the demo, the lab, the CLI, and other programs through `server`.
What it must never do: accept what HNS is known to refuse, or behave differently in two runs with the same input.
On what evidence it stands: every refusal is a row of `refusals.RULES` and every switch a row of `builds.SWITCHES`, with
its grade: documented, seen in public, measured, or inferred.

>>> from hansa.hns.api import HnsError, HnsKind, Guid
>>> node = l2bridge_node(WS2019)
>>> str(node.version())
'9.5'
>>> try:
...     node.delete(HnsKind.LOAD_BALANCER, Guid("A90BE7D2-1F60-4C35-8A51-20B6D1C3E101"))
... except HnsError as error:
...     print(error)
HcnDeleteLoadBalancer: Element not found. (0x80070490)
"""

from hansa.hns.emulator.builds import (
    BUILDS,
    FUTURE,
    WIN11,
    WS2019,
    WS2022,
    WS2025,
    ZN23H2,
    Build,
    Grade,
    GuidSpelling,
    Ipv6Spelling,
    Machine,
    Modify,
    Spelling,
)
from hansa.hns.emulator.faults import (
    Call,
    Clock,
    Delay,
    Fault,
    LeakReservation,
    LeavePartial,
    LoseReply,
    ManualClock,
    Refuse,
)
from hansa.hns.emulator.nodes import (
    L2BRIDGE,
    L2BRIDGE_DUAL_STACK,
    OVERLAY,
    Layout,
    RemoteNode,
    l2bridge_node,
    overlay_node,
)
from hansa.hns.emulator.service import Emulator

__all__ = [
    "BUILDS",
    "FUTURE",
    "L2BRIDGE",
    "L2BRIDGE_DUAL_STACK",
    "OVERLAY",
    "WIN11",
    "WS2019",
    "WS2022",
    "WS2025",
    "ZN23H2",
    "Build",
    "Call",
    "Clock",
    "Delay",
    "Emulator",
    "Fault",
    "Grade",
    "GuidSpelling",
    "Ipv6Spelling",
    "Layout",
    "LeakReservation",
    "LeavePartial",
    "LoseReply",
    "Machine",
    "ManualClock",
    "Modify",
    "Refuse",
    "RemoteNode",
    "Spelling",
    "l2bridge_node",
    "overlay_node",
]
