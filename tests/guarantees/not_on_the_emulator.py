"""What windows-proxy section F promises and no emulator can show, wholly or in part, with the reason.

`test_every_row.py` sees to it that each row of the sheet is tested, listed here, or both.
"""

from __future__ import annotations

from dataclasses import dataclass

NODE = "docs/windows/verify-on-a-node.md"


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """whole: nothing of the row is tested here. reason: why. where: the page or part that will show it."""

    whole: bool
    reason: str
    where: str = NODE


ELSEWHERE: dict[str, Elsewhere] = {
    "F10": Elsewhere(
        False,
        "that HNS lists the right content and the kernel holds another: whether a load balancer made anew heals it",
    ),
    "F27": Elsewhere(False, "which field of a load balancer tells that the switch has not applied it is not known"),
    "F42": Elsewhere(False, "that a wildcard listener blocks a VIP's port is a property of Server 2019's sockets"),
    "F43": Elsewhere(False, "how a leak shows in the excluded port range has been seen on 17763.8146 only"),
    "F45": Elsewhere(
        False, "what netsh prints on each build, and whether HNS's own reservations show as excluded ranges"
    ),
    "F62": Elsewhere(True, "a missing rule in the virtual switch; not hansa's to repair, but its guide must say so"),
    "F69": Elsewhere(False, "whether flows survive a Modify, and what flag 16 does to them, only packets can tell"),
    "F80": Elsewhere(False, "flows that the switch keeps after their backend has left are not visible through HNS"),
    "F82": Elsewhere(True, "hairpin on l2bridge is the switch's doing; F56 removes the part that hansa could cause"),
    "F83": Elsewhere(False, "whether packets reach a HostProcess pod through the stand-in depends on the network type"),
    "F93": Elsewhere(False, "memory and CPU of the HNS process over days: a soak test on a node"),
}
