"""The `hansa` command as people run it: processes, what they print, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from tests.end_to_end.cluster import held
from tests.end_to_end.stage import WITHIN_S, until

from hansa.cli.options import read_hns
from hansa.hns.emulator.service import Emulator
from hansa.hns.remote import RemoteHns

HANSA = Path(sys.executable).with_name("hansa")


KLOG_HEAD = re.compile(r"([IWEF])\d{4} [\d:.]+ +\d+ (\w+)\.py:\d+\] ")


def plain_line(line: str) -> str:
    """A log line with severity, file and sentence, `I hansa.engine sync number=1 kind=full`; others as they are."""
    head = KLOG_HEAD.match(line)
    if head is None:
        return line
    text = re.sub(r'(?<![^\s=])"([^"\s=]+)"(?!\S)', r"\1", line[head.end() :])
    sentence = re.match(r'"([^"]*)"', text)  # of several words
    return f"{head[1]} hansa.{head[2]} " + (sentence[1] + text[sentence.end() :] if sentence else text)


class Command:
    """A running `hansa ...`; what it prints goes to files, so that it never waits for a reader."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, number: int) -> None:
        self.process = process
        self._out = folder / f"{number}.out"
        self._err = folder / f"{number}.err"

    @property
    def out(self) -> str:
        return self._out.read_text(encoding="utf-8")

    @property
    def log(self) -> list[str]:
        """Lines on standard error; log lines as `plain` has them."""
        return [plain_line(line) for line in self.raw_log.splitlines()]

    @property
    def raw_log(self) -> str:
        return self._err.read_text(encoding="utf-8")

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), WITHIN_S)

    async def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    def kill(self) -> None:
        """As the system does when it is out of memory: nothing can be tidied up. From any thread."""
        os.kill(self.process.pid, signal.SIGKILL)

    async def says(self, text: str) -> None:
        def is_said() -> bool:
            if any(text in line for line in (*self.log, *self.out.splitlines())):
                return True
            assert self.process.returncode is None, self.log
            return False

        await until(is_said, lambda: f"{text!r} in {self.log}")


class Shell:
    """Starts commands in a folder, and ends those that are left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._commands: list[Command] = []

    async def hansa(self, *arguments: object, environment: dict[str, str] | None = None) -> Command:
        number = len(self._commands) + 1
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KUBE")}
        with open(self._folder / f"{number}.out", "wb") as out, open(self._folder / f"{number}.err", "wb") as err:
            process = await asyncio.create_subprocess_exec(
                HANSA,
                *map(str, arguments),
                cwd=self._folder,
                env={**inherited, **(environment or {})},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        command = Command(process, self._folder, number)
        self._commands.append(command)
        return command

    async def output(self, *arguments: object, environment: dict[str, str] | None = None) -> str:
        """What a command prints that ends by itself, and well."""
        command = await self.hansa(*arguments, environment=environment)
        code = await command.ended()
        assert code == 0, command.log
        return command.out

    async def close(self) -> None:
        for command in self._commands:
            if command.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    command.process.kill()
                await command.process.wait()


@contextlib.asynccontextmanager
async def shell(folder: Path) -> AsyncIterator[Shell]:
    made = Shell(folder)
    try:
        yield made
    finally:
        await made.close()


def seen(address: str) -> list[str]:
    """What the HNS at this address holds, in the words of `held`."""
    with RemoteHns(address) as hns:
        listing = read_hns(hns)
    mirror = Emulator()
    for one in (*listing.endpoints, *listing.load_balancers):
        mirror.add(one)
    return held(mirror)


async def holds(address: str, goal: list[str], *, by: Command) -> None:
    """Return once the HNS at this address holds exactly that."""
    await until(
        lambda: seen(address) == goal, lambda: f"{sorted(set(goal) ^ set(seen(address)))} by {by.log}", every_s=0.1
    )
