"""Taking the place of another proxy: its table goes when ours is there, never before, and until it is gone."""

from __future__ import annotations

from hansa.dataplanes.base import HostState, Verb
from hansa.dataplanes.nftables.apply import NftablesDataplane
from hansa.dataplanes.nftables.memory import MemoryRuleset
from hansa.errors import DataplaneError
from hansa.net import IPFamily
from hansa.rules.model import RuleChanges, Surroundings
from hansa.testing import NODE_FACTS

V4, V6 = IPFamily.IPV4, IPFamily.IPV6
NOTHING = RuleChanges({}, Surroundings(NODE_FACTS), complete=True)


class OtherTables:
    """Another proxy's tables in memory. host: where ours must be by then. stuck: refuses to let them go."""

    def __init__(self, host: MemoryRuleset, *families: IPFamily) -> None:
        self.host, self.left, self.stuck, self.closed = host, set(families), False, False

    def found(self, family: IPFamily) -> tuple[str, ...]:
        return (f"table of {family}",) if family in self.left else ()

    def standing(self, family: IPFamily) -> tuple[str, ...]:
        return self.found(family)

    def remove(self, family: IPFamily) -> str:
        assert family in self.host.tables
        if self.stuck:
            raise DataplaneError("EBUSY")
        if family not in self.left:
            return ""
        self.left.remove(family)
        return f"table of {family}"

    def close(self) -> None:
        self.closed = True


def test_the_other_table_goes_once_ours_is_there() -> None:
    host = MemoryRuleset()
    other = OtherTables(host, V4)
    dataplane = NftablesDataplane(host, predecessor=other)
    report = dataplane.sync(NOTHING, now=0, audit=False)
    assert report.ok
    assert not other.left
    assert [one.change.key for one in report.results if one.change.why == "hansa has taken its place"] == [
        "table of IPv4"
    ]
    other.left.add(V4)
    report = dataplane.sync(NOTHING, now=0, audit=True)
    assert other.left, "it is done once: two proxies that remove each other's tables would never end"
    (told,) = report.conditions
    assert told.startswith("IPv4: another proxy is at work: table of IPv4; stop it")
    assert report.objects["table"] == (2, 2, 1)
    assert dataplane.sync(NOTHING, now=1, audit=False).conditions == (told,), "as long as it is so"
    other.left.clear()
    assert dataplane.sync(NOTHING, now=2, audit=True).conditions == ()
    dataplane.close()
    assert other.closed


def test_the_other_table_stays_while_ours_cannot_be_made() -> None:
    host = MemoryRuleset()
    host.refuse = {1}
    other = OtherTables(host, V4, V6)
    dataplane = NftablesDataplane(host, predecessor=other)
    assert not dataplane.sync(NOTHING, now=0, audit=False).ok
    assert other.left == {V4}, "one family does not hold up the other"
    assert dataplane.sync(NOTHING, now=5, audit=False).ok
    assert not other.left


def test_a_table_that_cannot_be_removed_is_told_and_tried_again() -> None:
    host = MemoryRuleset()
    other = OtherTables(host, V4)
    other.stuck = True
    dataplane = NftablesDataplane(host, (V4,), predecessor=other)
    report = dataplane.sync(NOTHING, now=0, audit=False)
    assert report.state is HostState.HEALTHY
    assert report.pending == ("IPv4 table of another proxy",)
    assert report.retry_at is not None
    assert report.conditions == ("IPv4: another proxy's table cannot be removed: EBUSY",)
    other.stuck = False
    assert dataplane.sync(NOTHING, now=5, audit=False).ok
    assert not other.left


def test_a_plan_tells_what_would_be_replaced() -> None:
    host = MemoryRuleset()
    dataplane = NftablesDataplane(host, (V4,), predecessor=OtherTables(host, V4))
    told = [(one.verb, one.kind, one.key) for one in dataplane.plan(NOTHING, now=0)]
    assert told == [(Verb.CREATE, "table", "IPv4 hansa"), (Verb.DELETE, "rules", "table of IPv4")]
