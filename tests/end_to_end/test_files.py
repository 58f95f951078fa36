"""`hansa run --source folder/`: manifests that are edited, added, removed and broken while it runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.end_to_end.cluster import FAR_POD, LOCAL_POD, NODE_NAME, cluster, shop, wanted
from tests.end_to_end.processes import Command, holds, seen, shell

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither SIGTERM for others nor unix sockets"),
]

Manifest = dict[str, Any]


class Folder:
    """Manifests in files, and all of them together."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        self._files: dict[str, list[Manifest]] = {}

    def write(self, name: str, items: list[Manifest]) -> None:
        self._files[name] = items
        (self.path / name).write_text(yaml.safe_dump_all(items), encoding="utf-8")

    def remove(self, name: str) -> None:
        del self._files[name]
        (self.path / name).unlink()

    def break_(self, name: str) -> int:
        """Damage the file; its objects still count. Returns the line that nobody can read."""
        file = self.path / name
        text = file.read_text(encoding="utf-8")
        file.write_text(text + "---\nkind: Service\nmetadata: {name: [unclosed\n", encoding="utf-8")
        return text.count("\n") + 4  # where the text ends and the brackets are still open

    @property
    def items(self) -> list[Manifest]:
        return [item for items in self._files.values() for item in items]


async def test_a_folder_is_followed_and_a_broken_file_costs_one_line_and_no_rule(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "manifests")
    folder.write("cluster.yaml", cluster())
    folder.write("shop-1.yaml", shop(LOCAL_POD, FAR_POD))
    address = f"unix:{tmp_path}/hns.sock"

    async def follows(run: Command) -> None:
        await holds(address, wanted(folder.items), by=run)

    async with shell(tmp_path) as on:
        run = await on.hansa(
            *("run", "--source", folder.path, "--node-name", NODE_NAME, "--hns", "emulator", "--hns-listen", address)
        )
        await run.says("sync number=1 ")
        await follows(run)

        folder.write("shop-1.yaml", shop(FAR_POD))  # edited
        await follows(run)
        folder.write("shop-2.yaml", shop(number=2))  # added
        await follows(run)
        folder.remove("shop-2.yaml")
        await follows(run)

        before = len(run.log)
        line = folder.break_("shop-1.yaml")
        await run.says("cannot be used")
        folder.write("shop-3.yaml", shop(number=3))  # what is not broken goes on
        await follows(run)
        complaints = [one for one in run.log[before:] if "shop-1.yaml" in one]
        assert len(complaints) == 1, complaints
        assert re.search(rf"shop-1\.yaml:{line}\b", complaints[0]), complaints[0]
        assert any(one.startswith("100.64.200.1 6/80") for one in seen(address)), "the rules of the broken file stay"

        folder.write("shop-1.yaml", shop(LOCAL_POD))  # mended
        await follows(run)
        assert await run.terminate() == 143
        assert len([one for one in run.log if "cannot be used" in one]) == 1
