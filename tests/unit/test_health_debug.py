"""The metrics port over sockets: pages, headers, /debug/, and what a client may cost.

Evidence: operations.md 10.2 and 21 (wishes 1, 13, 21).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest
from tests.engine_stage import API, START, Stage, in_loop, stage
from tests.replies import Reply, ask

from hansa import health_http, logs
from hansa.api.change import Upsert
from hansa.config import BindAddress, LogConfig
from hansa.health import Servers, serving
from hansa.health_debug import BURST, INDEX
from hansa.health_pages import Shown
from hansa.net import parse_address
from hansa.testing import L2, config, endpoint_slice

LOOPBACK = BindAddress(parse_address("127.0.0.1"), 0)
TEXT = "text/plain; charset=utf-8"


@dataclass
class Port:
    """The metrics port of an engine at work."""

    on: Stage
    servers: Servers
    client: aiohttp.ClientSession

    @property
    def number(self) -> int:
        assert self.servers.metrics is not None
        assert self.servers.metrics.port is not None
        return self.servers.metrics.port

    async def get(self, path: str, *, method: str = "GET", **more: Any) -> Reply:
        return await ask(self.client, f"http://127.0.0.1:{self.number}{path}", method=method, **more)


@asynccontextmanager
async def port(**shown: Any) -> AsyncIterator[Port]:
    settings = {"healthz_bind_address": LOOPBACK, "metrics_bind_address": LOOPBACK}
    async with (
        stage(**settings) as on,
        serving(on.engine, config(**settings), clock=on.clock, shown=Shown(**shown)) as servers,
        aiohttp.ClientSession() as client,
    ):
        await on.synced(*START)
        yield Port(on, servers, client)


# --- pages and headers ---


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/healthz", TEXT, "ok"),
        ("/healthz/ping", TEXT, "ok"),
        ("/healthz?verbose", TEXT, "[+]ping ok\nhealthz check passed\n"),
        ("/healthz?verbose&exclude=ping", TEXT, "[+]ping excluded: ok\nhealthz check passed\n"),
        ("/proxyMode", TEXT, "dictionary"),
        ("/configz", "application/json", None),
        ("/flagz", TEXT, None),
        ("/statusz", TEXT, None),
        ("/debug/hansa/", TEXT, None),
        ("/debug/hansa/memory", "application/json", None),
    ],
)
@in_loop
async def test_pages_and_their_headers(path: str, content_type: str, body: str | None) -> None:
    async with port() as at:
        reply = await at.get(path)
        assert reply.code == 200
        assert reply.headers["Content-Type"] == content_type
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert body in (None, reply.text)


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/livez", "/readyz", "/version", "/healthz/other", "/metrics/", "/debug", "/debug/hansa/nothing"),
        *("/debug/pprof/", "/debug/pprof/heap", "/debug/flags/v", "/debug/hansa/profile"),
    ],
)
@in_loop
async def test_the_rest_is_not_found(path: str) -> None:
    """Profiles and the verbosity are there with profiling only."""
    async with port() as at:
        reply = await at.get(path)
        assert (reply.code, reply.text) == (404, "404 page not found\n")
        assert (reply.headers["Content-Type"], reply.headers["X-Content-Type-Options"]) == (TEXT, "nosniff")


@in_loop
async def test_metrics_are_packed_for_whoever_takes_it() -> None:
    async with port() as at:
        packed = await at.get("/metrics", headers={"Accept-Encoding": "gzip"})
        plain = await at.get("/metrics", headers={"Accept-Encoding": "identity"})
        assert packed.headers["Content-Encoding"] == "gzip"
        assert "Content-Encoding" not in plain.headers
        assert plain.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
        assert int(plain.headers["Process-Start-Time-Unix"]) > 1_700_000_000
        assert int(packed.headers.get("Content-Length", "0")) < len(plain.text) / 3
        assert "# HELP kubeproxy_sync_proxy_rules_duration_seconds [ALPHA] " in packed.text
        assert "# EOF" not in plain.text, "OpenMetrics is off"


@in_loop
async def test_slis_count_health_checks_and_can_be_reset() -> None:
    async with port() as at:
        for _ in range(2):
            await at.get("/healthz")
        assert at.servers.healthz is not None
        async with at.client.get(f"http://127.0.0.1:{at.servers.healthz.port}/livez"):
            pass
        lines = (await at.get("/metrics/slis")).text.splitlines()
        assert 'kubernetes_healthcheck{name="ping",type="healthz"} 1' in lines
        assert 'kubernetes_healthchecks_total{name="ping",type="healthz",status="success"} 2' in lines
        assert 'kubernetes_healthchecks_total{name="proxy",type="livez",status="success"} 1' in lines
        assert sum(line.startswith("process_start_time_seconds ") for line in lines) == 1
        assert {line.split()[2] for line in lines if line.startswith("# TYPE")} == {
            *("kubernetes_healthcheck", "kubernetes_healthchecks_total", "process_start_time_seconds"),
        }
        assert (await at.get("/metrics/slis", method="DELETE")).text == "metrics reset\n"
        assert "healthchecks_total{" not in (await at.get("/metrics/slis")).text


@in_loop
async def test_what_the_command_line_tells() -> None:
    given = {"kind": "KubeProxyConfiguration", "nodePortAddresses": ["primary"]}
    flags = {"nodeport-addresses": "[primary]", "v": "2"}
    async with port(program="kube-proxy", flags=flags, configuration=given) as at:
        assert (await at.get("/configz")).data == {"kubeproxy.config.k8s.io": given}
        text = (await at.get("/flagz")).text
        assert text.endswith("\nnodeport-addresses=[192.0.2.1/32,2001:db8::1/128]\nv=2\n"), (
            "as it is in force, not as it was given"
        )


# --- /debug/ ---


@in_loop
async def test_state_has_steps_that_are_open_and_objects() -> None:
    async with port() as at:
        at.on.dataplane.host.refuse |= set(at.on.dataplane.host.frontends)
        await at.on.pass_time(5)
        await at.on.synced(Upsert(endpoint_slice("web-a", [L2])))
        for path in ("/debug/state", "/debug/hansa/state"):
            found = (await at.get(path)).data
            (step,) = found["steps"]
            assert (step["verb"], step["outcome"], step["error"]) == ("modify", "failed", "refused")
            assert found["pending"] == ["10.96.0.10:80/tcp"]
            assert found["objects"] == {}
            assert found["services"][0]["ports"][0]["cluster"] == ["10.1.1.12:8080"]


@in_loop
async def test_rules_alone() -> None:
    async with port() as at:
        await at.on.synced(Upsert(API))
        found = (await at.get("/debug/hansa/rules")).data
        assert [one["service"] for one in found["services"]] == ["d/api", "d/web"]
        assert set(found["services"][1]) == {"service", "rules"}
        one = (await at.get("/debug/hansa/rules?service=d/web")).data
        assert [rule["frontend"] for each in one["services"] for rule in each["rules"]] == ["10.96.0.10:80/tcp"]


@in_loop
async def test_the_last_good_and_the_last_failed_sync() -> None:
    async with port() as at:
        assert (await at.get("/debug/hansa/last-failed")).code == 404
        good = (await at.get("/debug/hansa/last-good")).data
        assert [(step["verb"], step["key"]) for step in good["steps"]] == [("create", "10.96.0.10:80/tcp")]
        at.on.dataplane.host.refuse |= set(at.on.dataplane.host.frontends)
        await at.on.pass_time(5)
        await at.on.synced(Upsert(endpoint_slice("web-a", [L2])))
        failed = (await at.get("/debug/hansa/last-failed")).data
        assert (failed["ok"], failed["steps"][0]["error"]) == (False, "refused")
        assert (await at.get("/debug/hansa/last-good")).data == good, "kept as it was"
        at.on.dataplane.before_sync = fail
        await at.on.pass_time(60)
        assert (await at.get("/debug/hansa/last-failed")).data["error"] == "ZeroDivisionError: a bug"


def fail() -> None:
    raise ZeroDivisionError("a bug")


@in_loop
async def test_a_dataplane_that_does_not_tell_its_objects() -> None:
    async with port() as at:
        reply = await at.get("/debug/hansa/objects")
        assert (reply.code, reply.text) == (501, "the dataplane dictionary does not tell\n")


@in_loop
async def test_memory_and_with_profiling_its_types() -> None:
    async with port() as at:
        found = (await at.get("/debug/hansa/memory?types=1")).data
        assert found["residentBytes"] > 2**20
        assert found["held"] == {"Service": 1, "EndpointSlice": 1, "frontends": 1}
        assert "types" not in found
    async with port(profiling=True) as at:
        assert (await at.get("/debug/hansa/memory?types=1")).data["types"]["function"] > 100


@in_loop
async def test_a_profile_names_where_time_is_spent() -> None:
    async with port(profiling=True) as at:
        asked = asyncio.create_task(at.get("/debug/hansa/profile?seconds=0.5"))
        await at.on.until(lambda: at.servers._debug._is_profiled)
        assert (await at.get("/debug/hansa/profile?seconds=0.1")).code == 429
        while not asked.done():  # busy for longer than a thread may be, and yet the answer gets its turns
            busy_until = time.monotonic() + 0.05
            while time.monotonic() < busy_until:
                pass
            await asyncio.sleep(0)
        reply = await asked
        stacks = [line.rpartition(" ") for line in reply.text.splitlines()]
        assert any("test_a_profile_names_where_time_is_spent" in stack for stack, _, _ in stacks), reply.text
        assert all(count.isdecimal() for _, _, count in stacks)
        for wrong in ("0", "-1", "61", "x"):
            assert (await at.get(f"/debug/hansa/profile?seconds={wrong}")).code == 400


@in_loop
async def test_pprofs_paths_say_where_profiles_are() -> None:
    async with port(profiling=True) as at:
        for path in ("/debug/pprof/", "/debug/pprof/profile", "/debug/pprof/heap"):
            reply = await at.get(path)
            assert reply.code == 501
            assert "/debug/hansa/profile" in reply.text


@in_loop
async def test_the_verbosity_changes_by_put() -> None:
    root, own = logging.getLogger(), logging.getLogger("hansa")
    before = root.handlers[:], root.level, own.level
    logs.configure(LogConfig())
    try:
        async with port(profiling=True) as at:
            reply = await at.get("/debug/flags/v", method="PUT", data="4")
            assert (reply.code, reply.text) == (200, "successfully set klog.logging.verbosity to 4")
            assert logs.verbosity() == 4
            for wrong in ("x", "", "-1", "4.5", "9" * 100):
                assert (await at.get("/debug/flags/v", method="PUT", data=wrong)).code == 400
            for method in ("GET", "POST", "DELETE"):
                reply = await at.get("/debug/flags/v", method=method)
                assert (reply.code, reply.text.strip()) == (406, "unsupported http method")
            assert logs.verbosity() == 4
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        own.setLevel(before[2])


@pytest.mark.parametrize("path", ["/debug/state", *INDEX])
@in_loop
async def test_only_this_machine_may_ask(path: str) -> None:
    """A page in a browser of this machine can make a name of its own point here; it is not asked by that name."""
    async with port(profiling=True) as at:
        reply = await at.get(path, headers={"Host": "attacker.example"})
        assert reply.code == 403


@in_loop
async def test_a_script_gone_wild_is_held_back() -> None:
    async with port() as at:
        codes = [(await at.get("/debug/hansa/memory")).code for _ in range(BURST + 3)]
        assert codes == [200] * BURST + [429] * 3
        await at.on.pass_time(1)
        assert (await at.get("/debug/hansa/memory")).code == 200
        assert (await at.get("/metrics")).code == 200, "metrics are not limited"


# --- what a client may cost ---


async def speak(number: int, said: bytes) -> bytes:
    """Everything that comes back until the server ends it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    writer.write(said)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:
        return b"reset"
    finally:
        writer.close()


