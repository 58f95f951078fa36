"""A hansa at work in this process: API server on a socket, source, engine, Windows dataplane, emulated node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import textwrap
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import trustme
from tests.api_server import ApiServer
from tests.end_to_end.cluster import NODE_NAME, dataplane, fresh_node, held, node_config, wanted, writes
from tests.hns_double.route import through

from hansa.dataplanes.base import SyncReport
from hansa.engine import Engine, SyncRecord
from hansa.hns.api import HnsVerb
from hansa.hns.client import HnsClient
from hansa.hns.emulator.faults import Call
from hansa.hns.emulator.server import SharedHns
from hansa.hns.emulator.service import Emulator
from hansa.lab.cni import CniSource, PodNetwork
from hansa.sources import Source
from hansa.sources.kubernetes.client import ClientSettings, KubernetesSource, load_connection
from hansa.sources.kubernetes.watch import WatchSettings

WITHIN_S = 20.0  # far more than anything here takes, also on a busy machine
POLL_S = 0.005
# Real back-off begins at 0.8 s; here a whole story has to fit into less.
QUICK = ClientSettings(
    watch=WatchSettings(first_delay_s=0.01, longest_delay_s=0.05, absent_s=0.05),
    connect_timeout_s=5,
    list_idle_s=5,
    watch_idle_s=30,
)
HOUR = 3600.0
WRITE_VERBS = (HnsVerb.CREATE, HnsVerb.MODIFY, HnsVerb.DELETE)


async def until(reached: Callable[[], bool], what: Callable[[], str] | str = "", *, every_s: float = POLL_S) -> None:
    """Look until it is so; for what nobody announces. Fails after WITHIN_S, and then says `what`."""
    try:
        async with asyncio.timeout(WITHIN_S):
            while not reached():
                await asyncio.sleep(every_s)
    except TimeoutError:
        raise AssertionError(f"not within {WITHIN_S:g} s: {_said(what)}") from None


def _said(what: Callable[[], str] | str) -> str:
    return what if isinstance(what, str) else what()


@dataclass
class Access:
    """How hansa gets to the API server: the server's side, and a kubeconfig with the files that it names."""

    folder: Path
    tls: ssl.SSLContext | None = None
    cluster: str = ""
    user: str = "{}"

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    def kubeconfig(self, server: ApiServer) -> Path:
        file = self.folder / "kubeconfig"
        file.write_text(
            textwrap.dedent(f"""\
                apiVersion: v1
                kind: Config
                current-context: here
                contexts: [{{name: here, context: {{cluster: c, user: u}}}}]
                clusters: [{{name: c, cluster: {{server: "{server.url}"{self.cluster}}}}}]
                users: [{{name: u, user: {self.user}}}]
                """)
        )
        return file


def plain(folder: Path) -> Access:
    return Access(folder)


def with_client_certificate(folder: Path) -> Access:
    """HTTPS; the server wants a certificate of the same authority."""
    access = _https(folder, wants_clients=True)
    access.user = "{client-certificate: client.crt, client-key: client.key}"
    return access


def with_token_file(folder: Path) -> Access:
    """HTTPS and a token file; whether the server wants a token is for the test to say."""
    access = _https(folder, wants_clients=False)
    access.user = "{tokenFile: token}"
    access.token_file.write_text("first\n")
    return access


def _https(folder: Path, *, wants_clients: bool) -> Access:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if wants_clients:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        mine = authority.issue_cert(NODE_NAME)
        (folder / "client.crt").write_bytes(b"".join(one.bytes() for one in mine.cert_chain_pems))
        (folder / "client.key").write_bytes(mine.private_key_pem.bytes())
    (folder / "ca.crt").write_bytes(authority.cert_pem.bytes())
    return Access(folder, context, cluster=", certificate-authority: ca.crt")


class WriteLog:
    """Every writing call that reaches an emulator, in order; for as long as the emulator lives."""

    def __init__(self, emulator: Emulator) -> None:
        self.calls: list[Call] = []
        emulator.watch(self._see)

    def _see(self, call: Call) -> None:
        if call.verb in WRITE_VERBS:
            self.calls.append(call)

    def __len__(self) -> int:
        return len(self.calls)


