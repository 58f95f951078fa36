"""`hansa heal`: which service ports are meant, the running hansa's answers, and the command, with and without it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from tests.command import Hansa
from tests.engine_stage import in_loop
from tests.engine_stage import stage as linux_stage
from tests.guarantees.node import bridge, many
from tests.guarantees.stage import Served, served

from hansa.api.change import Synced, Upsert
from hansa.api.objects import ApiObject, Kind
from hansa.cli import heal
from hansa.config import BindAddress
from hansa.errors import ConfigError, DataplaneError
from hansa.healing import PATH, PAUSE_S, Healer, find_ports, healed_lines
from hansa.hns.api import HnsKind, HnsVerb
from hansa.hns.emulator import Emulator
from hansa.lab.cni import emulated_node
from hansa.lock import HostLock
from hansa.net import parse_address
from hansa.pipeline import Pipeline
from hansa.testing import (
    L1,
    NODE,
    WEB,
    config,
    endpoint,
    endpoint_slice,
    manifest,
    node,
    port,
    service,
    slice_port,
)

T = TypeVar("T")
TWO_PORTS = service("web", cluster_ips=["10.96.0.20"], namespace="shop", ports=[port("http", 80), port("admin", 8443)])
WEB_SLICE = endpoint_slice("web-a", [L1])
JSON = {"Content-Type": "application/json"}


def pipeline(*objects: ApiObject) -> Pipeline:
    made = Pipeline(config(), frozenset())
    made.apply([*(Upsert(each) for each in (NODE, *objects)), *(Synced(kind) for kind in Kind)])
    made.take()
    return made


# --- which ports ---


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("shop/web", ["shop/web:admin", "shop/web:http"]),
        ("shop/web:http", ["shop/web:http"]),
        ("shop/web:8443", ["shop/web:admin"]),
        ("svc/shop/web:http", ["shop/web:http"]),
        (" d/web ", ["d/web:http"]),
        ("api", ["d/api:http"]),
        ("api:80", ["d/api:http"]),
    ],
)
def test_ports_are_found_as_people_name_them(text: str, ports: list[str]) -> None:
    found = find_ports(text, pipeline(WEB, TWO_PORTS, service("api", cluster_ips=["10.96.0.11"])))
    assert [str(each) for each in found] == ports


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("web", ["several namespaces have a Service web", "d/web, shop/web"]),
        ("shop/wep", ["there is no Service shop/wep", "NAMESPACE/NAME"]),
        ("default/web", ["there is no Service default/web", "there is d/web, shop/web"]),
        ("shop/web:ftp", ["has no port 'ftp'", "admin = 8443, http = 80"]),
        ("shop/gone", ["there is no Service shop/gone"]),
        ("a/b/c/d", ["names no Service"]),
        ("", ["names no Service"]),
        ("d/headless", ["has no ports that hansa handles"]),
    ],
)
def test_what_cannot_be_found_is_answered_with_what_there_is(text: str, words: list[str]) -> None:
    headless = service("headless", cluster_ips=[], headless=True)
    with pytest.raises(ConfigError) as refused:
        find_ports(text, pipeline(WEB, TWO_PORTS, headless))
    for word in words:
        assert word in str(refused.value)


# --- a running hansa ---


def at(on: Served) -> BindAddress:
    assert on.servers.metrics is not None
    assert on.servers.metrics.port is not None
    return BindAddress(parse_address("127.0.0.1"), on.servers.metrics.port)


async def asked(on: Served, text: str) -> dict[str, Any]:
    """The command's own way to the running hansa."""
    return await asyncio.wait_for(asyncio.to_thread(heal.ask, at(on), text), 30)


