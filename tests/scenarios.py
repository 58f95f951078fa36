"""The numbered scenarios of service-semantics: which there are, and the summary of those that ran.

A test that covers one carries `@pytest.mark.scenario("t182")`; if it leaves a part to other tests, also
`without="what is left"`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

# First and last number of each group; together they are all scenarios.
GROUPS: Mapping[str, tuple[int, int]] = {
    "handling and identity": (1, 14),
    "addresses and families": (15, 28),
    "source ranges": (29, 40),
    "node ports": (41, 51),
    "slices": (52, 69),
    "conditions": (70, 83),
    "topology": (84, 100),
    "traffic policy and short-circuit": (101, 124),
    "masquerade": (125, 137),
    "reject, drop, silence": (138, 146),
    "affinity": (147, 155),
    "health-check node port": (156, 165),
    "/healthz and /livez": (166, 172),
    "connection tracking": (173, 181),
    "timing and start-up": (182, 191),
}
LAST = 191
LAST_CASE = 155  # scenarios up to here are about packets and are run as cases


def scenario_name(number: int) -> str:
    return f"t{number:03}"


def summary(covered: Iterable[str], partly: Mapping[str, str], failed: Iterable[str]) -> Iterator[str]:
    """Lines for people: what passed, what is still to come, by group, and what is only covered in part.

    covered: scenarios of which a test passed. partly: of these, the ones that no test covers in full, with what is
    missing. failed: scenarios of which a test failed.
    """
    names = {scenario_name(number): number for number in range(1, LAST + 1)}
    done = {names[name] for name in covered if name in names}
    broken = sorted(name for name in set(failed) if name in names)
    missing = sorted(set(names.values()) - done - {names[name] for name in broken})
    line = f"service-semantics scenarios: {len(done)} of {LAST} run"
    yield line + ("" if not missing else "; still to come: " + ", ".join(_by_group(missing)))
    by_part: dict[str, list[int]] = {}
    for name, part in partly.items():
        if names.get(name) in done:
            by_part.setdefault(part, []).append(names[name])
    for part, numbers in sorted(by_part.items()):
        yield f"  without {part}: {', '.join(_ranges(sorted(numbers)))}"
    if broken:
        yield f"  failing: {', '.join(broken)}"


def _by_group(numbers: list[int]) -> Iterator[str]:
    for title, (first, last) in GROUPS.items():
        inside = [number for number in numbers if first <= number <= last]
        if inside:
            yield f"{', '.join(_ranges(inside))} ({title})"


def _ranges(numbers: list[int]) -> Iterator[str]:
    """Runs of consecutive numbers as `t001-t003`."""
    start = numbers[0]
    for number, following in zip(numbers, [*numbers[1:], -1], strict=True):
        if following != number + 1:
            first, last = scenario_name(start), scenario_name(number)
            yield first if first == last else f"{first}-{last}"
            start = following