@dataclass
class Stage:
    """records: every run of the engine. The emulator is used by another thread, too; `lock` guards it."""

    server: ApiServer
    emulator: Emulator
    lock: threading.Lock
    engine: Engine
    network: PodNetwork
    source: KubernetesSource
    records: list[SyncRecord] = field(default_factory=list)
    _ran: asyncio.Event = field(default_factory=asyncio.Event)

    def saw(self, record: SyncRecord, _: SyncReport | None) -> None:
        self.records.append(record)
        self._ran.set()

    @property
    def held(self) -> list[str]:
        with self.lock:
            return held(self.emulator)

    @property
    def wanted(self) -> list[str]:
        return wanted(self.server.manifests(), self.network)

    @property
    def writes(self) -> int:
        with self.lock:
            return writes(self.emulator)

    @property
    def versions(self) -> set[str]:
        """The resource versions that the watches have reached."""
        return {one.watch.version for one in self.source._followers}

    @property
    def status(self) -> str:
        """What the source says of itself."""
        return self.engine.state.sources[0]

    async def after_a_run(self, reached: Callable[[], bool], what: Callable[[], str] | str) -> None:
        """Return once it is so, looking after each run of the engine. Fails after WITHIN_S."""
        try:
            async with asyncio.timeout(WITHIN_S):
                while True:
                    self._ran.clear()
                    if reached():
                        return
                    await self._ran.wait()
        except TimeoutError:
            raise AssertionError(f"not within {WITHIN_S:g} s: {_said(what)}; source: {self.status}") from None

    async def converged(self) -> None:
        """Return once the node holds exactly what the server's objects, as they are now, ask for."""
        goal = self.wanted

        def difference() -> str:
            is_there = self.held
            lacks, surplus = set(goal) - set(is_there), set(is_there) - set(goal)
            return f"the node lacks {sorted(lacks)} and has {sorted(surplus)} too much"

        await self.after_a_run(lambda: self.held == goal, difference)

    async def audits(self, count: int) -> None:
        """Return once the host has been compared with the rules so often from now on."""
        target = len(self.records) + count
        await self.after_a_run(lambda: len(self.records) >= target, f"{count} audits")


@contextlib.asynccontextmanager
async def stage(
    server: ApiServer,
    access: Access,
    *,
    emulator: Emulator | None = None,
    network: PodNetwork = PodNetwork.OVERLAY,
    full_check_period_s: float = HOUR,
    min_sync_period_s: float = 0.0,
    settings: ClientSettings = QUICK,
) -> AsyncIterator[Stage]:
    """hansa on a node. emulator: the node, if it is not to be a fresh one.

    The host is checked only every hour unless said otherwise, so that what converges does so by the API's word.
    """
    node = emulator or fresh_node(server.manifests(), network)
    lock = threading.Lock()
    config = node_config(
        node,
        full_check_period_s=full_check_period_s,
        min_sync_period_s=min_sync_period_s,
        sync_period_s=max(full_check_period_s, min_sync_period_s),
    )
    connection = load_connection(str(access.kubeconfig(server)), "", os.environ)
    source = KubernetesSource(connection, config, settings)
    objects: Source = CniSource(source, node, NODE_NAME, lock=lock)
    plane = dataplane(node, config, HnsClient(through(SharedHns(node, lock))))
    engine = Engine(config, [objects], dataplane=plane, read_addresses=lambda: frozenset(node.host_addresses))
    made = Stage(server, node, lock, engine, network, source)
    engine.on_sync(made.saw)
    task = asyncio.create_task(engine.run())
    try:
        yield made
        assert not task.done(), "the engine ends only when it is told to"
        assert engine.counts.source_failures == 0
        assert engine.counts.build_failures == 0
        assert not [record.error for record in made.records if record.error]
    finally:
        engine.stop()
        await asyncio.wait_for(task, WITHIN_S)