@in_loop
async def test_the_command_has_the_running_hansa_make_one_service_anew() -> None:
    on_node = bridge(WEB, WEB_SLICE, *many(3))
    async with served(on_node, min_sync_period_s=0.0) as on:
        before = on_node.balancers()
        data = await asked(on, "d/web")
        assert data["ok"]
        assert data["ports"] == ["d/web:http"]
        assert [(each["verb"], each["outcome"]) for each in data["steps"]] == [("replace", "done")] * 4
        after = on_node.balancers()
        of_web = {name for name in after if "10.96.16" not in name}
        assert {name for name in after if after[name].guid != before[name].guid} == of_web
        assert healed_lines(data)[0] == "made anew: load balancer node(IPv4):30080/tcp"


@in_loop
async def test_who_asks_again_at_once_is_told_to_wait() -> None:
    async with served(bridge(WEB, WEB_SLICE), min_sync_period_s=0.0) as on:
        await asked(on, "d/web")
        with pytest.raises(DataplaneError, match="d/web:http was made anew less than 10 s ago"):
            await asked(on, "d/web:http")
        await on.on.pass_time(PAUSE_S)
        assert (await asked(on, "d/web"))["ok"]


@in_loop
async def test_what_the_host_refuses_is_told_and_the_service_stays_as_it_is() -> None:
    on_node = bridge(WEB, WEB_SLICE)
    async with served(on_node, min_sync_period_s=0.0) as on:
        on_node.refuse(0x803B0007, HnsVerb.DELETE, HnsKind.LOAD_BALANCER, times=None)
        data = await asked(on, "d/web")
        assert not data["ok"]
        assert len(data["pending"]) == len(data["steps"]) == 4
        assert all("0x803B0007" in each["error"] for each in data["steps"])
        assert len(on_node.served()) == 4
        lines = healed_lines(data)
        assert any(line.startswith("failed: load balancer 10.96.0.10:80/tcp: ") for line in lines)
        assert "not as it should be yet, and tried again: 10.96.0.10:80/tcp" in lines


@in_loop
async def test_while_hns_is_away_the_answer_says_so() -> None:
    on_node = bridge(WEB, WEB_SLICE)
    async with served(on_node, min_sync_period_s=0.0) as on:
        on_node.emulator.stop()
        await on.on.pass_time(30)
        data = await asked(on, "d/web")
        assert (data["ok"], data["hostState"], data["steps"]) == (False, "unavailable", [])
        assert any("HNS does not answer" in line for line in healed_lines(data))
        before = on_node.balancers()
        on_node.emulator.start()
        await on.on.pass_time(30)
        after = on_node.balancers()
        assert all(after[name].guid != before[name].guid for name in before), "the order stood"


@in_loop
async def test_a_service_that_is_not_there_is_the_operators_error() -> None:
    async with served(bridge(WEB, WEB_SLICE), min_sync_period_s=0.0) as on:
        with pytest.raises(ConfigError, match="SERVICE: there is no Service d/wep"):
            await asked(on, "d/wep")


@pytest.mark.parametrize(
    ("method", "more", "code"),
    [
        ("GET", {}, 405),
        ("POST", {"data": '{"service":"d/web"}', "headers": {"Content-Type": "text/plain"}}, 415),
        ("POST", {"data": "{", "headers": JSON}, 400),
        ("POST", {"data": "[]", "headers": JSON}, 400),
        ("POST", {"data": '{"service":7}', "headers": JSON}, 400),
        ("POST", {"data": '{"service":"d/web"}', "headers": {**JSON, "Host": "evil.example"}}, 403),
        ("OPTIONS", {"headers": {"Origin": "http://evil.example"}}, 405),
    ],
)
def test_nothing_is_done_for_who_does_not_ask_as_the_command_does(method: str, more: dict[str, Any], code: int) -> None:
    """A page in a browser of this machine can neither name this machine nor send JSON unasked."""

    @in_loop
    async def ask() -> None:
        on_node = bridge(WEB, WEB_SLICE)
        async with served(on_node, min_sync_period_s=0.0) as on:
            on_node.forget()
            assert (await on.metrics(PATH, method, **more)).code == code
            await on.on.settled()
            assert on_node.writes == []

    ask()


