"""Ports of this machine, for servers that have to be told theirs."""

from __future__ import annotations

import socket


def free_port() -> int:
    """One of TCP that nobody had a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
