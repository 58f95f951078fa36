"""A dataplane without a kernel: sockets of this process carry TCP and UDP, for tests, labs, and as an example.

What comes in: rules. What goes out: a socket that listens at each frontend, and connections to endpoints. Who calls it:
the engine, by the entry point `userspace` in the group `hansa.dataplanes`.
What it must never do: decide who may talk to whom (`verdict` asks the rules), or claim that a client is refused where
it is cut off (see its shortfalls).
Evidence: none is needed but Python's asyncio; without root it serves what this machine may bind, such as 127.0.0.0/8.
"""

from __future__ import annotations

from hansa.config import Config
from hansa.dataplanes.userspace.relay import UserspaceDataplane

__all__ = ["UserspaceDataplane", "open_dataplane"]


def open_dataplane(config: Config) -> UserspaceDataplane:
    """For the entry point; there is nothing that it could be told by settings."""
    del config
    return UserspaceDataplane()
