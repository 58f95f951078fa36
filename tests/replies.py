"""Answers over HTTP, as tests look at them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass
class Reply:
    code: int
    headers: dict[str, str]
    text: str

    @property
    def data(self) -> Any:
        return json.loads(self.text)


async def ask(client: aiohttp.ClientSession, url: str, *, method: str = "GET", **more: Any) -> Reply:
    """more: for `aiohttp.ClientSession.request`."""
    async with client.request(method, url, **more) as response:
        return Reply(response.status, dict(response.headers), await response.text())
