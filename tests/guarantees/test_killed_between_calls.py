"""windows-proxy I14: hansa is killed after each single call in turn, and nothing of it is left over in the end.

Hardest is an HNS that keeps neither the GUID that we ask for nor our Owner: an object whose maker died between the
create and the note about it carries no mark at all. The intent that was noted before the create tells it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.guarantees.node import REMOTE_1, REMOTE_2, GuardedNode, bridge, overlay, plain

from hansa.api.objects import ApiObject
from hansa.hns.api import HnsVerb
from hansa.hns.emulator import WS2022, Build
from hansa.testing import L1, R1, R2, WEB, endpoint_slice

NO_MARKS = plain(WS2022, keeps_caller_guid=False, echoes_owner=False)
MARKS = plain(WS2022)
BEFORE, AFTER = endpoint_slice("web-a", [L1, R1]), endpoint_slice("web-a", [R1, R2])
BACKENDS = [REMOTE_1, REMOTE_2]


class Killed(BaseException):
    """The process is gone: no clean-up of ours runs."""


def killed_after(node: GuardedNode, calls: int) -> bool:
    """Sync, and die after so many calls that reached HNS; False if it needed fewer."""
    left = calls

    def die() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    node.guard.after_call.append(die)
    try:
        node.sync()
    except Killed:
        node.emulator._handles.clear()  # Windows closes the handles of a process that dies
        return True
    finally:
        node.guard.after_call.remove(die)
    return False


def fresh(kind: str, build: Build, folder: Path) -> GuardedNode:
    path = folder / "journal"
    path.unlink(missing_ok=True)
    make = bridge if kind == "bridge" else overlay
    return make(build=build, takeover=False, journal_path=str(path))


def nothing_is_left(node: GuardedNode, *objects: ApiObject) -> None:
    node.delete(*objects)
    node.settle()
    assert node.served() == {}
    assert node.remotes() == []


@pytest.mark.parametrize("kind", ["bridge", "overlay"])
@pytest.mark.parametrize("build", [MARKS, NO_MARKS], ids=["marks", "no marks"])
def test_killed_after_any_call_of_the_first_pass_hansa_leaves_nothing_that_it_would_not_remove(
    kind: str, build: Build, tmp_path: Path
) -> None:
    """Everything is unwanted when the next process comes: what the dead one made goes all the same."""
    deaths = 0
    while True:
        node = fresh(kind, build, tmp_path)
        node.put(WEB, BEFORE)
        if not killed_after(node, deaths + 1):
            break
        deaths += 1
        node.delete(WEB, BEFORE)
        node.start()
        nothing_is_left(node)
    assert deaths > 20


@pytest.mark.parametrize("build", [MARKS, NO_MARKS], ids=["marks", "no marks"])
def test_killed_after_any_call_of_a_change_the_next_process_ends_at_the_same_objects(
    build: Build, tmp_path: Path
) -> None:
    """Replacements, new and spare endpoints: no duplicate, no leftover, and all of it can still be removed."""
    deaths = 0
    while True:
        node = fresh("bridge", build, tmp_path)
        node.put(WEB, BEFORE)
        node.settle()
        node.put(AFTER)
        if not killed_after(node, deaths + 1):
            break
        deaths += 1
        node.start()
        node.settle()
        assert set(map(tuple, node.served().values())) == {tuple(BACKENDS)}
        assert len(node.emulator.load_balancers()) == len(node.served()) == 4
        assert node.remotes() == BACKENDS
        nothing_is_left(node, WEB, AFTER)
    assert deaths >= 15


@given(st.lists(st.integers(1, 25), min_size=2, max_size=6))
def test_killed_again_and_again_hansa_still_knows_what_is_its_own(lives: list[int]) -> None:
    """Each life ends after so many calls, with HNS keeping no marks; the last one finds everything unwanted."""
    with tempfile.TemporaryDirectory() as folder:
        node = fresh("overlay", NO_MARKS, Path(folder))
        for number, calls in enumerate(lives):
            node.put(WEB, (BEFORE, AFTER)[number % 2])
            killed_after(node, calls)
            node.start()
        nothing_is_left(node, WEB, BEFORE)


def test_an_intent_is_noted_before_the_gap_of_a_replacement_and_not_in_it(tmp_path: Path) -> None:
    """The two calls of a replacement have no write to a disk between them."""
    node = fresh("bridge", NO_MARKS, tmp_path)
    node.put(WEB, BEFORE)
    node.settle()
    sizes: list[tuple[HnsVerb | None, int]] = []
    journal = tmp_path / "journal"
    node.emulator.watch(lambda call: sizes.append((call.verb, journal.stat().st_size)))
    node.put(AFTER)
    node.sync()
    deletes = [at for at, (verb, _) in enumerate(sizes) if verb is HnsVerb.DELETE]
    replaced = [at for at in deletes if sizes[at + 1][0] is HnsVerb.CREATE]
    assert len(replaced) == 4
    assert all(sizes[at][1] == sizes[at + 1][1] for at in replaced)


def test_where_hns_keeps_marks_no_intent_costs_a_line(tmp_path: Path) -> None:
    """The first create tells that it does; only that one had to be noted beforehand."""
    node = fresh("bridge", MARKS, tmp_path)
    node.put(WEB, BEFORE)
    node.settle()
    lines = (tmp_path / "journal").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith(">") for line in lines) == 1
    assert sum(line.startswith("<") for line in lines) == 1


def test_a_damaged_intent_costs_nothing_but_itself(tmp_path: Path) -> None:
    """Half a line, or one that is no document: the rest of the journal counts, and hansa works."""
    node = fresh("bridge", NO_MARKS, tmp_path)
    node.put(WEB, BEFORE)
    node.settle()
    with (tmp_path / "journal").open("a", encoding="utf-8") as file:
        file.write('>10.96.0.10:80/tcp\t{"FrontendVIPs": ["x"\n>endpoint 10.1.2.21\tnull\n>half')
    node.start()
    assert node.sync().ok
    assert [line.split()[0] for line in node.written()] == []
    nothing_is_left(node, WEB, BEFORE)
