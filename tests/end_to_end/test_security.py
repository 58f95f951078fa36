"""What a node's hansa must not give away, open, or believe. The whole of it is docs/security.md."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest
import trustme
from tests.api_server import ApiServer
from tests.end_to_end.cluster import NODE_NAME, cluster
from tests.end_to_end.processes import Command, Shell, shell
from tests.end_to_end.stage import until, with_token_file
from tests.ports import free_port

from hansa.config import Config
from hansa.health_debug import INDEX
from hansa.sources.kubernetes.client import try_access
from hansa.sources.kubernetes.kubeconfig import Connection, PemData, Token

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(sys.platform == "win32", reason="processes of this system"),
]

SECRET = "token-that-nobody-may-see"
PATHS = (
    *("/", "/healthz", "/livez", "/readyz", "/healthz?verbose", "/metrics", "/metrics/slis", "/proxyMode"),
    *("/configz", "/flagz", "/statusz", "/debug/state", "/debug/hansa", *INDEX, "/debug/pprof/cmdline"),
)


async def start(on: Shell, access_kubeconfig: Path, folder: Path, **addresses: str) -> Command:
    config = folder / "config.conf"
    config.write_text(
        json.dumps(
            {
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                "kind": "KubeProxyConfiguration",
                "clientConnection": {"kubeconfig": str(access_kubeconfig)},
            }
        )
    )
    where = (f"--config-override={name}={at}" for name, at in addresses.items())
    arguments = (f"--config={config}", f"--hostname-override={NODE_NAME}", "--hns=emulator", "-v=9")
    command = await on.hansa("proxy", *arguments, f"--lock={folder / 'lock'}", *where)
    await command.says("number=1 ")
    return command


async def test_no_secret_is_told_by_any_page_or_log_line(tmp_path: Path) -> None:
    """At the highest verbosity, with a token that is accepted, then one that is not, and by the doctor too."""
    access = with_token_file(tmp_path)
    access.token_file.write_text(SECRET)
    health, metrics = free_port(), free_port()
    async with ApiServer(tls=access.tls) as server, shell(tmp_path) as on:
        server.require_token(SECRET)
        server.put(*cluster())
        kubeconfig = access.kubeconfig(server)
        addresses = {"healthzBindAddress": f"127.0.0.1:{health}", "metricsBindAddress": f"127.0.0.1:{metrics}"}
        run = await start(on, kubeconfig, tmp_path, **addresses)
        told: list[str] = []

        async def look() -> None:
            async with aiohttp.ClientSession() as session:
                for port in (health, metrics):
                    for path in PATHS:
                        async with session.get(f"http://127.0.0.1:{port}{path}") as answer:
                            told.append(await answer.text() + str(answer.headers))

        await look()
        assert any("KubeProxyConfiguration" in each for each in told), "pages did answer"
        server.require_token("another")
        known = len(server.requests)
        server.cut()
        await until(lambda: len(server.requests) > known)
        await look()
        told += [run.out, *run.log]
        arguments = ("--kubeconfig", kubeconfig, "--node-name", NODE_NAME, "--hns", "emulator", "-o", "json")
        examined = await on.hansa("doctor", *arguments)
        await examined.ended()
        told += [examined.out, *examined.log]
    assert not [each for each in told if SECRET in each]


async def test_only_the_ports_that_are_asked_for_listen(tmp_path: Path) -> None:
    """kube-proxy's two, health check node ports of Services, and nothing else; with both switched off, none of them."""

    def listening(command: Command) -> set[tuple[str, int]]:
        found = psutil.Process(command.process.pid).net_connections(kind="inet")
        return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}

    access = with_token_file(tmp_path)
    health, metrics = free_port(), free_port()
    health_checks = {
        item["spec"]["healthCheckNodePort"] for item in cluster() if item.get("spec", {}).get("healthCheckNodePort")
    }
    async with ApiServer(tls=access.tls) as server, shell(tmp_path) as on:
        server.put(*cluster())
        kubeconfig = access.kubeconfig(server)
        addresses = {"healthzBindAddress": f"127.0.0.1:{health}", "metricsBindAddress": f"127.0.0.1:{metrics}"}
        run = await start(on, kubeconfig, tmp_path, **addresses)
        asked_for = {("127.0.0.1", health), ("127.0.0.1", metrics)}
        found = listening(run)
        assert asked_for <= found
        assert {port for _, port in found - asked_for} <= health_checks
        await run.terminate()
        run = await start(on, kubeconfig, tmp_path, healthzBindAddress="off", metricsBindAddress="off")
        assert {port for _, port in listening(run)} <= health_checks


async def test_the_server_is_checked_wherever_it_is_asked() -> None:
    """By the doctor as well, which asks before anything else does; nothing is sent to whom is not trusted."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    config = Config(node_name=NODE_NAME)
    async with ApiServer(tls=context) as server:
        stranger = server.connection(ca=PemData(trustme.CA().cert_pem.bytes()))
        for connection in (stranger, server.connection()):  # without a CA the system's authorities count
            tried = await try_access(connection, config)
            assert {each.code for each in tried.values()} == {0}
            assert all("not trusted" in each.words for each in tried.values())
        assert not server.requests
        known = server.connection(ca=PemData(authority.cert_pem.bytes()))
        assert {each.code for each in (await try_access(known, config)).values()} == {200}


async def test_a_redirect_does_not_carry_the_token_away(tmp_path: Path) -> None:
    asked: list[bytes] = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(1000))
        writer.close()

    async def redirecting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{port}/\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(elsewhere, "127.0.0.1", 0) as thief:
        port = thief.sockets[0].getsockname()[1]
        async with await asyncio.start_server(redirecting, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            tried = await try_access(Connection(url, credentials=Token(SECRET)), Config(node_name=NODE_NAME))
    assert {each.code for each in tried.values()} == {302}
    assert not asked
