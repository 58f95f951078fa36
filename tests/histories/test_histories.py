"""Whatever the order and batching of events: the same state of the cluster ends in the same rules and the same objects.

Evidence: windows-proxy H.9 I10; service-semantics P5, P8, B3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dictionary_dataplane import DictionaryDataplane
from tests.histories.expanders import EXPANDERS, FLUSHES, LISTED, Story, story_of
from tests.histories.stories import STORIES
from tests.histories.telling import drive, final, messages, whole
from tests.strategies import Cluster, clusters

from hansa.api.change import Change, Upsert
from hansa.pipeline import HealthCheck, HealthCheckKey, Pipeline, merge
from hansa.rules.model import FrontendKey, Rule, RuleChanges
from hansa.testing import NODE_ADDRESSES, config

laws = settings(max_examples=50, deadline=None, derandomize=True)
Flush = Callable[[Story], Iterator[list[Change]]]
Expander = Callable[[Story], Story]
NAMES = list(STORIES)

everywhere = pytest.mark.parametrize("expander", EXPANDERS, ids=lambda one: one.__name__)
always = pytest.mark.parametrize("flush", FLUSHES, ids=lambda one: one.__name__)
each_story = pytest.mark.parametrize("name", NAMES)


def accumulated(told: Iterable[RuleChanges]) -> tuple[Mapping[FrontendKey, Rule], RuleChanges]:
    """The rules that a dataplane knows at the end, and the last message."""
    known: dict[FrontendKey, Rule] = {}
    message: RuleChanges | None = None
    for message in told:
        known = {} if message.complete else known
        known.update({key: rule for key, rule in message.rules.items() if rule is not None})
        for key in [key for key, rule in message.rules.items() if rule is None]:
            known.pop(key, None)
    assert message is not None
    return known, message


def check_rules(story: Story, batches: Iterable[list[Change]]) -> None:
    expected = whole(final(story)).take()
    assert expected is not None
    told = list(messages(batches))
    known, last = accumulated(told)
    assert known == expected.rules
    assert last.surroundings == expected.surroundings
    assert last.conflicts == expected.conflicts
    merged = told[0]
    for message in told[1:]:
        merged = merge(merged, message)
    assert merged == expected


@each_story
@everywhere
@always
def test_every_telling_ends_in_the_rules_of_one_full_computation(name: str, expander: Expander, flush: Flush) -> None:
    story = expander(story_of(STORIES[name]))
    assert set(final(story)) == set(STORIES[name][-1]), "an expander must not change the end"
    check_rules(story, flush(story))


@each_story
def test_every_state_of_a_story_says_something_else(name: str) -> None:
    """A story in which nothing happens would prove nothing."""
    spoken = [(message.rules, message.surroundings) for message in messages(story_of(STORIES[name]))]
    assert len(STORIES[name]) > 1
    assert any(rules for rules, _ in spoken)
    assert len({str(one) for one in spoken}) > 1


@each_story
@everywhere
def test_health_checks_too_depend_on_the_end_alone(name: str, expander: Expander) -> None:
    def checks(batches: Iterable[list[Change]]) -> Mapping[HealthCheckKey, HealthCheck]:
        running = Pipeline(config(), NODE_ADDRESSES)
        for batch in batches:
            running.apply(batch)
            running.take()
        return running.health_checks

    story = expander(story_of(STORIES[name]))
    assert checks(story) == checks([[*(Upsert(item) for item in STORIES[name][-1]), *LISTED]])


@laws
@given(st.lists(clusters(), min_size=1, max_size=4), st.sampled_from(EXPANDERS), st.sampled_from(FLUSHES))
def test_random_histories_end_in_the_rules_of_one_full_computation(
    states: list[Cluster], expander: Expander, flush: Flush
) -> None:
    story = expander(story_of([state.objects for state in states]))
    check_rules(story, flush(story))


# --- through to a host ---


@each_story
@everywhere
def test_a_host_ends_as_after_one_full_computation(name: str, expander: Expander) -> None:
    story = expander(story_of(STORIES[name]))
    dataplane, time = DictionaryDataplane(), iter(range(1_000_000))
    drive(dataplane, messages(FLUSHES[0](story)), lambda _: float(next(time)))
    expected = whole(STORIES[name][-1]).take()
    assert expected is not None
    assert dataplane.host.frontends == expected.rules
