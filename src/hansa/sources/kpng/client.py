"""KpngSource: a brain as a source, over gRPC. Connects, asks, waits, reports, and starts again when the stream ends.

Losing the brain loses nothing: what it said stays in force, and after the next Reset only differences are passed on.
The next batch is asked for when the engine has dealt with the last, so a slow host makes for larger batches and not for
a queue (W15).
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError, Message

from hansa.config import Config
from hansa.errors import ConfigError, Fault
from hansa.sources import News
from hansa.sources.kpng import node
from hansa.sources.kpng.following import ClusterFollowing, Following, LocalFollowing, NodeFollowing
from hansa.sources.kpng.node import NodeReport
from hansa.sources.kpng.target import GLOBAL, LOCAL, NODE, Target
from hansa.sources.kpng.wire import globalv1, localv1, nodev1

__all__ = ["ClientSettings", "KpngSource", "read_nodes"]

_logger = logging.getLogger("hansa.sources.kpng")

_PATHS = {NODE: "/hansa.node.v1.Node/Watch", LOCAL: "/localv1.Sets/Watch", GLOBAL: "/globalv1.Sets/Watch"}
_NODES_PATH = "/hansa.node.v1.Brain/Nodes"
_NAMES = {NODE: "hansa.node.v1", LOCAL: "localv1", GLOBAL: "globalv1"}
# A brain may send larger messages than gRPC's 4 MiB (W18).
_RECEIVE_BYTES = 64 * 1024 * 1024
READ_NODES_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Seconds. A delay is drawn from the upper half of the current one, so that nodes do not come back all at once."""

    first_delay_s: float = 0.5
    longest_delay_s: float = 10.0
    keepalive_s: float = 20.0
    keepalive_timeout_s: float = 10.0


class _Unavailable(Exception):
    """The brain does not offer this API."""


