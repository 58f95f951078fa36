"""`hansa lab shell`: a lab on the whole terminal. Tables of nodes, pods and load balancers, and a line for commands.

All that happens happens in `lab.session`; here are only widgets, keys and the clock that makes the lab's time pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Footer, Header, Input, RichLog

from hansa.errors import ConfigError
from hansa.explain.journey import Told, end_style, journey_end, journey_head, journey_table, tell
from hansa.lab.session import BalancerRow, NodeRow, PodRow, Session

TICK_S = 1.0  # real time between two steps of the lab, which are as long
_Row = TypeVar("_Row", NodeRow, PodRow, BalancerRow)


class LabShell(App[None]):
    """The lab `session`; `tick_s` 0 lets its time pass only by the command `wait`."""

    TITLE = "hansa lab"
    CSS = """
    #tables { height: 45%; }
    #left { width: 45%; }
    DataTable { height: 1fr; border: round $primary; }
    RichLog { height: 1fr; border: round $primary; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "quit", "Quit"),
        Binding("f2", "delete", "Delete load balancer"),
        Binding("f3", "kill", "Stop/start HNS"),
        Binding("f4", "crash", "Crash HNS"),
        Binding("f5", "audit", "Compare now"),
        Binding("f6", "drain", "Drain/ready pod"),
    ]

    def __init__(self, session: Session, *, tick_s: float = TICK_S) -> None:
        super().__init__()
        self.session = session
        self._tick_s = tick_s
        self.node_table: DataTable[Text] = DataTable(id="nodes", cursor_type="row")
        self.pod_table: DataTable[Text] = DataTable(id="pods", cursor_type="row")
        self.balancer_table: DataTable[Text] = DataTable(id="balancers", cursor_type="row")
        self.events = RichLog(id="log", wrap=False, markup=False, max_lines=2000)
        self.line = Input(placeholder="trace pod/default/client -> svc/default/web   (help)", id="line")

    def compose(self) -> ComposeResult:
        yield Header()
        with Horizontal(id="tables"):
            with Vertical(id="left"):
                yield self.node_table
                yield self.pod_table
            yield self.balancer_table
        yield self.events
        yield self.line
        yield Footer()

    def on_mount(self) -> None:
        self.sub_title = self.session.cluster.lab.name
        self.node_table.border_title, self.pod_table.border_title = "nodes", "pods"
        self.balancer_table.border_title, self.events.border_title = "load balancers", "what happens"
        self.node_table.add_columns("NODE", "SYSTEM", "ADDRESS", "LBS", "ENDPOINTS", "STATE")
        self.pod_table.add_columns("POD", "NODE", "ADDRESS", "STATE")
        self.balancer_table.add_columns("NODE", "ID", "FRONTEND", "FOR", "ENDPOINTS")
        self._show()
        self.line.focus()
        if self._tick_s:
            self.set_interval(self._tick_s, self._tick)

    # --- what people do ---

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.input.value = ""
        if event.value.strip():
            self._do(event.value)

    def action_delete(self) -> None:
        row = self._chosen(self.balancer_table, self.session.balancers())
        if row is not None:
            self._do(f"delete {row.guid} {row.node}")

    def action_kill(self) -> None:
        row = self._chosen(self.node_table, self.session.nodes())
        if row is not None:
            held = self.session.cluster.windows.get(row.name)
            self._do(f"{'start' if held is not None and not held.emulator.running else 'kill'} {row.name}")

    def action_crash(self) -> None:
        row = self._chosen(self.node_table, self.session.nodes())
        if row is not None:
            self._do(f"crash {row.name}")

    def action_audit(self) -> None:
        self._do("audit")

    def action_drain(self) -> None:
        row = self._chosen(self.pod_table, self.session.pods())
        if row is not None:
            self._do(f"{'ready' if row.state == 'draining' else 'drain'} {row.name}")

    @staticmethod
    def _chosen(table: DataTable[Text], rows: list[_Row]) -> _Row | None:
        place = table.cursor_row
        return rows[place] if 0 <= place < len(rows) else None

    def _do(self, command: str) -> None:
        self.events.write(Text(f"> {command}", style="bold"))
        try:
            lines = self.session.do(command)
        except ConfigError as error:
            lines = []
            for fault in error.faults:
                self.events.write(Text(str(fault), style="red"))
        self._tell(lines)
        sent = self.session.take_journey()
        if sent is not None:
            self._draw(tell(*sent))
        self._show()

    def _tick(self) -> None:
        lines = self.session.tick(self._tick_s)
        if lines:
            self._tell(lines)
            self._show()

    # --- what they see ---

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            self.events.write(Text(line))

    def _draw(self, told: Told) -> None:
        for line in journey_head(told):
            self.events.write(Text(line))
        self.events.write(journey_table(told))
        for line in journey_end(told):
            self.events.write(Text(line, style=end_style(line)))

    def _show(self) -> None:
        self._fill(self.node_table, [tuple(map(str, row)) for row in self.session.nodes()])
        self._fill(self.pod_table, [tuple(map(str, row)) for row in self.session.pods()])
        balancers = [
            (row.node, row.guid[:8].lower(), row.frontend, row.owner, str(row.endpoints))
            for row in self.session.balancers()
        ]
        self._fill(self.balancer_table, balancers)

    @staticmethod
    def _fill(table: DataTable[Text], rows: Sequence[tuple[str, ...]]) -> None:
        place = table.cursor_row
        table.clear()
        for row in rows:
            table.add_row(*map(Text, row))  # the brackets of an IPv6 frontend are no markup
        if rows:
            table.move_cursor(row=min(place, len(rows) - 1))
