"""A connection through a lab: as aligned text, as plain data, as a Mermaid or SVG sequence diagram. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rich.table import Table
from rich.text import Text

from hansa.explain.trace import verdict_text
from hansa.hns.emulator.builds import Grade
from hansa.hns.emulator.vswitch_model import BEHAVIOURS, Dropped
from hansa.lab.diagnosis import balancer_at, contradictions, diagnose, excuses
from hansa.lab.world import Arrived, Journey, Step, Way, World


@dataclass(frozen=True, slots=True)
class Told:
    """A journey with what is to be said of it. causes: why it does not work, () = it does.

    contradictions: where it is not as the rules want; excuses: what HNS is known not to do, and therefore so.
    """

    journey: Journey
    causes: tuple[str, ...]
    contradictions: tuple[str, ...]
    excuses: tuple[str, ...]
    inferred: tuple[str, ...]
    world: World


def tell(world: World, journey: Journey) -> Told:
    """Put a journey and its diagnosis together."""
    used = [step.hop.behaviour for step in journey.steps if step.hop is not None]
    if journey.loss is not None and isinstance(journey.loss.cause, Dropped):
        used.append(journey.loss.cause.behaviour)
    inferred = tuple(key for key in dict.fromkeys(used) if key and BEHAVIOURS[key].grade is Grade.INFERRED)
    causes, wrong, known = diagnose(world, journey), contradictions(world, journey), excuses(world, journey)
    return Told(journey, causes, wrong, known, inferred, world)


# -- text ------------------------------------------------------------------------------------------------------------


def journey_table(told: Told) -> Table:
    """One line per step: where, which layer or rule, what it did, the packet afterwards. A line of its own per way."""
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for heading in ("PLACE", "AT", "WHAT", "PACKET"):
        table.add_column(heading, overflow="fold")
    journey = told.journey
    _add_way(table, told, "there", journey.there)
    if journey.back is not None:
        _add_way(table, told, "back", journey.back)
    return table


def _add_way(table: Table, told: Told, name: str, way: Way) -> None:
    table.add_row(Text(name, style="bold"), "", "", "")
    shown = ""
    for step in way.steps:
        packet = str(step.after)
        place = Text(f"  {step.place}" + (f" -> {step.to}" if step.to else ""), style="bold cyan" if step.to else "")
        table.add_row(place, _at(step), _what(told.world, step), Text("" if packet == shown else packet))
        shown = packet


def _at(step: Step) -> Text:
    hop = step.hop
    if hop is None:
        return Text("")
    return Text(f"{hop.port} {hop.direction.value}" + (f" {hop.layer}" if hop.layer != "-" else ""), style="dim")


def _what(world: World, step: Step) -> Text:
    text = Text(step.text)
    hop = step.hop
    if step.rule is not None:
        text.append(f"\n{step.rule.kind.value} {step.rule.key} of {step.rule.owner}", style="dim")
    if hop is not None:
        for line in _by(world, step):
            text.append(f"\n{line}", style="dim")
        if hop.grade is Grade.INFERRED:
            text.append(f" [{hop.behaviour} inferred]", style="yellow")
    return text


def _by(world: World, step: Step) -> Iterable[str]:
    """The load balancer and the rule that did it."""
    hop = step.hop
    if hop is None or not hop.rule:
        return
    if hop.balancer is not None and (balancer := balancer_at(world, step.place, hop.balancer)) is not None:
        rule = world.rule(step.place, step.before.header)
        owner = f" of {rule.owner}" if rule is not None else ""
        flags = " ".join(flag.name.lower() for flag in balancer.flags if flag.name)
        yield f"load balancer {hop.balancer[:8].lower()}{owner}{', ' + flags if flags else ''}"
    yield f"rule {hop.rule}"


def journey_head(told: Told) -> list[str]:
    """What was asked, and what the rules say of it."""
    journey = told.journey
    lines = [str(journey.ask.header)]
    if journey.wanted is not None:
        lines.append(f"rules on {journey.node}: {verdict_text(journey.wanted)}")
        lines.append(f"  because {journey.wanted.because.value}")
    return lines


def journey_end(told: Told) -> list[str]:
    """How it went, why, and on what evidence."""
    journey = told.journey
    if journey.loss is None:
        end = journey.endpoint
        by = f" by {end.place}" if end is not None else ""
        lines = [f"works: answered{by}"]
    else:
        way = "on the way back" if journey.back is not None else "on the way there"
        lines = [f"lost {way}, at {journey.loss.place}: {journey.loss}"]
    lines += [f"cause: {one}" for one in told.causes]
    lines += [f"difference: {one}" for one in told.contradictions]
    lines += [f"known limit: {one}" for one in told.excuses]
    for key in told.inferred:
        behaviour = BEHAVIOURS[key]
        lines.append(f"inferred: {key} {behaviour.meaning} ({behaviour.evidence})")
    return lines


_STYLES = {"works": "green", "lost": "bold red", "cause": "red", "difference": "yellow"}


def end_style(line: str) -> str:
    """How a line of `journey_end` is to look, in the words of rich."""
    return _STYLES.get(line.split(":")[0].split(" ")[0], "dim")


# -- data ------------------------------------------------------------------------------------------------------------


def journey_data(told: Told) -> dict[str, Any]:
    journey = told.journey
    loss = journey.loss
    return {
        "packet": str(journey.ask.header),
        "node": journey.node or None,
        "rules": None if journey.wanted is None else verdict_text(journey.wanted),
        "because": None if journey.wanted is None else journey.wanted.because.value,
        "works": journey.works,
        "there": _way_data(journey.there),
        "back": None if journey.back is None else _way_data(journey.back),
        "lost": None if loss is None else {"at": loss.place, "why": str(loss), "packet": str(loss.header)},
        "causes": list(told.causes),
        "differences": list(told.contradictions),
        "knownLimits": list(told.excuses),
        "inferred": [
            {"behaviour": key, "meaning": BEHAVIOURS[key].meaning, "evidence": BEHAVIOURS[key].evidence}
            for key in told.inferred
        ],
    }


def _way_data(way: Way) -> dict[str, Any]:
    end = way.end
    return {
        "steps": [_step_data(step) for step in way.steps],
        "end": {"at": end.place, "arrived": isinstance(end, Arrived), "packet": str(end.header)},
    }


def _step_data(step: Step) -> dict[str, Any]:
    hop = step.hop
    data: dict[str, Any] = {"place": step.place, "to": step.to or None, "what": step.text}
    data |= {"before": str(step.before), "after": str(step.after)}
    if hop is not None:
        data |= {
            "port": str(hop.port),
            "direction": hop.direction.value,
            "layer": hop.layer,
            "rule": hop.rule or None,
            "loadBalancer": hop.balancer,
            "candidates": [str(address) for address in hop.candidates],
            "behaviour": hop.behaviour,
            "grade": hop.grade.value,
        }
    if step.rule is not None:
        data["frontend"] = str(step.rule.key)
    return data


# -- pictures --------------------------------------------------------------------------------------------------------


def _places(journey: Journey) -> list[str]:
    """Everybody in the picture, in the order in which they come in."""
    found: dict[str, None] = {}
    for step in journey.steps:
        found[step.place] = None
        if step.to:
            found[step.to] = None
    if journey.loss is not None:
        found[journey.loss.place] = None
    return list(found)


@dataclass(frozen=True, slots=True)
class _Arrow:
    start: str
    to: str
    text: str
    answer: bool


@dataclass(frozen=True, slots=True)
class _Note:
    over: str
    lines: tuple[str, ...]
    end: bool = False


def _events(told: Told) -> list[_Arrow | _Note]:
    """The picture as a list: arrows between places, notes over them; steps of one place share a note."""
    journey = told.journey
    events: list[_Arrow | _Note] = []
    for answer, way in ((False, journey.there), (True, journey.back)):
        for step in way.steps if way is not None else ():
            if step.to:
                events.append(_Arrow(step.place, step.to, str(step.after), answer))
                continue
            text = step.text
            if step.hop is not None and step.hop.grade is Grade.INFERRED:
                text += f" ({step.hop.behaviour}, inferred)"
            last = events[-1] if events else None
            if isinstance(last, _Note) and last.over == step.place:
                events[-1] = _Note(step.place, (*last.lines, text))
            else:
                events.append(_Note(step.place, (text,)))
    if journey.loss is not None:
        events.append(_Note(journey.loss.place, (f"LOST: {journey.loss}", *told.causes), end=True))
    else:
        events.append(_Note(_places(journey)[0], ("works",), end=True))
    return events


def journey_mermaid(told: Told) -> str:
    """A sequence diagram in Mermaid's words."""
    names = {place: f"p{number}" for number, place in enumerate(_places(told.journey))}
    lines = ["sequenceDiagram"]
    lines += [f"    participant {short} as {_plain(place)}" for place, short in names.items()]
    for event in _events(told):
        match event:
            case _Arrow(start, to, text, answer):
                lines.append(f"    {names[start]}{'-->>' if answer else '->>'}{names[to]}: {_plain(text)}")
            case _Note(over, texts):
                lines.append(f"    Note over {names[over]}: {'<br/>'.join(_plain(text) for text in texts)}")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Without what Mermaid reads as its own: a semicolon ends a statement, a hash begins a character's number."""
    return text.replace("#", "no. ").replace(";", ",")


