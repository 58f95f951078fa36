"""What pipeline and dataplanes make of a story, and of its end alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from tests.histories.expanders import LISTED, Story
from tests.strategies import final_objects

from hansa.api.change import Change, Upsert
from hansa.api.objects import ApiObject
from hansa.dataplanes.base import Dataplane
from hansa.pipeline import Pipeline
from hansa.rules.model import RuleChanges
from hansa.testing import NODE_ADDRESSES, config


def messages(batches: Iterable[list[Change]]) -> Iterator[RuleChanges]:
    """What the pipeline says after each batch."""
    running = Pipeline(config(), NODE_ADDRESSES)
    for batch in batches:
        running.apply(batch)
        message = running.take()
        if message is not None:
            yield message
    assert not running.take_failures()


def whole(objects: Iterable[ApiObject]) -> Pipeline:
    """One computation of everything, after the fact."""
    fresh = Pipeline(config(), NODE_ADDRESSES)
    fresh.apply([*(Upsert(item) for item in objects), *LISTED])
    return fresh


def final(story: Story) -> list[ApiObject]:
    return list(final_objects([change for step in story for change in step]).values())


def drive(dataplane: Dataplane, told: Iterable[RuleChanges], wait: Callable[[float], float]) -> None:
    """Sync after each message, then give every retry and check its time until nothing is left to do."""
    told = list(told)
    for message in told:
        dataplane.sync(message, now=wait(1.0), audit=message.complete)
    nothing = RuleChanges({}, told[-1].surroundings)
    for _ in range(20):
        report = dataplane.sync(nothing, now=wait(30.0), audit=True)
        if report.ok and not report.results and report.retry_at is None:
            return
    raise AssertionError(f"never quiet: {report}")