class KpngSource:
    """One brain, followed for this node (or, by globalv1, for the cluster).

    api: by which API it is followed now, "" = by none. revision: of the last batch, by the node API; 0 = none.
    """

    def __init__(self, target: Target, config: Config, settings: ClientSettings | None = None) -> None:
        """Raises ConfigError if the files for TLS cannot be used."""
        self._target = target
        self._config = config
        self._settings = settings or ClientSettings()
        self._status = f"connecting to {target.address}"
        self._is_connected = False
        self._wait: Callable[[], Awaitable[None]] | None = None
        self._report: NodeReport | None = None
        self._outgoing: asyncio.Queue[Message] | None = None
        self._following: Following[Any] | None = None
        self._told_lost: set[str] = set()
        self.api = ""
        self.revision = 0
        self.connects = 0
        if target.is_secure:
            _credentials(target)

    @property
    def status(self) -> str:
        trouble = self._following.trouble if self._following is not None else {}
        more = f"; cannot be read: {', '.join(sorted(trouble)[:3])}" if trouble else ""
        return self._status + more

    @property
    def troubled(self) -> bool:
        return not self._is_connected or bool(self._following is not None and self._following.trouble)

    def pace_by(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Ask for the next batch only after `wait` has returned: the engine has dealt with the last."""
        self._wait = wait

    def tell(self, report: NodeReport) -> None:
        """Let the brain know, now if it can hear, and again after each reconnect."""
        if report == self._report:
            return
        self._report = report
        if self._outgoing is not None and self.api == NODE:
            message = nodev1.WatchRequest(
                node_name=self._config.node_name, report_only=True, report=node.report_message(report)
            )
            self._outgoing.put_nowait(message)

    async def changes(self) -> AsyncIterator[tuple[News, ...]]:
        delay_s = self._settings.first_delay_s
        while True:
            apis = (self._target.api,) if self._target.api else (NODE, LOCAL)
            reason = ""
            for api in apis:
                synced = False
                try:
                    async with aclosing(self._follow(api)) as batches:
                        async for batch in batches:
                            synced = True
                            if batch:
                                yield batch
                    reason = "the brain has ended the stream"
                except _Unavailable as error:
                    reason = str(error)
                    continue
                except (grpc.aio.AioRpcError, ConfigError) as error:
                    reason = _reason(error)
                if synced:
                    delay_s = self._settings.first_delay_s
                break
            self._is_connected, self.api = False, ""
            pause_s = delay_s * random.uniform(0.5, 1.0)
            self._status = f"retrying in {pause_s:.1f} s: {self._target.address}: {reason}"
            _logger.info("brain away address=%s retry_in_s=%.1f error=%r", self._target.address, pause_s, reason)
            await asyncio.sleep(pause_s)
            delay_s = min(delay_s * 2, self._settings.longest_delay_s)

    async def _follow(self, api: str) -> AsyncGenerator[tuple[News, ...], None]:
        """One stream: a batch for each request. Ends, or raises AioRpcError, when the stream does."""
        following = self._take_over(api)
        outgoing = self._outgoing = asyncio.Queue()
        channel = _channel(self._target, self._settings)
        writer: asyncio.Task[None] | None = None
        try:
            stub: Any = channel.stream_stream(_PATHS[api], request_serializer=_serialize, response_deserializer=None)
            call = stub()
            writer = asyncio.create_task(_write(call, outgoing))
            outgoing.put_nowait(self._request(api))
            while (raw := await call.read()) is not grpc.aio.EOF:
                self._heard(api)
                try:
                    batch = following.receive(_message(api, cast("bytes", raw)))
                except DecodeError as error:  # nothing of it is known, so nothing of it is used (W18)
                    _logger.warning("message of the brain cannot be read: %s", error)
                    continue
                if batch is None:
                    continue
                if isinstance(following, NodeFollowing):
                    self.revision = following.revision
                self._status = self._following_status(api)
                self._say_lost(api, following.lost)
                yield batch
                if self._wait is not None:
                    await self._wait()
                outgoing.put_nowait(self._request(api))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise _Unavailable(f"the brain does not offer {_NAMES[api]}") from None
            raise
        finally:
            self._outgoing = None
            if writer is not None:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
            await channel.close()

    def _take_over(self, api: str) -> Following[Any]:
        """The memory of what has been passed on; another API goes on from there."""
        known = self._following
        if api == NODE and not isinstance(known, NodeFollowing):
            self._following = NodeFollowing(self._config.node_name)
        elif api == LOCAL and not isinstance(known, LocalFollowing):
            self._following = LocalFollowing(self._config)
        elif api == GLOBAL and not isinstance(known, ClusterFollowing):
            self._following = ClusterFollowing(self._config.proxy_name)
        assert self._following is not None
        if known is not None and known is not self._following:
            self._following.take_over(known)
        return self._following

    def _heard(self, api: str) -> None:
        if self.api == api:
            return
        self.api, self._is_connected = api, True
        self.connects += 1
        self._status = f"connected to {self._target.address} by {_NAMES[api]}; waiting for the first Sync"
        _logger.info("brain found address=%s api=%s", self._target.address, _NAMES[api])

    def _say_lost(self, api: str, lost: Sequence[str]) -> None:
        if api not in self._told_lost:
            self._told_lost.add(api)
            for line in lost:
                _logger.warning("not told by %s: %s", _NAMES[api], line)

    def _following_status(self, api: str) -> str:
        revision = f", revision {self.revision}" if api == NODE else ""
        return f"connected to {self._target.address} by {_NAMES[api]}{revision}"

    def _request(self, api: str) -> Message:
        name = self._config.node_name
        match api:
            case "node":
                report = node.report_message(self._report) if self._report is not None else None
                return nodev1.WatchRequest(node_name=name, report=report, observer=self._wait is None)
            case "local":
                return localv1.WatchReq(NodeName=name)
            case _:
                return globalv1.GlobalWatchReq()


async def read_nodes(target: Target) -> nodev1.NodesResponse:
    """What a brain knows of its nodes. Raises ConfigError, and grpc's AioRpcError."""
    channel = _channel(target, ClientSettings())
    try:
        stub = channel.unary_unary(
            _NODES_PATH, request_serializer=_serialize, response_deserializer=nodev1.NodesResponse.FromString
        )
        return await stub(nodev1.NodesRequest(), timeout=READ_NODES_WITHIN_S)
    finally:
        await channel.close()


async def _write(call: Any, outgoing: asyncio.Queue[Message]) -> None:
    """Until the stream ends; why it has ended is told to the reader."""
    while True:
        message = await outgoing.get()
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(message)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _message(api: str, raw: bytes) -> Message:
    return nodev1.WatchResponse.FromString(raw) if api == NODE else localv1.OpItem.FromString(raw)


def _reason(error: grpc.aio.AioRpcError | ConfigError) -> str:
    if isinstance(error, ConfigError):
        return str(error)
    details = (error.details() or "").splitlines()
    return f"{error.code().name}: {details[0] if details else 'no reason given'}"


def _channel(target: Target, settings: ClientSettings) -> grpc.aio.Channel:
    """A channel of its own for each try, so that the delays between them are ours alone. Raises ConfigError."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", _RECEIVE_BYTES),
        ("grpc.keepalive_time_ms", int(settings.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(settings.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if not target.is_secure or target.address.startswith("unix:"):
        return grpc.aio.insecure_channel(target.address, options=options)
    if target.server_name:
        options.append(("grpc.ssl_target_name_override", target.server_name))
    return grpc.aio.secure_channel(target.address, _credentials(target), options=options)


def _credentials(target: Target) -> grpc.ChannelCredentials:
    """Read anew for each connection, so that renewed certificates count. Raises ConfigError with every fault."""
    faults: list[Fault] = []

    def read(name: str) -> bytes | None:
        try:
            return Path(name).read_bytes() if name else None
        except OSError as error:
            faults.append(Fault("--source", f"{name} cannot be read: {error.strerror}"))
            return None

    ca, certificate, key = read(target.ca), read(target.certificate), read(target.key)
    if not faults:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if target.ca:
                context.load_verify_locations(cafile=target.ca)
            if target.certificate:
                context.load_cert_chain(target.certificate, target.key)
        except (OSError, ssl.SSLError) as error:
            faults.append(Fault("--source", f"the files for TLS cannot be used: {error}"))
    if faults:
        raise ConfigError(*faults)
    return grpc.ssl_channel_credentials(ca, key, certificate)