_COLUMN, _LINE, _PAD = 260, 16, 24  # pixels
_WIDTH = 44  # characters of 10 pixel text that fit into a column


def journey_svg(told: Told) -> str:
    """The same as an image that needs no other program."""
    places = _places(told.journey)
    middle = {place: _PAD + _COLUMN // 2 + _COLUMN * number for number, place in enumerate(places)}
    body: list[str] = []
    y = 60
    for event in _events(told):
        match event:
            case _Arrow(start, to, text, answer):
                lines = _folded([text])
                y += _LINE * len(lines) + 6
                x = (middle[start] + middle[to]) // 2
                body += [_svg_text(x, y - 6 - _LINE * (len(lines) - 1 - row), one) for row, one in enumerate(lines)]
                dash = ' stroke-dasharray="5 4"' if answer else ""
                body.append(
                    f'<line x1="{middle[start]}" y1="{y}" x2="{middle[to]}" y2="{y}" stroke="#333"{dash} '
                    'marker-end="url(#tip)"/>'
                )
                y += 10
            case _Note(over, texts, end):
                lines = _folded(texts)
                height = _LINE * len(lines) + 10
                colour = "#fff3c4" if not end else "#f8d0d0" if told.journey.loss is not None else "#d5f0d5"
                left = middle[over] - _COLUMN // 2 + 6
                body.append(
                    f'<rect x="{left}" y="{y}" width="{_COLUMN - 12}" height="{height}" fill="{colour}" stroke="#999"/>'
                )
                body += [_svg_text(middle[over], y + _LINE * (row + 1), one) for row, one in enumerate(lines)]
                y += height + 8
    heads = [
        f'<line x1="{x}" y1="44" x2="{x}" y2="{y}" stroke="#bbb"/>'
        f'<rect x="{x - _COLUMN // 2 + 20}" y="14" width="{_COLUMN - 40}" height="30" fill="#e8eef7" stroke="#678"/>'
        + _svg_text(x, 33, place)
        for place, x in middle.items()
    ]
    width, height = _COLUMN * len(places) + 2 * _PAD, y + _PAD
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="monospace" font-size="10">\n'
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#333"/></marker></defs>\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n' + "\n".join((*heads, *body)) + "\n</svg>\n"
    )


def _svg_text(x: int, y: int, text: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="middle">{escape(text)}</text>'


def _folded(texts: Sequence[str]) -> list[str]:
    """Lines that fit into a column."""
    lines: list[str] = []
    for text in texts:
        line = ""
        for word in text.split():
            if line and len(line) + 1 + len(word) > _WIDTH:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
        lines.append(line)
    return lines
