"""On a node: what the engine does becomes a report to the brain, and the brain is asked at the engine's pace."""

from __future__ import annotations

from hansa import __version__
from hansa.dataplanes.base import Outcome, SyncReport
from hansa.engine import Engine, EngineState, SyncRecord
from hansa.sources.kpng.client import KpngSource
from hansa.sources.kpng.node import NodeReport

# What people look at; the node's own /debug/state and metrics have the rest.
FAILURES = 10
SHORTFALLS = 20


def attend(engine: Engine, source: KpngSource) -> None:
    """Let `source` report what becomes of its batches in `engine`; before the engine runs."""
    applied = _Applied()

    async def dealt_with() -> None:
        # Noted before waiting: what was received by now is what the engine is at.
        received = source.revision
        await engine.settled()
        source.tell(applied.report(engine, received=received))

    def ran(record: SyncRecord, _: SyncReport | None) -> None:
        del record
        source.tell(applied.report(engine, received=applied.received))

    source.pace_by(dealt_with)
    engine.on_sync(ran)


class _Applied:
    """Remembers the last revision that the host held in full."""

    def __init__(self) -> None:
        self.received = 0
        self._revision = 0

    def report(self, engine: Engine, *, received: int) -> NodeReport:
        """`received`: the last revision that the engine has taken in."""
        self.received = max(received, self.received)
        state = engine.state
        if state.waiting_since is None and state.first_reached_at is not None:
            self._revision = self.received
        return node_report(state, applied=self._revision, received=self.received, dataplane=engine.dataplane_name)


def node_report(state: EngineState, *, applied: int, received: int, dataplane: str) -> NodeReport:
    """What a brain is told of an engine's state."""
    report = state.report
    failures: dict[str, str] = {}
    if report is not None:
        for result in report.results:
            if result.outcome is Outcome.FAILED:
                failures[f"{result.change.kind} {result.change.key}"] = result.error
        for key in report.pending:
            if not any(name.endswith(f" {key}") for name in failures):
                failures[key] = "pending"
    if state.last is not None and state.last.error:
        failures["sync"] = state.last.error
    return NodeReport(
        applied_revision=applied,
        received_revision=received,
        failures=tuple(failures.items())[:FAILURES],
        shortfalls=tuple(sorted({f"{one.feature}: {one.text}" for one in report.shortfalls}))[:SHORTFALLS]
        if report is not None
        else (),
        dataplane=dataplane,
        version=__version__,
        pending_count=len(report.pending) if report is not None else 0,
        host_state=report.state.value if report is not None else "",
    )