@pytest.mark.parametrize(
    "said",
    [
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Many: 1\r\n" * 1000 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
    ids=["line", "header", "headers", "tls"],
)
@in_loop
async def test_requests_that_are_too_long_or_none_are_refused(said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    async with port() as at:
        answer = await speak(at.number, said)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
        assert (await at.get("/healthz")).code == 200


@in_loop
async def test_a_client_that_does_not_ask_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_http, "FIRST_REQUEST_S", 0.1)
    async with port() as at:
        assert await speak(at.number, b"GET /healthz HT") in (b"", b"reset")


@in_loop
async def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_http, "REQUEST_S", 0.2)
    async with port() as at:
        with socket.socket() as small:
            small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            small.connect(("127.0.0.1", at.number))
            reader, writer = await asyncio.open_connection(sock=small.dup())
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
        server = at.servers.metrics
        assert server is not None
        assert server._http is not None
        async with asyncio.timeout(10):
            while len(server._http._protocols.connections) > 0:
                await asyncio.sleep(0.02)
        writer.transport.abort()
        del reader


@in_loop
async def test_too_many_connections_are_closed_at_once_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_http, "MAX_CONNECTIONS", 4)
    async with port() as at:
        kept = [await asyncio.open_connection("127.0.0.1", at.number) for _ in range(4)]
        assert await speak(at.number, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") in (b"", b"reset")
        reader, writer = kept[0]
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"\r\n\r\nok")
        for _, one in kept:
            one.close()


def test_shown_is_a_value() -> None:
    assert replace(Shown(), program="kube-proxy") == Shown("kube-proxy")
