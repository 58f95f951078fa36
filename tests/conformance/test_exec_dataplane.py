"""A program that is told the rules on its standard input: whole, in pieces, after it died, and if it does not read."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hansa.api.change import Delete, Synced, Upsert
from hansa.api.objects import ApiObject, Kind
from hansa.dataplanes.base import HostState, SyncReport
from hansa.dataplanes.exec import apply
from hansa.dataplanes.exec.apply import ExecDataplane
from hansa.dataplanes.exec.lines import ExecCommand, parse_name
from hansa.errors import ConfigError
from hansa.pipeline import Pipeline
from hansa.testing import L1, R1, check_dataplane, config, endpoint_slice, node, service

# Keeps what it is told, one line a message, and ends when its input does or when it is told to.
PROGRAM = """
import os, sys
for line in sys.stdin.buffer:
    with open(sys.argv[1], "ab") as file:
        file.write(line)
    if os.path.exists(sys.argv[1] + ".die"):
        os.unlink(sys.argv[1] + ".die")
        os._exit(7)
"""


class Program:
    def __init__(self, folder: Path, *, changes: bool = False) -> None:
        self._script = folder / "program.py"
        self._script.write_text(PROGRAM)
        self.told_file = folder / "told"
        self.told_file.touch()
        self.command = ExecCommand((sys.executable, str(self._script), str(self.told_file)), changes)
        self.plane = ExecDataplane(self.command)
        self.pipeline = Pipeline(config(), frozenset())
        self.pipeline.apply([Upsert(node()), *(Synced(kind) for kind in Kind)])
        self.now = 0.0

    def say(self, *objects: ApiObject, gone: tuple[ApiObject, ...] = ()) -> SyncReport:
        self.pipeline.apply([*map(Upsert, objects), *(Delete(one.object_key) for one in gone)])
        message = self.pipeline.take()
        assert message is not None
        self.now += 1.0
        return self.plane.sync(message, now=self.now, audit=False)

    def told(self, count: int) -> list[dict[str, Any]]:
        """The messages, once there are so many."""
        wait_for(lambda: len(self.told_file.read_bytes().splitlines()) >= count)
        found = [json.loads(line) for line in self.told_file.read_bytes().splitlines()]
        assert len(found) == count
        return found

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.plane.close()


def wait_for(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


WEB, API = service("web"), service("api", cluster_ips=["10.96.0.11"])
SLICE = endpoint_slice("web-a", [L1, R1])


def keys(message: dict[str, Any]) -> list[str]:
    return [one["key"] for one in message["frontends"]]


def test_the_whole_state_comes_with_every_line(tmp_path: Path) -> None:
    with Program(tmp_path) as program:
        program.say(WEB, SLICE)
        program.say(API)
        program.say(gone=(WEB,))
        messages = program.told(3)
        assert [one["complete"] for one in messages] == [True] * 3
        assert [keys(one) for one in messages] == [
            ["10.96.0.10:80/tcp"],
            ["10.96.0.10:80/tcp", "10.96.0.11:80/tcp"],
            ["10.96.0.11:80/tcp"],
        ]


def test_a_frontend_is_told_with_everything_that_was_decided(tmp_path: Path) -> None:
    web = service("web", type="LoadBalancer", load_balancer_vips=["203.0.113.80"], source_ranges=["198.51.100.0/24"])
    with Program(tmp_path) as program:
        program.say(web, SLICE)
        (message,) = program.told(1)
    assert message["version"] == 1
    assert message["node"]["name"] == "n1"
    assert message["node"]["addresses"] == {"IPv4": "192.0.2.1", "IPv6": "2001:db8::1"}
    found = next(one for one in message["frontends"] if one["kind"] == "LoadBalancerIP")
    to = [
        {"address": "10.1.1.11", "port": 8080, "local": True},
        {"address": "10.1.2.21", "port": 8080, "local": False},
    ]
    action = {"do": "forward", "to": to, "masquerade": True, "because": "traffic policy Cluster: every usable endpoint"}
    assert found == {
        "key": "203.0.113.80:80/tcp",
        "kind": "LoadBalancerIP",
        "family": "IPv4",
        "address": "203.0.113.80",
        "protocol": "tcp",
        "port": 80,
        "service": "d/web:http",
        "pod": action,
        "node": action,
        "outside": action,
        "sourceRanges": ["198.51.100.0/24"],
        "affinitySeconds": None,
        "healthCheckNodePort": None,
    }


def test_changes_come_after_the_whole_state(tmp_path: Path) -> None:
    with Program(tmp_path, changes=True) as program:
        program.say(WEB, SLICE)
        program.say(API)
        program.say(gone=(WEB,))
        messages = program.told(3)
        assert [one["complete"] for one in messages] == [True, False, False]
        assert [keys(one) for one in messages] == [["10.96.0.10:80/tcp"], ["10.96.0.11:80/tcp"], []]
        assert [one.get("gone") for one in messages] == [None, [], ["10.96.0.10:80/tcp"]]


def test_a_program_that_dies_is_started_again_with_the_whole_state(tmp_path: Path) -> None:
    with Program(tmp_path, changes=True) as program:
        program.say(WEB, SLICE)
        program.told(1)
        Path(f"{program.told_file}.die").touch()
        program.say(API)
        program.told(2)
        process = program.plane._process
        assert process is not None
        process.wait(20)
        report = program.say()
        assert report.ok
        assert "has ended with 7" in report.conditions[0]
        messages = program.told(3)
        assert messages[2]["complete"]
        assert keys(messages[2]) == ["10.96.0.10:80/tcp", "10.96.0.11:80/tcp"]


def test_a_program_that_is_not_there_is_tried_again(tmp_path: Path) -> None:
    with Program(tmp_path) as program:
        program.plane._command = ExecCommand((str(tmp_path / "missing"),))
        report = program.say(WEB, SLICE)
        assert (report.state, report.pending) == (HostState.UNAVAILABLE, ("10.96.0.10:80/tcp",))
        assert report.retry_at == program.now + apply.RETRY_S
        assert "cannot be started" in report.results[0].error
        program.plane._command = program.command
        assert program.say().ok
        program.told(1)


def test_a_program_that_does_not_read_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "WRITE_LIMIT_S", 0.3)
    many = [service(f"s{number}", cluster_ips=[f"10.96.1.{number}"]) for number in range(250)]
    slices = [endpoint_slice(f"s{number}-a", [L1, R1], service=f"s{number}") for number in range(250)]
    with Program(tmp_path) as program:
        program.plane._command = ExecCommand((sys.executable, "-c", "import time; time.sleep(60)"))
        report = program.say(*many, *slices)  # far more than a pipe holds
        assert report.state is HostState.UNAVAILABLE
        assert "has read nothing" in report.results[0].error
        program.plane._command = program.command
        assert program.say().ok
        assert len(keys(program.told(1)[0])) == 250


def test_nothing_new_is_no_line_and_nothing_at_all_is_one(tmp_path: Path) -> None:
    with Program(tmp_path) as program:
        program.say()
        assert program.told(1)[0]["frontends"] == []
        program.say()
        program.say(WEB, SLICE)
        program.say()
        assert len(program.told(2)) == 2


def test_it_passes_the_checks(tmp_path: Path) -> None:
    program = Program(tmp_path, changes=True)
    passed = check_dataplane(lambda: ExecDataplane(program.command), keeps_rules=False)
    assert "what a complete message leaves out goes" in passed


def test_names_of_commands() -> None:
    assert parse_name("exec:a 'b c'") == ExecCommand(("a", "b c"))
    assert parse_name("exec+changes:a") == ExecCommand(("a",), changes=True)
    for bad in ("exec:", "exec:'a"):
        with pytest.raises(ConfigError, match="--dataplane"):
            parse_name(bad)
