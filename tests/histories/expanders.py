"""One list of cluster states, told in many ways that must all end the same.

A story is what happens between two states each, as lists of changes. An expander tells it differently without changing
where it ends; a flush strategy says after how many changes the proxy gets to work.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from hansa.api.change import Change, Delete, Synced, Upsert
from hansa.api.objects import ApiObject, Kind, ObjectKey

State = tuple[ApiObject, ...]
Story = list[list[Change]]

LISTED: tuple[Change, ...] = tuple(Synced(kind) for kind in Kind)


def by_key(state: State) -> Mapping[ObjectKey, ApiObject]:
    found = {item.object_key: item for item in state}
    assert len(found) == len(state), "a state holds each object once"
    return found


def story_of(states: Sequence[State]) -> Story:
    """The states one after the other; the first comes as a list does at start."""
    story: Story = []
    before: Mapping[ObjectKey, ApiObject] = {}
    for state in states:
        after = by_key(state)
        gone = [Delete(key) for key in before if key not in after]
        new = [Upsert(item) for key, item in after.items() if before.get(key) != item]
        story.append([*gone, *new])
        before = after
    story[0] = [*story[0], *LISTED]
    return story


def as_told(story: Story) -> Story:
    return story


def reversed_order(story: Story) -> Story:
    """Within one step nobody promises an order, except that a first list ends when all of it was said."""
    return [list(reversed(story[0][: -len(LISTED)])) + list(LISTED), *(list(reversed(step)) for step in story[1:])]


def duplicates(story: Story) -> Story:
    return [[change for change in step for _ in range(2)] for step in story]


def replayed(story: Story) -> Story:
    """A source that lists again after each step says everything that is in force once more."""
    told: Story = []
    force: dict[ObjectKey, Upsert] = {}
    for step in story:
        for change in step:
            if isinstance(change, Upsert):
                force[change.key] = change
            elif isinstance(change, Delete):
                force.pop(change.key, None)
        told.append([*step, *force.values(), *LISTED])
    return told


def split(story: Story) -> Story:
    """Every change is a step of its own."""
    first = story[0]
    return [first, *([change] for step in story[1:] for change in step)]


def squashed(story: Story) -> Story:
    """All of it happened before the first list was complete."""
    everything = [change for step in story for change in step if not isinstance(change, Synced)]
    return [[*everything, *LISTED]]


def with_empties(story: Story) -> Story:
    """Between two states everything is deleted, and comes back."""
    told = [story[0]]
    force: dict[ObjectKey, Upsert] = {}
    for index, step in enumerate(story):
        for change in step:
            if isinstance(change, Upsert):
                force[change.key] = change
            elif isinstance(change, Delete):
                force.pop(change.key, None)
        if index:
            told.append(list(force.values()))
        told.append([Delete(key) for key in force])
    told.append(list(force.values()))
    return told


def deleted_and_readded(story: Story) -> Story:
    """Every update arrives as a deletion and an addition, as for objects that stop and start to match a selector."""
    return [
        [each for change in step for each in ([Delete(change.key), change] if isinstance(change, Upsert) else [change])]
        for step in story
    ]


EXPANDERS: tuple[Callable[[Story], Story], ...] = (
    as_told,
    reversed_order,
    duplicates,
    replayed,
    split,
    squashed,
    with_empties,
    deleted_and_readded,
)


def each_change(story: Story) -> Iterator[list[Change]]:
    for step in story:
        for change in step:
            yield [change]


def each_step(story: Story) -> Iterator[list[Change]]:
    yield from story


def at_the_end(story: Story) -> Iterator[list[Change]]:
    yield [change for step in story for change in step]


def random_batches(story: Story) -> Iterator[list[Change]]:
    """Cut without regard to steps; the seed is fixed so that a failure repeats."""
    changes = [change for step in story for change in step]
    cut = random.Random(len(changes))
    while changes:
        size = cut.randint(1, 5)
        yield changes[:size]
        changes = changes[size:]


FLUSHES: tuple[Callable[[Story], Iterator[list[Change]]], ...] = (each_change, each_step, at_the_end, random_batches)
