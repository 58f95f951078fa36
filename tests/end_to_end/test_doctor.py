"""`hansa doctor` against an API server that answers, refuses, or is not there; and against an HNS in trouble."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.api_server import Access, ApiServer
from tests.deploy.manifests import documents, permissions
from tests.end_to_end.cluster import NODE_NAME, cluster, decoded, fresh_node, node_config
from tests.end_to_end.processes import shell
from tests.end_to_end.stage import with_token_file

from hansa.api.objects import Kind
from hansa.cli import doctor
from hansa.cli.options import Host, Input
from hansa.config import Config
from hansa.explain import checkup
from hansa.explain.defects import Severity
from hansa.hns.api import HnsApi
from hansa.hns.emulator.faults import Fault, Refuse
from hansa.hns.port_ranges import PortRange, TakenPorts, uniform
from hansa.sources.kubernetes.client import try_access

pytestmark = pytest.mark.asyncio

CONFIG = Config(node_name=NODE_NAME)


async def results(server: ApiServer, config: Config = CONFIG) -> dict[str, tuple[str | None, str]]:
    """What is said of the API server, by topic; the last finding of each."""
    facts = await asyncio.to_thread(doctor.ask_api, server.connection(), config)
    return {
        each.topic.value: (each.severity.value if each.severity else None, each.text)
        for each in checkup.check_api(facts, config)
    }


async def test_a_server_that_answers() -> None:
    """Each kind is listed and watched once, and little of it."""
    async with ApiServer() as server:
        server.put(*cluster())
        found = await results(server)
        assert {severity for severity, _ in found.values()} == {None}
        assert found["Node"] == (None, f"the Node {NODE_NAME} is there")
        assert "clock" in found, "servers tell the time"
        assert sorted(one.kind for one in server.requests) == sorted(2 * [kind.value for kind in Kind])
        assert {one.query.get("limit", one.query.get("timeoutSeconds")) for one in server.requests} == {"1"}


async def test_a_server_that_allows_less() -> None:
    role = permissions(documents("linux.yaml"))
    watch = Access("watch", "discovery.k8s.io", "endpointslices")
    async with ApiServer() as server:
        server.put(*cluster())
        server.mood.permitted = role - {watch}
        assert (await results(server))["API server"] == (
            "error",
            'this account may not watch endpointslices.discovery.k8s.io: endpointslices is forbidden: User "hansa" '
            'cannot watch resource "endpointslices" in API group "discovery.k8s.io" at the cluster scope',
        )
        assert server.forbidden == [watch]


async def test_a_server_that_does_not_know_the_node_or_the_token() -> None:
    async with ApiServer() as server:
        server.put(*cluster())
        assert (await results(server, Config(node_name="other")))["Node"][0] == "error"
        server.require_token("secret")
        assert (await results(server))["API server"] == ("error", f"{server.url} does not accept these credentials")


async def test_a_server_that_is_gone_or_talks_nonsense() -> None:
    async with ApiServer() as server:
        server.put(*cluster())
        connection = server.connection()
        tried = await try_access(connection, CONFIG)
        assert tried[Kind.NODE, "list"].found == 1
    tried = await try_access(connection, CONFIG)
    assert {each.code for each in tried.values()} == {0}
    assert all(each.words.startswith("cannot connect") for each in tried.values())


@pytest.mark.skipif(sys.platform == "win32", reason="sockets of this system")
async def test_the_command_says_it_all_and_ends_with_the_worst(tmp_path: Path) -> None:
    """Over HTTPS with a token; an emulated node that nobody has programmed yet; then without the right to read."""

    async def doctor_says(*arguments: object) -> tuple[int, Any]:
        command = await on.hansa("doctor", *arguments, "--node-name", NODE_NAME, "--exit-code", "-o", "json")
        code = await command.ended()
        return code, json.loads(command.out)

    access = with_token_file(tmp_path)
    async with ApiServer(tls=access.tls) as server, shell(tmp_path) as on:
        server.require_token("first")
        server.put(*cluster())
        arguments = ("--kubeconfig", access.kubeconfig(server), "--hns", "emulator")
        code, found = await doctor_says(*arguments)
        assert code == 5, "load balancers are missing"
        assert {each["result"] for each in found["checks"]} == {"well"}
        assert {each["symptom"] for each in found["findings"]} >= {"lb-many-missing"}
        server.mood.permitted = frozenset()
        code, found = await doctor_says(*arguments)
        assert code == 5, found
        assert {each["result"] for each in found["checks"]} == {"error", "well"}, "the clock is well"
        assert "findings" not in found, "what is wanted is not known, so nothing is said of what there is"
        assert "first" not in json.dumps(found), "no secret is told"


DYNAMIC = PortRange(49152, 65535)


def examined(
    api: HnsApi | None, *, with_objects: bool = True, dynamic: PortRange | OSError = DYNAMIC
) -> doctor.Examined:
    emulator = fresh_node(cluster())

    def taken_ports() -> tuple[TakenPorts, ...]:
        if isinstance(dynamic, OSError):
            raise dynamic
        return uniform(dynamic)

    host = Host(
        api or emulator,
        machine=lambda: dict.fromkeys(emulator.host_addresses, emulator.machine.mac_address),
        taken_ports=taken_ports,
    )
    found = Input(decoded(cluster())) if with_objects else None
    return doctor.examine_windows(host, node_config(emulator), found, lock=Path("/nonexistent/lock"))


async def test_windows_hns_is_looked_at_as_far_as_it_answers() -> None:
    well = examined(None)
    (hns,) = [each for each in well.checks if each.topic is checkup.Topic.HNS and each.severity is None]
    assert "the pods' network is" in hns.text
    assert well.diagnosis is not None
    assert not [each for each in well.checks if each.topic is checkup.Topic.SETTINGS]
    for dynamic, words in (
        (PortRange(1024, 65535), "the node-port range 30000-32767 overlaps"),
        (OSError(2, "no netsh"), "cannot be read: no netsh"),
    ):
        ports = [each for each in examined(None, dynamic=dynamic).checks if each.topic is checkup.Topic.SETTINGS]
        assert ports
        assert {each.severity for each in ports} == {Severity.WARNING}
        assert all(words in each.text for each in ports)
    unknown = examined(None, with_objects=False)
    assert unknown.diagnosis is None
    broken = fresh_node(cluster())
    broken.faults.add(Fault(effect=Refuse(), times=None))
    down = examined(broken)
    assert down.worst is Severity.ERROR
    assert down.diagnosis is None
    assert any("does not answer" in each.text for each in down.checks)
