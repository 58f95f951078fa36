"""The shell of a lab, by its own pilot: what people type and press, and what they then see."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, RichLog

from hansa.cli.lab_shell import LabShell
from hansa.lab.cluster import Cluster
from hansa.lab.session import Session

pytestmark = pytest.mark.asyncio
LAB = Path(__file__).parents[3] / "examples" / "labs" / "overlay.yaml"


def shell(tick_s: float = 0.0) -> LabShell:
    return LabShell(Session(Cluster.read(LAB.read_text(encoding="utf-8"), name="overlay")), tick_s=tick_s)


async def type_in(pilot: Pilot[None], command: str) -> None:
    line = pilot.app.query_one("#line", Input)
    line.value = command
    line.focus()
    await pilot.press("enter")
    await pilot.pause()


def log(app: LabShell) -> str:
    return "\n".join(strip.text.rstrip() for strip in app.query_one("#log", RichLog).lines)


def column(app: LabShell, table: str, number: int) -> list[str]:
    shown = app.query_one(f"#{table}", DataTable)
    return [str(shown.get_row_at(place)[number]) for place in range(shown.row_count)]


async def test_tables_show_nodes_pods_and_load_balancers() -> None:
    app = shell()
    async with app.run_test(size=(200, 60)):
        assert column(app, "nodes", 0) == ["win-1", "win-2", "linux-1"]
        assert "default/web-1" in column(app, "pods", 0)
        assert column(app, "balancers", 2).count("172.21.0.10:53/udp") == 2


async def test_a_packet_is_sent() -> None:
    app = shell()
    async with app.run_test(size=(250, 60)) as pilot:
        await type_in(pilot, "trace pod/default/client -> svc/kube-system/kube-dns:dns")
        assert "works: answered by pod kube-system/coredns-1" in log(app)


async def test_a_deleted_load_balancer_is_lost_and_healed() -> None:
    app = shell()
    async with app.run_test(size=(250, 80)) as pilot:
        table = app.query_one("#balancers", DataTable)
        table.move_cursor(row=column(app, "balancers", 2).index("172.21.0.10:53/udp"))
        before = table.row_count
        await pilot.press("f2")
        await pilot.pause()
        assert table.row_count == before - 1
        await type_in(pilot, "trace pod/default/client -> svc/kube-system/kube-dns:dns")
        assert "cause: load balancer missing" in log(app)
        await type_in(pilot, "wait 31")
        assert table.row_count == before
        assert "win-1: create load balancer 172.21.0.10:53/udp, missing" in log(app)


async def test_hns_is_killed_and_comes_back() -> None:
    app = shell()
    async with app.run_test(size=(200, 60)) as pilot:
        await pilot.press("f3")
        await type_in(pilot, "wait 31")
        assert column(app, "nodes", 5)[0].startswith("unavailable")
        await pilot.press("f3")
        await type_in(pilot, "wait 60")
        assert column(app, "nodes", 5)[0] == "healthy"
        await pilot.press("f4")
        await pilot.pause()
        assert column(app, "nodes", 3)[0] == "0"
        await pilot.press("f5")
        await type_in(pilot, "wait 60")
        assert int(column(app, "nodes", 3)[0]) > 0


async def test_a_pod_is_drained_and_ready_again() -> None:
    app = shell()
    async with app.run_test(size=(200, 60)) as pilot:
        place = column(app, "pods", 0).index("default/web-2")
        app.query_one("#pods", DataTable).move_cursor(row=place)
        await pilot.press("f6")
        await pilot.pause()
        assert column(app, "pods", 3)[place] == "draining"
        await type_in(pilot, "trace pod/default/client -> svc/default/web")
        assert "works: answered by pod default/web-1" in log(app)
        app.query_one("#pods", DataTable).move_cursor(row=place)
        await pilot.press("f6")
        await pilot.pause()
        assert column(app, "pods", 3)[place] == "ready"


async def test_time_passes_by_itself() -> None:
    app = shell(tick_s=0.01)
    async with app.run_test(size=(200, 60)) as pilot:
        await pilot.pause(0.1)
        assert app.session.cluster.now > 0.0


async def test_mistakes_are_told() -> None:
    app = shell()
    async with app.run_test(size=(200, 60)) as pilot:
        for command in (
            "explode",
            "wait long",
            "kill linux-1",
            "drain nobody",
            "drain client",
            "delete ffff",
            "trace x",
        ):
            await type_in(pilot, command)
        shown = log(app)
        for part in (
            "'explode' is none",
            "no number of seconds",
            "no Windows node",
            "no pod",
            "no endpoint",
            "is no packet",
        ):
            assert part in shown
        await type_in(pilot, "help")
        await type_in(pilot, "fault delete-load-balancer win-1 172.21.0.10:53/udp")
        assert "broken: delete-load-balancer win-1" in log(app)
