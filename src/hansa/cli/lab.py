"""The commands around a lab: bring one up, send packets through it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hansa.cli.screen import console
from hansa.errors import ConfigError, Fault

if TYPE_CHECKING:
    from hansa.explain.journey import Told
    from hansa.hns.emulator.vswitch_model import Choose
    from hansa.lab.cluster import Cluster

lab_app = typer.Typer(
    help="A cluster in one process: emulated Windows nodes, Linux nodes, pods, and packets between them.",
    no_args_is_help=True,
)
LabFile = Annotated[Path, typer.Argument(help="A lab in YAML, or the state of one that `hansa lab run --save` wrote.")]
Faults = Annotated[
    list[str] | None,
    typer.Option(
        "--fault", help="Break something after hansa has done its work; may be repeated (`hansa lab faults`)."
    ),
]
Heal = Annotated[bool, typer.Option("--heal", help="Have hansa look again after the faults.")]


@lab_app.command("run")
def lab_run(
    file: LabFile,
    *,
    fault: Faults = None,
    heal: Heal = False,
    save: Annotated[
        Path | None, typer.Option(help="Where to keep the state, for `hansa trace` and `hansa why`.")
    ] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="table or json.")] = "table",
) -> None:
    """Bring a lab up: the CNI's part, then hansa itself on every Windows node. Say who made what."""
    from hansa.explain.text import report_line, shortfall_lines

    cluster = open_lab(file, fault, heal=heal)
    lines = [f"{name}: {report_line(node.report)}" for name, node in cluster.windows.items() if node.report]
    shortfalls = {name: shortfall_lines(node.shortfalls) for name, node in cluster.windows.items()}
    if output == "json":
        data = {
            "lab": cluster.lab.name,
            "made": [{"who": one.who, "node": one.node, "what": one.what} for one in cluster.made],
            "shortfalls": shortfalls,
        }
        print(json.dumps(data, indent=2))
    elif output == "table":
        console().print(_made_table(cluster))
        print()
        for line in lines:
            print(line)
        for name, told in shortfalls.items():
            for line in told:
                print(f"hansa: shortfall: {name}: {line}", file=sys.stderr)
    else:
        raise ConfigError(Fault("-o", f"{output!r} is no output form", "give table or json"))
    if save is not None:
        try:
            save.write_text(cluster.save(), encoding="utf-8")
        except OSError as error:
            raise ConfigError(Fault("--save", f"{save} cannot be written: {error.strerror}")) from error


@lab_app.command("shell")
def lab_shell(file: LabFile, *, fault: Faults = None) -> None:
    """Play with a lab on the whole terminal: send packets, break things, and watch hansa heal them."""
    from hansa.lab.session import Session

    session = Session(open_lab(file, fault))
    try:
        from hansa.cli.lab_shell import LabShell
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("textual"):
            raise
        raise ConfigError(
            Fault("lab shell", "needs textual, which is missing", "pip install 'hansa[shell]'")
        ) from error
    LabShell(session).run()


@lab_app.command("faults")
def lab_faults() -> None:
    """List what can be broken on purpose, and how to write it."""
    from hansa.lab.model import FAULT_FORMS

    for kind, form in FAULT_FORMS.items():
        print(f"{kind.value} {form}")


def open_lab(file: Path, faults: list[str] | None = None, *, heal: bool = False) -> Cluster:
    """A lab from its YAML, or as it was saved. heal: let hansa look again afterwards. Raises ConfigError."""
    from hansa.lab.cluster import Cluster

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            Fault(str(file), f"cannot be read: {why}", "give a lab in YAML, or what `hansa lab run --save` wrote")
        ) from error
    read = Cluster.load if text.startswith("{") else Cluster.read
    cluster = read(text, name=file.name, faults=tuple(faults or ()))
    if heal:
        cluster.settle(audit=True)
    return cluster


def trace_lab(cluster: Cluster, packet: str, *, endpoint: str, output: str) -> None:
    """Send a connection through a lab and tell of it; exits with 5 if it goes against the rules unexcused."""
    from hansa.explain import journey as telling
    from hansa.lab.asking import read_ask
    from hansa.lab.world import travel

    world = cluster.world()
    journey = travel(world, read_ask(packet, world), choose=_preferring(endpoint))
    told = telling.tell(world, journey)
    forms: dict[str, Callable[[], str]] = {
        "json": lambda: json.dumps(telling.journey_data(told), indent=2) + "\n",
        "mermaid": lambda: telling.journey_mermaid(told),
        "svg": lambda: telling.journey_svg(told),
    }
    if output == "table":
        _print_told(told)
    elif output in forms:
        print(forms[output](), end="")
    else:
        raise ConfigError(Fault("-o", f"{output!r} is no output form", "give table, json, mermaid or svg"))
    if told.contradictions and not told.excuses:
        raise typer.Exit(5)


def _preferring(endpoint: str) -> Choose:
    """The usual choice, but this endpoint where it is one of those to choose from. Raises ConfigError."""
    from hansa.hns.emulator.vswitch import spread
    from hansa.net import Address, parse_address

    usual = spread()
    if not endpoint:
        return usual
    try:
        wanted = parse_address(endpoint)
    except ValueError as error:
        raise ConfigError(Fault("--endpoint", str(error), "give the address of an endpoint")) from error

    def choose(key: tuple[object, ...], candidates: tuple[Address, ...]) -> int:
        return candidates.index(wanted) if wanted in candidates else usual(key, candidates)

    return choose


def _print_told(told: Told) -> None:
    from hansa.explain import journey as telling

    screen = console()
    print("\n".join(telling.journey_head(told)))
    print()
    screen.print(telling.journey_table(told))
    print()
    for line in telling.journey_end(told):
        screen.print(line, style=telling.end_style(line), markup=False, soft_wrap=True)


def _made_table(cluster: Cluster) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for heading in ("NODE", "WHO", "MADE"):
        table.add_column(heading, overflow="fold")
    previous = ("", "")
    for one in cluster.made:
        node, who = ("" if one.node == previous[0] else one.node), ("" if one[:2] == previous[::-1] else one.who)
        table.add_row(node, who, Text(one.what))  # the brackets of an IPv6 frontend are no markup
        previous = (one.node, one.who)
    return table
