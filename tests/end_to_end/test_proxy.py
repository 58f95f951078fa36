"""`hansa proxy` in kube-proxy's place: started as kubeadm does, reconfigured, signalled, given a late Node.

Evidence: operations.md 4, 7, 8, 9 and 16.
"""

from __future__ import annotations

import random
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from tests.api_server import ApiServer
from tests.end_to_end.cluster import NODE_NAME, cluster, decoded, fresh_node, held, shop, wanted
from tests.end_to_end.processes import Command, Shell, holds, shell
from tests.end_to_end.stage import plain, until
from tests.ports import free_port

from hansa.hns.emulator.server import serve
from hansa.lab.cni import add_local_pods, spare_source_vips
from hansa.testing import endpoint, endpoint_slice, manifest, node, port, service, slice_port

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither SIGTERM for others nor unix sockets"),
]

UPDATED = "content of the proxy server's configuration file was updated"
OFF = ("--config-override=healthzBindAddress=off", "--config-override=metricsBindAddress=off")


def configuration(folder: Path, server: ApiServer, **values: object) -> Path:
    """The file that kubeadm writes, as far as it matters here."""
    document = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(plain(folder).kubeconfig(server)), "qps": 0},
        "featureGates": None,
        "mode": "",
        **values,
    }
    path = folder / "config.conf"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


async def start(on: Shell, config: Path, *more: str) -> Command:
    arguments = (f"--config={config}", f"--hostname-override={NODE_NAME.upper()}", "--hns=emulator", "-v2", *OFF)
    return await on.hansa("proxy", *arguments, *more)


async def test_a_whole_life_as_kubeadm_starts_it(tmp_path: Path) -> None:
    port = free_port()
    address = f"unix:{tmp_path}/hns.sock"
    async with ApiServer() as server, shell(tmp_path) as on:
        server.put(*cluster())
        config = configuration(tmp_path, server, bogus=1)
        proxy = await start(
            on,
            config,
            f"--hns-listen={address}",
            f"--config-override=healthzBindAddress=127.0.0.1:{port}",
            "--cluster-cidr=10.0.0.0/8",
            "--logtostderr=true",
        )
        await proxy.says("hansa.engine sync number=")
        await holds(address, wanted(server.manifests()), by=proxy)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
            assert answer.status == 200
        server.put(*shop())
        await holds(address, wanted(server.manifests()), by=proxy)
        agents = {asked.headers["User-Agent"] for asked in server.requests}
        assert len(agents) == 1
        assert "kube-proxy compatible" in agents.pop()
        asked = {one.kind: one.query for one in server.requests if one.is_watch}
        assert asked["Service"]["labelSelector"] == "!service.kubernetes.io/service-proxy-name"
        assert asked["Node"]["fieldSelector"] == f"metadata.name={NODE_NAME}"
        assert await proxy.terminate() == 143
        said = "\n".join(proxy.log)
        assert "Flag --logtostderr is no longer known" in said
        assert "Using lenient decoding as strict decoding failed" in said
        assert "flags ignored because --config is given: --cluster-cidr;" in said
        assert "FLAG: --v=2" in said


async def test_a_changed_file_ends_it(tmp_path: Path) -> None:
    async with ApiServer() as server, shell(tmp_path) as on:
        server.put(*cluster())
        config = configuration(tmp_path, server)
        proxy = await start(on, config)
        await proxy.says("hansa.engine sync number=")
        config.write_text(config.read_text() + "# another\n")
        assert await proxy.ended() == 1
        assert UPDATED in proxy.log[-1]


