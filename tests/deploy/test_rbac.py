"""The ClusterRole that is shipped is enough, and nothing of it is too much.

Evidence: operations.md 13. The API server of these tests refuses whatever the role does not list.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from pathlib import Path

import pytest
from tests.api_server import Access, ApiServer, Mood
from tests.deploy.manifests import FILES, documents, of_kind, permissions, pod
from tests.end_to_end.cluster import FAR_POD, NODE_NAME, cluster, shop, wanted
from tests.end_to_end.processes import holds, shell
from tests.end_to_end.stage import QUICK, until, with_token_file
from tests.unit.test_event_sender import WEB, post

from hansa.api.change import Synced, Upsert
from hansa.api.objects import Kind
from hansa.config import Config
from hansa.sources.kubernetes.client import KubernetesSource

pytestmark = pytest.mark.asyncio

ROLE = permissions(documents(FILES[0]))
# What kube-proxy's own role allows; an account that exists already must do.
NODE_PROXIER = frozenset(
    {
        *(Access(verb, "", resource) for resource in ("services", "endpoints") for verb in ("list", "watch")),
        *(Access(verb, "", "nodes") for verb in ("get", "list", "watch")),
        *(Access(verb, "discovery.k8s.io", "endpointslices") for verb in ("list", "watch")),
        *(Access(verb, "networking.k8s.io", "servicecidrs") for verb in ("list", "watch")),
        *(Access(verb, group, "events") for group in ("", "events.k8s.io") for verb in ("create", "patch", "update")),
    }
)


@pytest.mark.parametrize("file", FILES)
async def test_every_file_has_the_same_role_within_kube_proxys(file: str) -> None:
    assert permissions(documents(file)) == ROLE
    assert ROLE <= NODE_PROXIER


def mounted(folder: Path, server: ApiServer) -> list[str]:
    """The shipped ConfigMap as files in a folder, and the container's command line with this node's name."""
    found = documents("linux.yaml")
    for name, text in of_kind("ConfigMap", found)["data"].items():
        account = "/var/run/secrets/kubernetes.io/serviceaccount"
        text = text.replace("/var/lib/kube-proxy", str(folder)).replace(account, str(folder))
        text = re.sub(r"server: .*", f"server: {server.url}", text)
        (folder / name).write_text(text, encoding="utf-8")
    (container,) = pod(found)["containers"]
    command, *arguments = [*container["command"], *container["args"]]
    assert command == "hansa"
    return [each.replace("/var/lib/kube-proxy", str(folder)).replace("$(NODE_NAME)", NODE_NAME) for each in arguments]


@pytest.mark.parametrize("refuse_watch_list", [0, 422], ids=["server streams lists", "server does not"])
async def test_as_it_is_shipped_hansa_does_everything(tmp_path: Path, refuse_watch_list: int) -> None:
    """Command line, configuration, kubeconfig, account and role of the manifest; all else is refused by the server.

    What the node must hold is there, a later change follows, Events are written, and nothing was asked in vain.
    """
    access = with_token_file(tmp_path)
    address = f"unix:{tmp_path / 'hns.sock'}"
    mood = Mood(permitted=ROLE, refuse_watch_list=refuse_watch_list)
    async with ApiServer(tls=access.tls, mood=mood) as server, shell(tmp_path) as on:
        server.require_token("first")
        server.put(*cluster())
        away = (f"--hns-listen={address}", "--hns=emulator", f"--lock={tmp_path / 'lock'}")
        off = (f"--config-override={each}=off" for each in ("healthzBindAddress", "metricsBindAddress"))
        run = await on.hansa(*mounted(tmp_path, server), "-v=2", *away, *off)
        await run.says("number=1 ")
        await holds(address, wanted(server.manifests()), by=run)
        server.put(*shop(FAR_POD))
        await holds(address, wanted(server.manifests()), by=run)
        await until(lambda: bool(server.told), lambda: f"no event; {run.log}")
        assert server.forbidden == []


async def trouble(server: ApiServer, *, expected: bool) -> str:
    """What the source says once it is in trouble; unless that is expected, "" once a later change has arrived."""
    source = KubernetesSource(server.connection(), Config(node_name=NODE_NAME), QUICK)
    known: set[Kind] = set()
    arrived = asyncio.Event()

    async def read() -> None:
        async with aclosing(source.changes()) as batches:
            async for batch in batches:
                known.update(each.kind for each in batch if isinstance(each, Synced))
                if known == set(Kind) and not arrived.is_set():
                    server.put(*shop(FAR_POD))
                if any(isinstance(each, Upsert) and each.key.name == "shop-1" for each in batch):
                    arrived.set()

    task = asyncio.create_task(read())
    try:
        await until(lambda: source.troubled or (arrived.is_set() and not expected), lambda: f"{expected=} {known=}")
        return source.status if source.troubled else ""
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_with_the_role_nothing_is_said() -> None:
    async with ApiServer(mood=Mood(permitted=ROLE)) as server:
        server.put(*cluster())
        assert await trouble(server, expected=False) == ""


READING = sorted(one for one in ROLE if one.resource != "events")


@pytest.mark.parametrize("missing", READING, ids=lambda one: "-".join(filter(None, one)))
async def test_without_any_one_permission_hansa_says_which(missing: Access) -> None:
    """`list` is for servers without streaming lists, so it is missed on one of these."""
    refuse_watch_list = 422 if missing.verb == "list" else 0
    async with ApiServer(mood=Mood(permitted=ROLE - {missing}, refuse_watch_list=refuse_watch_list)) as server:
        server.put(*cluster())
        said = await trouble(server, expected=True)
    assert f'cannot {missing.verb} resource "{missing.resource}"' in said
    assert "this account may not list and watch it" in said
    assert set(server.forbidden) == {missing}


async def test_without_a_permission_for_events_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """`create` for the first of its kind, `patch` for those that continue it; hansa goes on without them."""
    for verb in ("create", "patch"):
        caplog.clear()
        async with post() as at:
            at.server.mood.permitted = ROLE - {Access(verb, "events.k8s.io", "events")}
            at.sender.tell(WEB)
            at.sender.tell(WEB)
            await at.written()
        assert f"cannot {verb} resource" in caplog.text
    caplog.clear()
    async with post() as at:
        at.server.mood.permitted = ROLE
        at.sender.tell(WEB)
        at.sender.tell(WEB)
        assert len(await at.written()) == 1
        assert at.server.forbidden == []
    assert caplog.text == ""
