"""`hansa proxy --windows-service` under a service manager: installed, started and stopped as `sc.exe` does it.

Run by `make test-windows`: the service manager is Wine's, HNS is emulated on this side.
Evidence: operations.md 1, 16 and 19.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.end_to_end.cluster import wanted
from tests.end_to_end.processes import shell
from tests.windows.test_daemon import NODE_NAME, Node, on_windows

from hansa.lab.cni import spare_source_vips

TOOL = os.environ.get("HANSA_TEST_WINDOWS", "")
ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "windows"
SERVICE = f"hansa-{os.getpid()}"
WITHIN_S = 180.0  # Wine starts its services, then Python: some seconds, or a minute where much else runs

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(sys.platform == "win32" or not TOOL, reason="starts Windows processes: make test-windows"),
]


def sc(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, TOOL, "--wine", "sc.exe", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout


@pytest.fixture
def windows() -> Iterator[None]:
    """Wine's server, and with it the service manager, ends with the last program: this one waits."""
    waiting = subprocess.Popen(
        [sys.executable, TOOL, "--python", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    yield
    assert waiting.stdin is not None
    waiting.stdin.close()
    waiting.wait()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A service gets none of our environment: this starts hansa with it."""
    path = tmp_path / "service.py"
    path.write_text(
        textwrap.dedent(f"""\
            import os, sys
            sys.path[:0] = {[on_windows(ROOT / "src"), on_windows(CACHE / "packages")]!r}
            sys.dont_write_bytecode = True
            os.environ["HANSA_HNS_ADDRESS"] = sys.argv.pop(1)
            sys.stdout = sys.stderr = None  # as Windows starts services; Wine gives them ours
            from hansa.cli import proxy
            sys.exit(proxy.main(sys.argv[1:]))
        """)
    )
    return path


@pytest.fixture
def installed(program: Path, windows: None) -> Iterator[list[str]]:
    """Names of services that the test has made."""
    made: list[str] = []
    yield made
    for name in made:
        sc("delete", name)


def create(program: Path, name: str, *arguments: str) -> None:
    command = " ".join([on_windows(CACHE / "python" / "python.exe"), on_windows(program), *arguments])
    sc("create", name, "binPath=", command)


async def test_a_service_is_started_programs_the_node_and_is_stopped(
    tmp_path: Path, program: Path, installed: list[str]
) -> None:
    log = tmp_path / "service.log"
    async with shell(tmp_path) as on:
        node = Node(tmp_path, on)
        with node.server:
            installed.append(SERVICE)
            create(
                program,
                SERVICE,
                node.server.address,
                "--windows-service",
                f"--service-log-file={on_windows(log)}",
                f"--source={on_windows(node.file)}",
                f"--hostname-override={NODE_NAME}",
                f"--source-vip={spare_source_vips(node.emulator)[0]}",
                "--healthz-bind-address=",
                "--metrics-bind-address=",
                "-v2",
            )
            await asyncio.to_thread(sc, "start", SERVICE)

            def said() -> str:
                return log.read_text(encoding="utf-8") if log.exists() else ""

            async with asyncio.timeout(WITHIN_S):
                while node.held != wanted(node.items):
                    await asyncio.sleep(0.2)
            assert "RUNNING" in await asyncio.to_thread(sc, "query", SERVICE)
            before = node.objects
            await asyncio.to_thread(sc, "stop", SERVICE)
            status = ""
            for _ in range(50):
                status = await asyncio.to_thread(sc, "query", SERVICE)
                if "STOPPED" in status:
                    break
            assert "STOPPED" in status, (status, said())
            assert node.objects == before, "rules stay"
            assert '"sync" number=1' in said()


async def test_without_a_service_manager_it_says_so(tmp_path: Path) -> None:
    """Started by hand with a service's command line."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, TOOL, "--python", "-m", "hansa", "proxy", "--windows-service", "--master=http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    assert '"command failed" err="windows service: ' in done.stdout
    assert "unless `sc.exe create` made a service" in done.stdout