async def test_a_config_map_that_changes_ends_it_too(tmp_path: Path) -> None:
    """Which kube-proxy does not notice."""
    async with ApiServer() as server, shell(tmp_path) as on:
        server.put(*cluster())
        text = configuration(tmp_path, server).read_text()
        volume = tmp_path / "volume"
        for name, content in (("one", text), ("two", text + "# another\n")):
            (volume / name).mkdir(parents=True)
            (volume / name / "config.conf").write_text(content)
        (volume / "..data").symlink_to("one")
        (volume / "config.conf").symlink_to("..data/config.conf")
        proxy = await start(on, volume / "config.conf")
        await proxy.says("hansa.engine sync number=")
        (volume / "..new").symlink_to("two")
        (volume / "..new").replace(volume / "..data")
        assert await proxy.ended() == 1
        assert UPDATED in proxy.log[-1]


async def test_what_can_be_applied_is_applied_when_that_is_asked_for(tmp_path: Path) -> None:
    async with ApiServer() as server, shell(tmp_path) as on:
        server.put(*cluster())
        config = configuration(tmp_path, server)
        proxy = await start(on, config, "--config-reload=apply")
        await proxy.says("hansa.engine sync number=")
        configuration(tmp_path, server, iptables={"syncPeriod": 30})
        await proxy.says("changed configuration is wrong, the one before stays in force")
        configuration(
            tmp_path,
            server,
            iptables={"syncPeriod": "20s"},
            logging={"vmodule": [{"filePattern": "engine", "verbosity": 4}]},
            bindAddressHardFail=True,
            featureGates={"AllowServiceExternalIPs": False},
        )
        await proxy.says("changed configuration applied")
        applied = next(line for line in proxy.log if "changed configuration applied" in line)
        for key in ("iptables.syncPeriod", "featureGates", "logging.vmodule"):
            assert key in applied
        await proxy.says("changed configuration needs a restart settings=bindAddressHardFail")
        proxy.process.send_signal(signal.SIGHUP)
        await proxy.says("changed configuration applied settings=none")
        assert proxy.process.returncode is None
        assert await proxy.terminate() == 143


async def test_a_changed_file_that_is_to_be_ignored(tmp_path: Path) -> None:
    async with ApiServer() as server, shell(tmp_path) as on:
        server.put(*cluster())
        config = configuration(tmp_path, server)
        own = {"apiVersion": "config.hansa/v1alpha1", "kind": "HansaConfiguration", "configReload": "ignore"}
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
        proxy = await start(on, config, f"--hansa-config={tmp_path}/own.yaml")
        await proxy.says("hansa.engine sync number=")
        config.write_text("nonsense")
        server.put(*shop())
        count = len(proxy.log)
        await until(lambda: len(proxy.log) > count, "the next sync")
        assert await proxy.terminate() == 143


async def test_signals(tmp_path: Path) -> None:
    """SIGUSR1 does nothing, SIGQUIT tells where every thread is, SIGHUP ends at once."""
    async with ApiServer() as server, shell(tmp_path) as on:
        server.put(*cluster())
        config = configuration(tmp_path, server)
        proxy = await start(on, config)
        await proxy.says("hansa.engine sync number=")
        proxy.process.send_signal(signal.SIGUSR1)
        proxy.process.send_signal(signal.SIGUSR2)
        proxy.process.send_signal(signal.SIGQUIT)
        assert await proxy.ended() == 2
        assert any("most recent call first" in line for line in proxy.log)

        proxy = await start(on, config)
        await proxy.says("hansa.engine sync number=")
        proxy.process.send_signal(signal.SIGHUP)
        assert await proxy.ended() == -signal.SIGHUP
        proxy = await start(on, config)
        await proxy.says("hansa.engine sync number=")
        proxy.process.send_signal(signal.SIGINT)
        assert await proxy.ended() == 130


