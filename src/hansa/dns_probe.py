"""Whether DNS works through its frontend on this node; if not, its load balancers are made anew (windows-proxy F10).

HNS may list the right load balancer while the kernel drops its packets; only a packet tells. So a question is sent to
the cluster DNS's address, and to an endpoint behind it. If the endpoint answers and the address does not, three times
in a row, the service port's load balancers are made anew, at growing intervals. An address that has never answered from
here proves nothing: on many nodes the node itself reaches no ClusterIP. Off unless `winkernel.dnsProbePeriod` is set.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from hansa.api.objects import ServiceKey
from hansa.config import Config
from hansa.engine import Clock, Engine
from hansa.errors import DataplaneError
from hansa.logs import Logger
from hansa.net import Address, Protocol
from hansa.pipeline import Pipeline
from hansa.rules.model import Forward, FrontendKey, FrontendKind
from hansa.services.model import Endpoint, ServicePortName

_log = Logger("hansa.dns")

DNS_PORT = 53
ANSWER_WITHIN_S = 2.0  # the cluster DNS of a busy node answers within milliseconds; resolvers give up after 5 s
MISSES = 3
ENDPOINTS_ASKED = 2
# Between two times that the same frontend is made anew: it breaks connections, and may not help at all.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 3600.0
# Any answer will do, also that there is no such name; this one every cluster DNS knows by itself.
_NAME = ("kubernetes", "default", "svc", "cluster", "local")

Ask = Callable[[Address, int], Awaitable[bool]]


@dataclass(slots=True)
class Judgement:
    """What the answers of one frontend have shown so far. Pure; `now` is monotonic seconds."""

    works: bool = False  # it has answered at least once
    misses: int = 0
    renewals: int = 0
    not_before: float = field(default=float("-inf"))

    def judge(self, *, frontend: bool, endpoint: bool, now: float) -> bool:
        """Whether to make it anew. endpoint: whether one behind it has answered; not asked if the frontend has."""
        if frontend:
            self.works, self.misses = True, 0
            if now >= self.not_before + LONGEST_PAUSE_S:
                self.renewals = 0
            return False
        if not self.works or not endpoint:
            self.misses = 0
            return False
        self.misses += 1
        if self.misses < MISSES or now < self.not_before:
            return False
        self.misses = 0
        self.not_before = now + min(FIRST_PAUSE_S * 2.0**self.renewals, LONGEST_PAUSE_S)
        self.renewals += 1
        return True


@dataclass(frozen=True, slots=True)
class Target:
    frontend: FrontendKey
    owner: ServicePortName
    endpoints: tuple[Endpoint, ...]


def targets(pipeline: Pipeline, config: Config) -> list[Target]:
    """The DNS frontends of the critical services."""
    found = []
    for name in config.windows.critical:
        namespace, _, service = name.partition("/")
        for rule in pipeline.rules.rules_of(ServiceKey(namespace, service)):
            key = rule.key
            is_dns = (rule.kind, key.protocol, key.port) == (FrontendKind.CLUSTER_IP, Protocol.UDP, DNS_PORT)
            if is_dns and isinstance(rule.pod, Forward):
                found.append(Target(key, rule.owner, rule.pod.endpoints))
    return found


class DnsProbe:
    """Asks for as long as `run` runs; one per process."""

    def __init__(self, engine: Engine, config: Config, *, clock: Clock, ask: Ask | None = None) -> None:
        self._engine = engine
        self._config = config
        self._clock = clock
        self._ask = ask or answers
        self._judgements: dict[FrontendKey, Judgement] = {}

    async def run(self) -> None:
        never = asyncio.Event()
        while True:
            await self._clock.wait(never, self._clock.now() + self._config.windows.dns_probe_period_s)
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - the probe is an extra: it must never stop, nor stop anything
                _log.exception("DNS cannot be tried", error)

    async def look(self) -> None:
        """One round over all targets."""
        async with self._engine.reading() as pipeline:
            found = targets(pipeline, self._config)
        known = {target.frontend for target in found}
        self._judgements = {key: one for key, one in self._judgements.items() if key in known}
        for target in found:
            judgement = self._judgements.setdefault(target.frontend, Judgement())
            if await self._is_broken(target, judgement):
                await self._renew(target)

    async def _is_broken(self, target: Target, judgement: Judgement) -> bool:
        assert target.frontend.address is not None
        through = await self._ask(target.frontend.address, target.frontend.port)
        behind = False
        for endpoint in target.endpoints[:ENDPOINTS_ASKED] if not through and judgement.works else ():
            behind = behind or await self._ask(endpoint.address, endpoint.port)
        return judgement.judge(frontend=through, endpoint=behind, now=self._clock.now())

    async def _renew(self, target: Target) -> None:
        _log.warning(
            "DNS does not answer here, its endpoints do: made anew", frontend=target.frontend, owner=target.owner
        )
        try:
            await self._engine.renew([target.owner])
        except DataplaneError as error:
            _log.warning("DNS cannot be made anew", owner=target.owner, err=str(error))


# --- the question ---


async def answers(address: Address, port: int) -> bool:
    """Whether anything answers a question about a name there, by UDP and in time."""
    loop = asyncio.get_running_loop()
    number = secrets.token_bytes(2)
    heard: asyncio.Future[bool] = loop.create_future()
    try:
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Listener(number, heard), remote_addr=(str(address), port)
        )
    except OSError:
        return False
    try:
        transport.sendto(question(number))
        return await asyncio.wait_for(heard, ANSWER_WITHIN_S)
    except (TimeoutError, OSError):
        return False
    finally:
        transport.close()


def question(number: bytes) -> bytes:
    """One question of type A, recursion desired. Evidence: RFC 1035 4.1."""
    header = number + bytes((1, 0, 0, 1, 0, 0, 0, 0, 0, 0))
    name = b"".join(bytes((len(label),)) + label.encode() for label in _NAME)
    return header + name + bytes((0, 0, 1, 0, 1))


class _Listener(asyncio.DatagramProtocol):
    def __init__(self, number: bytes, heard: asyncio.Future[bool]) -> None:
        self._number = number
        self._heard = heard

    def datagram_received(self, data: bytes, _: object) -> None:
        is_answer = len(data) > 2 and data[:2] == self._number and data[2] & 0x80
        if is_answer and not self._heard.done():
            self._heard.set_result(True)

    def error_received(self, error: Exception) -> None:
        """Nobody listens there."""
        with suppress(asyncio.InvalidStateError):
            self._heard.set_exception(OSError(str(error)))
