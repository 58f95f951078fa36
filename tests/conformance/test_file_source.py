"""FileSource and read_once on real files: only differences are said, and what cannot be read stays in force."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from hansa.api.change import Change, Delete, Malformed, Synced, Upsert
from hansa.api.objects import ApiObject, Kind, ObjectKey
from hansa.errors import Fault, SourceError
from hansa.sources import files
from hansa.sources.files import FileSource, Signature, read_once, unread
from hansa.testing import config, endpoint_slice, manifest, manifest_service, node, service, service_cidr

POLL_INTERVAL_S = 0.005
WITHIN_S = 10.0
ALL_SYNCED = tuple(Synced(kind) for kind in Kind)
WEB, API = service("web"), service("api")
WEB_A, N1, CIDR = endpoint_slice("web-a", ["10.1.1.11"]), node(), service_cidr()


def write(path: Path, *items: ApiObject | dict[str, Any]) -> None:
    """Replace a file at one stroke, as ConfigMap volumes and good editors do."""
    documents = [one if isinstance(one, dict) else manifest(one) for one in items]
    new = path.with_name(".new")
    new.write_text(
        json.dumps({"kind": "List", "items": documents}) if path.suffix == ".json" else yaml.safe_dump_all(documents)
    )
    move(new, path)


def move(old: Path, new: Path) -> None:
    """On Windows what somebody is just looking at cannot be moved; everybody tries again there."""
    for _ in range(1000):
        try:
            old.replace(new)
        except PermissionError:
            time.sleep(0.001)
        else:
            return
    raise AssertionError(f"{old} cannot be moved")


class Reader:
    """Holds what a source has said."""

    def __init__(self, source: FileSource) -> None:
        self.source = source
        self.log: list[Change] = []
        self.objects: dict[ObjectKey, ApiObject] = {}

    async def read(self) -> None:
        async with aclosing(self.source.changes()) as batches:
            async for batch in batches:
                assert batch
                for change in batch:
                    self.log.append(change)
                    if isinstance(change, Upsert):
                        assert self.objects.get(change.key) != change.object
                        self.objects[change.key] = change.object
                    elif isinstance(change, Delete):
                        del self.objects[change.key]

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not reached():
                await asyncio.sleep(POLL_INTERVAL_S / 2)

    async def until_objects(self, *items: ApiObject) -> None:
        await self.until(lambda: self.objects == {one.object_key: one for one in items} and ALL_SYNCED[-1] in self.log)

    async def a_few_polls(self) -> None:
        await asyncio.sleep(POLL_INTERVAL_S * 8)


@asynccontextmanager
async def reading(path: Path) -> AsyncIterator[Reader]:
    reader = Reader(FileSource(str(path), config(), poll_interval_s=POLL_INTERVAL_S))
    task = asyncio.create_task(reader.read())
    try:
        yield reader
        assert not task.done(), "a source never ends by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled():
            task.result()


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["web.yaml", "web.json"])
async def test_a_file_is_read_and_read_again(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    write(file, WEB, WEB_A, N1, CIDR)
    async with reading(file) as reader:
        await reader.until_objects(WEB, WEB_A, N1, CIDR)
        assert reader.log == [*(Upsert(one) for one in (WEB, WEB_A, N1, CIDR)), *ALL_SYNCED]
        assert reader.source.status == "4 objects from 1 file"
        assert not reader.source.troubled
        changed = service("web", node_port=30000)
        write(file, changed, N1, API, CIDR)
        await reader.until_objects(changed, N1, API, CIDR)
        assert reader.log[8:] == [Upsert(changed), Upsert(API), Delete(WEB_A.object_key)]
        write(file, changed, N1, API, CIDR)
        await reader.a_few_polls()
        assert len(reader.log) == 11, "a file written anew with the same content is no news"


@pytest.mark.asyncio
async def test_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", WEB)
    write(tmp_path / "b.yml", WEB_A)
    write(tmp_path / "c.json", N1)
    (tmp_path / "notes.txt").write_text("not: [yaml")
    (tmp_path / ".hidden.yaml").write_text("not: [yaml")
    (tmp_path / "sub.yaml").mkdir()
    async with reading(tmp_path) as reader:
        await reader.until_objects(WEB, WEB_A, N1)
        assert not reader.source.faults
        write(tmp_path / "d.yaml", API)
        await reader.until_objects(WEB, WEB_A, N1, API)
        (tmp_path / "a.yaml").unlink()
        await reader.until_objects(WEB_A, N1, API)
        write(tmp_path / "c.json", N1, WEB)
        await reader.until_objects(WEB, WEB_A, N1, API)


@pytest.mark.asyncio
async def test_a_config_map_volume(tmp_path: Path) -> None:
    """The kubelet swaps the link `..data`; the files themselves are links that never change."""
    for number, items in enumerate([(WEB, WEB_A), (WEB, API)]):
        (tmp_path / f"..{number}").mkdir()
        write(tmp_path / f"..{number}" / "web.yaml", *items)
    (tmp_path / "..data").symlink_to("..0")
    if not (tmp_path / "..data").is_symlink():
        pytest.skip("this system only pretends to make links")  # Wine does
    (tmp_path / "web.yaml").symlink_to("..data/web.yaml")
    async with reading(tmp_path) as reader:
        await reader.until_objects(WEB, WEB_A)
        (tmp_path / "..new").symlink_to("..1")
        (tmp_path / "..new").replace(tmp_path / "..data")
        await reader.until_objects(WEB, API)


@pytest.mark.asyncio
async def test_a_syntax_error_costs_nothing_that_was_in_force(tmp_path: Path) -> None:
    file = tmp_path / "web.yaml"
    write(file, WEB, WEB_A)
    async with reading(file) as reader:
        await reader.until_objects(WEB, WEB_A)
        file.write_text(yaml.safe_dump(manifest(API)) + "---\nkind: Service\n  name: [\n")
        await reader.until_objects(WEB, WEB_A, API)
        (fault,) = reader.source.faults
        line = file.read_text().count("\n")
        assert fault.field.startswith(f"{file}:{line}:")
        assert str(fault) in reader.source.status
        assert reader.source.troubled
        write(file, API)
        await reader.until_objects(API)
        assert not reader.source.faults
        file.write_text("[")
        await reader.until(lambda: bool(reader.source.faults))
        assert reader.objects == {API.object_key: API}


@pytest.mark.asyncio
async def test_a_path_that_is_away_costs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    folder.mkdir()
    write(folder / "web.yaml", WEB)
    async with reading(folder) as reader:
        await reader.until_objects(WEB)
        move(folder, tmp_path / "elsewhere")
        await reader.until(lambda: f": {folder}: " in reader.source.status)
        assert reader.source.troubled
        assert reader.objects == {WEB.object_key: WEB}
        move(tmp_path / "elsewhere", folder)
        write(folder / "api.yaml", API)
        await reader.until_objects(WEB, API)
        assert reader.source.status == "2 objects from 2 files"


@pytest.mark.asyncio
async def test_waits_for_a_path_that_is_not_there_yet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "hansa.sources")
    async with reading(tmp_path / "web.yaml") as reader:
        await reader.until(lambda: "retrying" in reader.source.status)
        assert reader.source.troubled
        assert not reader.log
        write(tmp_path / "web.yaml", WEB)
        await reader.until_objects(WEB)
    path = tmp_path / "web.yaml"
    quoted = str(path).replace("\\", "\\\\")  # in quotes a backslash stands twice
    why, again = [one.getMessage() for one in caplog.records]
    # The system's own words follow.
    assert why.startswith(f'cannot be read, asked again until it can source={path} err="{quoted}: ')
    assert again == f"can be read source={path}"


@pytest.mark.asyncio
async def test_an_empty_folder_is_synced(tmp_path: Path) -> None:
    async with reading(tmp_path) as reader:
        await reader.until_objects()
        assert tuple(reader.log) == ALL_SYNCED


@pytest.mark.asyncio
async def test_a_first_reading_that_found_nothing_but_faults_is_not_synced(tmp_path: Path) -> None:
    """Else a typing error would look like a cluster without Services."""
    file = tmp_path / "web.yaml"
    file.write_text("[")
    async with reading(file) as reader:
        await reader.until(lambda: bool(reader.source.faults))
        await reader.a_few_polls()
        assert not reader.log
        write(file, WEB)
        await reader.until_objects(WEB)


@pytest.mark.asyncio
async def test_one_broken_object(tmp_path: Path) -> None:
    file = tmp_path / "web.yaml"
    write(file, WEB, API)
    broken = manifest_service("web")
    broken["spec"]["ports"][0]["port"] = "http"
    async with reading(file) as reader:
        await reader.until_objects(WEB, API)
        write(file, broken, WEB_A)
        await reader.until_objects(WEB, WEB_A)
        malformed = next(change for change in reader.log if isinstance(change, Malformed))
        assert (malformed.key, malformed.faults[0].field) == (WEB.object_key, "spec.ports[0].port")


@pytest.mark.asyncio
async def test_only_what_this_proxy_watches(tmp_path: Path) -> None:
    """Service-semantics section 1, on the client's side; an object that stops matching is deleted."""
    file = tmp_path / "web.yaml"
    write(file, WEB, API, N1, node("n2"), {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}})
    async with reading(file) as reader:
        await reader.until_objects(WEB, API, N1)
        assert reader.source.ignored == {"Pod": 1}
        write(file, manifest_service("web", proxy_name="other"), manifest_service("api", headless=True), N1)
        await reader.until_objects(N1)