async def test_a_node_that_comes_late_is_waited_for_and_that_can_be_seen(tmp_path: Path) -> None:
    port = free_port()
    items = cluster()
    own = [one for one in items if one["kind"] == "Node" and one["metadata"]["name"] == NODE_NAME]
    emulator = fresh_node(items)
    lock = threading.Lock()
    machine = dict.fromkeys(emulator.host_addresses, emulator.machine.mac_address)
    with serve(emulator, f"unix:{tmp_path}/node.sock", lock=lock, machine=machine) as hns:
        async with ApiServer() as server, shell(tmp_path) as on:
            server.put(*(one for one in items if one not in own))
            proxy = await on.hansa(
                "proxy",
                f"--kubeconfig={plain(tmp_path).kubeconfig(server)}",
                f"--hostname-override={NODE_NAME}",
                f"--hns=remote:{hns.address}",
                f"--source-vip={spare_source_vips(emulator)[0]}",
                f"--healthz-bind-address=127.0.0.1:{port}",
                "--metrics-bind-address=",
            )
            await until(lambda: server.watch_count == 4)
            await until(
                lambda: f"waiting for the addresses of Node {NODE_NAME}" in readiness(port), lambda: str(proxy.log)
            )
            await proxy.says(f'waiting what="the addresses of Node {NODE_NAME}, which is not there yet" longest_s=30')
            assert held(emulator) == []
            server.put(*own)
            add_local_pods(emulator, decoded(items), NODE_NAME)
            goal = wanted(items)
            await until(lambda: readiness(port).startswith("200"), lambda: str(proxy.log))
            await until(lambda: held(emulator) == goal, lambda: str(proxy.log))
            moved = {**own[0], "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.77"}]}}
            server.put(moved)
            await proxy.says("node addresses changed, rules follow")
            assert await proxy.terminate() == 143


def readiness(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
            return f"200 {answer.read().decode()}"
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"
    except OSError as error:
        return f"none {error}"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--kubeconfig=/nonexistent"], "stat /nonexistent: no such file or directory"),
        ([], "unable to load in-cluster configuration, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be"),
        (["--cleanup"], "--cleanup is not implemented on Windows"),
        (["--init-only"], "--init-only is not implemented on Windows"),
        (["--version=v1.35.0"], "--version=v1.35.0 does not match v1.36.2"),
    ],
)
async def test_what_ends_the_start(tmp_path: Path, arguments: list[str], text: str) -> None:
    async with shell(tmp_path) as on:
        proxy = await on.hansa("proxy", "--hns=emulator", *arguments)
        assert await proxy.ended() == 1
        (line,) = [line for line in proxy.log if "hansa.proxy command failed" in line]
        assert text in line


async def test_mode_userspace_relays_real_connections(tmp_path: Path) -> None:
    """Without root: what is listened at is in 127.0.0.0/8, where a service may be for a test."""
    own = f"127.{random.randint(64, 250)}"
    objects = (
        node(NODE_NAME, addresses=["127.0.0.1"]),
        service("web", cluster_ips=[f"{own}.0.10"], ports=[port("http", 18080)]),
        endpoint_slice("web-a", [endpoint(f"{own}.9.1", node=NODE_NAME)], ports=[slice_port("http", 18081)]),
    )
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump_all(manifest(one) for one in objects), encoding="utf-8")
    with socket.create_server((f"{own}.9.1", 18081)) as pod:
        pod.settimeout(5)
        async with shell(tmp_path) as on:
            arguments = ("--proxy-mode=userspace", f"--source={path}", f"--hostname-override={NODE_NAME}", "-v2", *OFF)
            proxy = await on.hansa("proxy", *arguments, f"--lock={tmp_path / 'lock'}")
            await proxy.says("sync number=1 ")
            with socket.create_connection((f"{own}.0.10", 18080), timeout=5) as client, pod.accept()[0] as found:
                client.sendall(b"hello")
                assert found.recv(100) == b"hello"
            assert await proxy.terminate() == 143


async def test_called_kube_proxy_it_is_kube_proxy(tmp_path: Path) -> None:
    """As images link it, and as wrappers ask for its version."""
    import asyncio

    from tests.end_to_end.processes import HANSA

    (tmp_path / "kube-proxy").symlink_to(HANSA)
    process = await asyncio.create_subprocess_exec(
        tmp_path / "kube-proxy", "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert await process.communicate() == (b"Kubernetes v1.36.2\n", b"")