@in_loop
async def test_a_dataplane_without_such_doubts_says_so() -> None:
    async with linux_stage() as on:
        await on.synced(Upsert(NODE), Upsert(WEB), Upsert(WEB_SLICE), *(Synced(kind) for kind in Kind))
        answer = await Healer(on.engine, on.clock).answer("POST", "application/json", b'{"service":"d/web"}')
        assert answer.code == 503
        assert "keeps nothing that could be made anew" in answer.body


# --- the command ---


def test_without_a_running_hansa_the_command_says_how_to_do_without(hansa: Hansa) -> None:
    code, _, err = hansa("heal", "d/web", "--metrics-bind-address", "127.0.0.1:1")
    assert code == 2
    assert "no hansa answers" in err
    assert "--source kubernetes" in err
    assert hansa("heal", "d/web", "--set", "metricsBindAddress=off")[0] == 2


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Path]:
    """Manifests, and a node that was programmed for them."""
    far = endpoint("10.1.2.9", node="n2")
    items: list[ApiObject] = [
        node("n1", addresses=["192.0.2.1"], pod_cidrs=["10.1.1.0/24"]),
        node("n2", addresses=["192.0.2.2"], pod_cidrs=["10.1.2.0/24"]),
        service("web", ports=[port("http", 80), port("admin", 8443)]),
        endpoint_slice("web-a", [far], ports=[slice_port("http", 8080), slice_port("admin", 8443)]),
        service("api", cluster_ips=["10.96.0.11"]),
        endpoint_slice("api-a", [far], service="api"),
    ]
    manifests, file = tmp_path / "cluster.yaml", tmp_path / "node.json"
    manifests.write_text(yaml.safe_dump_all([manifest(each) for each in items]), encoding="utf-8")
    nodes = [each for each in items if each.object_key.kind is Kind.NODE]
    file.write_text(emulated_node(nodes[0], nodes).dump(), encoding="utf-8")  # type: ignore[arg-type]
    return manifests, file


def balancers(file: Path) -> dict[str, str]:
    emulator = Emulator.load(file.read_text(encoding="utf-8"))
    return {
        f"{each.frontend_vips[0]}:{each.port_mappings[0].external_port}": each.guid
        for each in emulator.load_balancers()
    }


def test_alone_the_command_makes_one_port_anew_and_nothing_else(hansa: Hansa, saved: tuple[Path, Path]) -> None:
    manifests, file = saved
    common = ("--source", manifests, "--node-name", "n1", "--hns", f"emulator:{file}")
    code, out, err = hansa("heal", "d/web", *common)
    assert code == 0, (out, err)
    assert "made: load balancer 10.96.0.10:80/tcp" in out, "it was missing"
    assert str(file) in err
    first = balancers(file)
    assert set(first) == {"10.96.0.10:80", "10.96.0.10:8443"}, "nothing of the other Service"
    code, out, _ = hansa("heal", "d/web:admin", *common, "-o", "json")
    assert code == 0
    (step,) = json.loads(out)["steps"]
    assert (step["key"], step["verb"]) == ("10.96.0.10:8443/tcp", "replace")
    second = balancers(file)
    assert {key for key in first if first[key] != second[key]} == {"10.96.0.10:8443"}
    assert hansa("heal", "d/none", *common)[0] == 2


def test_alone_it_stays_away_from_a_host_on_which_hansa_runs(
    hansa: Hansa, saved: tuple[Path, Path], tmp_path: Path
) -> None:
    manifests, file = saved
    common = ("--source", manifests, "--node-name", "n1", "--hns", f"emulator:{file}")
    with HostLock(tmp_path / "lock", "hansa run"):
        code, _, err = hansa("heal", "d/web", *common, "--lock", tmp_path / "lock")
    assert code == 2
    assert "hansa run (pid " in err