@pytest.mark.asyncio
async def test_a_file_without_permission_stays_in_force_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permission may come back without any change of the file. Root reads everything, hence the patch."""

    def refuse(path: Path, _longest_bytes: int) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    file = tmp_path / "web.yaml"
    write(file, WEB)
    async with reading(tmp_path) as reader:
        await reader.until_objects(WEB)
        monkeypatch.setattr(files, "read_file", refuse)
        write(file, API)
        await reader.until(lambda: f"{file}: cannot be read: Permission denied" in reader.source.status)
        await reader.a_few_polls()
        assert reader.objects == {WEB.object_key: WEB}
        monkeypatch.undo()
        await reader.until_objects(API)


OLD, NEW = Signature(1, 10, 7), Signature(2, 20, 7)
A = Path("a")


@pytest.mark.parametrize(
    ("seen", "read", "before", "expected"),
    [
        ({A: OLD}, {A: OLD}, {A: OLD}, ()),
        ({A: NEW}, {A: OLD}, {A: OLD}, ()),  # it has only just changed, so it may still be written
        ({A: NEW}, {A: OLD}, {A: NEW}, (A,)),
        ({A: NEW}, {}, {A: NEW}, (A,)),
        ({}, {A: OLD}, {A: OLD}, ()),  # an editor may be about to put the new file in its place
        ({}, {A: OLD}, {}, (A,)),
        ({A: OLD}, {A: OLD}, {}, ()),
    ],
)
def test_a_file_is_read_once_it_has_settled(
    seen: dict[Path, Signature], read: dict[Path, Signature], before: dict[Path, Signature], expected: tuple[Path, ...]
) -> None:
    """Half a file would look like deletions."""
    assert unread(seen, read, before) == expected


# read_once


def test_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.yaml", WEB, N1, node("n2"))
    write(tmp_path / "b.json", WEB_A)
    assert read_once(str(tmp_path), config()) == (Upsert(WEB), Upsert(N1), Upsert(WEB_A), *ALL_SYNCED)
    assert Upsert(node("n2")) in read_once(str(tmp_path)), "without a Config there is no selection"
    assert read_once(str(tmp_path / "b.json")) == (Upsert(WEB_A), *ALL_SYNCED)
    stdin = io.TextIOWrapper(io.BytesIO((tmp_path / "a.yaml").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert read_once("-", config()) == (Upsert(WEB), Upsert(N1), *ALL_SYNCED)


def test_read_once_hides_no_fault(tmp_path: Path) -> None:
    file = tmp_path / "web.yaml"
    file.write_text(yaml.safe_dump(manifest(WEB)) + "---\na: [")
    with pytest.raises(SourceError, match=r"web\.yaml:\d+:\d+: "):
        read_once(str(file))
    faults: list[Fault] = []
    assert read_once(str(file), on_fault=faults.append) == (Upsert(WEB), *ALL_SYNCED)
    assert len(faults) == 1
    missing = tmp_path / "missing"
    with pytest.raises(SourceError, match=f"^{re.escape(str(missing))}: .+"):
        read_once(str(missing), on_fault=faults.append)
